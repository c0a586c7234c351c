"""The networks of the study: what each kind is called in the zoo, and who is whose substitute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from robustsnn.models.zoo import zoo_names

ANN, TRADITIONAL, HIRE = "ANN", "traditional SNN", "HIRE"
PERIODS = "periods without noise"
LINF, L2 = "periods, Gaussian Linf", "periods, Gaussian L2"
GAUSSIAN = "Gaussian noise"
RATE, CONVERTED, FROM_RATE = "rate-coded", "rate-coded, converted", "direct, same parent"
ANN_AT, SNN_AT = "ANN, adversarial 8/255", "SNN, adversarial 8/255"
SINGLE, SURROGATE = "single-spike", "from random weights"
LEVELS = (1, 2, 4, 16)
#: The kinds of networks, and how the name of each ends after its data set and architecture.
KINDS: Mapping[str, str] = {
    ANN: "ann",
    TRADITIONAL: "snn",
    HIRE: "snn-hire",
    "HIRE, 3 periods": "snn-hire-n3",
    "HIRE, 4 periods": "snn-hire-n4",
    PERIODS: "snn-periods",
    LINF: "snn-periods-linf",
    L2: "snn-periods-l2",
    GAUSSIAN: "snn-gaussian",
    SURROGATE: "snn-surrogate",
    "ANN of the rate-coded": "ann-rate",
    FROM_RATE: "snn-direct",
    RATE: "snn-rate",
    CONVERTED: "snn-rate-conversion",
    **{f"quantised, N = {levels}": f"snn-quantised-{levels}" for levels in LEVELS},
    SINGLE: "snn-single-spike",
    ANN_AT: "ann-at",
    SNN_AT: "snn-at",
    "ANN, adversarial 2/255": "ann-at2",
    "SNN, adversarial 2/255": "snn-at2",
    "rate-coded, adversarial 8/255": "snn-rate-at",
    "quantised, N = 2, adversarial 8/255": "snn-quantised-2-at",
    "single-spike, adversarial 8/255": "snn-single-spike-at",
    "AGC, 10x fewer weights": "snn-agc-10x",
    "AGC, 33x fewer weights": "snn-agc-33x",
    "AGC, 4x, channels": "snn-agc-4x-channel",
    "magnitude, 10x": "snn-magnitude-10x",
    "magnitude, 33x": "snn-magnitude-33x",
    "pSC, 10x": "snn-psc-10x",
    "robust conversion, 10x": "snn-robust-conversion-10x",
    "HIRE on AGC, 10x": "snn-hire-agc-10x",
    "DNR, 10x": "snn-dnr-10x",
}
#: The families: data set and architecture, in the order of the page.
FAMILIES = (
    ("cifar10", "vgg5"),
    ("cifar10", "resnet12"),
    ("fashion-mnist", "vgg5"),
    ("fashion-mnist", "resnet12"),
)
#: The kinds of the figure of accuracy against epsilon.
DRAWN = (ANN, TRADITIONAL, HIRE, GAUSSIAN, ANN_AT, SNN_AT)
SEEDS = (1, 2)
#: The kinds that the claims are about, and those of them that the larger architecture has.
MAIN = (ANN, TRADITIONAL, HIRE)
ASKED = (
    *MAIN, PERIODS, LINF, L2, GAUSSIAN, RATE, CONVERTED, FROM_RATE, ANN_AT, SNN_AT, SINGLE,
    SURROGATE, *(f"quantised, N = {levels}" for levels in LEVELS),
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A network of the study.

    Args:
        data: The data set.
        architecture: The architecture.
        kind: One of `KINDS`.
        seed: 1 or 2.
    """

    data: str
    architecture: str
    kind: str
    seed: int = 1

    @property
    def name(self) -> str:
        """The name in the zoo.

        >>> Member("cifar10", "vgg5", HIRE, 2).name
        'cifar10/vgg5-snn-hire-b'
        """
        end = "" if self.seed == 1 else "-b"
        return f"{self.data}/{self.architecture}-{KINDS[self.kind]}{end}"

    @property
    def other_seed(self) -> Member:
        """The network of the same kind from the other seed, on which black-box images are made."""
        return Member(self.data, self.architecture, self.kind, 3 - self.seed)


def members() -> Iterator[Member]:
    """Every network that the study asks for, whether it is there or not."""
    for data, architecture in FAMILIES:
        for kind in KINDS:
            for seed in SEEDS:
                yield Member(data, architecture, kind, seed)


def present() -> list[Member]:
    """The networks of the study that the zoo holds."""
    there = set(zoo_names())
    return [member for member in members() if member.name in there]


def absent() -> list[str]:
    """The names of the first seeds that the claims are about and the zoo does not hold."""
    there = set(zoo_names())
    return [
        m.name
        for m in members()
        if m.seed == 1
        and m.kind in (MAIN if m.architecture == "resnet12" else ASKED)
        and m.name not in there
    ]
