"""Networks that behave as other people's code does: evaluated as they are, or refused in a line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, Dataset

import robustsnn
from robustsnn.errors import InputError
from robustsnn.models.calling import call

IMAGES = (torch.arange(8 * 36) * 37 % 256).reshape(8, 1, 6, 6).float() / 255


def plain() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return network


with torch.no_grad():
    LABELS = plain()(IMAGES).argmax(1)


def evaluated(network: nn.Module, **settings: Any) -> robustsnn.Evaluation:
    given = {"attack": "pgd:steps=3", "epsilon": 8 / 255, **settings}
    return robustsnn.evaluate(network, (IMAGES, LABELS), **given)


class Base(nn.Module):
    """The plain network inside a module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class InPlace(Base):
    """Scales its input in place, and back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2).div_(2))


class Unchanged(Base):
    """Clips pixels in place at its input, which leaves them as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.first(x))


class OnlyFloat(Base):
    """Holds a constant that is no buffer, so that it cannot become float64."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ torch.eye(3)


class Fixed(Base):
    size = 16

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(self.size, 1, 6, 6))


class One(Fixed):
    size = 1


class Keeping(Base):
    """Hooks and attributes hold what the last pass computed, graph and all."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Any] = {"all": []}
        self.net[1].register_forward_hook(self.keep)
        weight: Any = self.net[1].weight
        self.scale = weight.sum() * 0 + 1
        self.state = torch.zeros(1, 3, requires_grad=True)

    def keep(self, module: nn.Module, given: Any, out: Tensor) -> None:
        self.kept["last"] = out
        self.kept["all"] = [out, self.kept.get("last")]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x) * self.scale + self.state
        self.last = logits
        return logits


def after_training() -> nn.Module:
    network: Any = Keeping().train()
    nn.functional.cross_entropy(network(IMAGES), LABELS).backward()
    network(IMAGES)
    assert network.last.requires_grad and network.scale.grad_fn is not None
    return network  # type: ignore[no-any-return]


def pruned() -> nn.Module:
    network = plain()
    prune.l1_unstructured(network[1], "weight", amount=2)
    return network


def weight_norm() -> nn.Module:
    network = plain()
    parametrizations.weight_norm(network[1])
    return network


def spectral_norm() -> nn.Module:
    network = plain()
    parametrizations.spectral_norm(network[1])
    network(IMAGES)
    return network


def compiled() -> Any:
    return torch.compile(plain())


def partly_compiled() -> nn.Module:
    return nn.Sequential(nn.Identity(), compiled())


NETWORKS = {
    "in place": InPlace,
    "clipped in place": Unchanged,
    "float32 only": OnlyFloat,
    "float64": lambda: plain().double(),
    "half": lambda: plain().half(),
    "bfloat16": lambda: plain().bfloat16(),
    "sixteen at a time": Fixed,
    "one at a time": One,
    "right after training": after_training,
    "pruned": pruned,
    "weight norm": weight_norm,
    "spectral norm": spectral_norm,
    "script": lambda: torch.jit.script(plain()),
    "trace": lambda: torch.jit.trace(plain(), IMAGES),
    "script inside": lambda: nn.Sequential(nn.Identity(), torch.jit.script(plain())),
    "compiled": compiled,
    "partly compiled": partly_compiled,
    "data parallel": lambda: nn.DataParallel(plain()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_evaluated_as_it_is(name: str) -> None:
    network = NETWORKS[name]()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = evaluated(network)
    clean = found.records[found.records["attack"] == "clean"]["prediction"]
    with torch.no_grad():
        network.eval()
        kind = next(network.parameters()).dtype
        sizes = {"sixteen at a time": 16, "one at a time": 1}
        batch = IMAGES.to(kind)
        size = sizes.get(name, len(batch))
        batch = torch.cat([batch, batch])[: max(size, len(batch))]
        expected = torch.cat([network(part.clone()).argmax(1) for part in batch.split(size)])
    assert clean.tolist() == expected[: len(IMAGES)].tolist()
    assert found.accuracy < 1  # the attack moves
    checks = {c["check"]: c for c in found.manifest.preflight}
    for slug in ("repeatable", "alone-as-in-batch", "state-leak", "attack-mode", "zero-gradient"):
        assert checks[slug]["passed"], checks[slug]["sentence"]
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_what_is_given_stays_as_it_was() -> None:
    images = IMAGES.clone().requires_grad_()
    call(nn.ReLU(inplace=True), images).sum().backward()
    assert torch.equal(images, IMAGES)
    assert torch.equal(images.grad, (IMAGES > 0).float())  # type: ignore[arg-type]


class Raises(Base):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("nothing of that name")


class Exits(Base):
    def forward(self, x: Tensor) -> Tensor:
        sys.exit("no more")


class RaisesInAHook(Base):
    def __init__(self) -> None:
        super().__init__()
        self.net[3].register_forward_hook(self.look)

    def look(self, module: nn.Module, given: Any, out: Tensor) -> None:
        raise ZeroDivisionError("of the hook")


class Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise LookupError("no way back")


class RaisesBackward(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Back.apply(super().forward(x))
        return y


class RaisesInAHookOfTheGradient(Base):
    def __init__(self) -> None:
        super().__init__()
        self.net[1].register_full_backward_hook(self.look)

    def look(self, module: nn.Module, inner: Any, outer: Any) -> None:
        raise ZeroDivisionError("of the gradient")


class RefusesToBeCopied(Base):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        sys.exit(1)


class Refuses(Base):
    def train(self, mode: bool = True) -> Any:
        raise NotImplementedError("no modes")


class Late(Base):
    """Fails on bright images only, which attacks make and the checks do not see."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x.amax((1, 2, 3)) > 1 - 1e-6).all()):
            raise OverflowError("too bright")
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Raises, "KeyError: 'nothing of that name'"),
        (Exits, "SystemExit: no more"),
        (RaisesInAHook, "ZeroDivisionError: of the hook"),
        (RaisesBackward, "LookupError: no way back"),
        (RaisesInAHookOfTheGradient, "ZeroDivisionError: of the gradient"),
        (RefusesToBeCopied, "SystemExit: 1"),
        (Refuses, "NotImplementedError: no modes"),
    ],
)
def test_any_exception_is_one_line_that_names_file_and_line(network, reason, tmp_path):
    with pytest.raises(InputError) as caught:
        robustsnn.evaluate(network(), (IMAGES, LABELS), attack="fgsm", output=tmp_path / "run")
    said = str(caught.value)
    assert reason in said and f"{__file__}, line " in said and "\n" not in said
    line = int(said.partition(f"{__file__}, line ")[2].partition(":")[0].partition(")")[0])
    text = Path(__file__).read_text().splitlines()[line - 1]
    assert "raise " in text or "sys.exit" in text
    assert not (tmp_path / "run").exists()


def test_an_exception_in_the_middle_of_an_attack() -> None:
    images = IMAGES * 0.9
    with pytest.raises(InputError, match=r"OverflowError: too bright"):
        robustsnn.evaluate(Late(), (images, LABELS), attack="pgd:steps=3", epsilon=1.0)


class Unreadable(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index > 3:
            raise OSError("no such picture")
        return IMAGES[index], int(LABELS[index])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"data": Unreadable(), "attack": "fgsm"}, "the data failed.*OSError: no such picture"),
        ({"data": DataLoader(Unreadable()), "attack": "fgsm"}, "the data failed.*OSError"),
    ],
)
def test_data_that_raise(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        robustsnn.evaluate(plain(), **given)
    assert f"{Path(__file__).name}, line " in str(caught.value)


def test_an_attack_that_raises(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class A:\n    kind = 'fixed-epsilon'\n    def __call__(self, v, x, y, t, r):\n"
        "        raise SystemExit('of the attack')\nATTACK = A\n"
    )
    with pytest.raises(InputError, match=r"the attack .*SystemExit: of the attack") as caught:
        robustsnn.evaluate(plain(), (IMAGES, LABELS), attack=str(path))
    assert f"{path}, line 4" in str(caught.value)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_logits_that_are_not_real_numbers(kind: torch.dtype) -> None:
    class Counts(Base):
        def forward(self, x: Tensor) -> Tensor:
            return (10 * super().forward(x)).to(kind)

    name = str(kind).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"Counts returns \[.*3\] of type {name}, not logits"):
        evaluated(Counts())


def test_a_layer_of_torch_is_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(7, 3))
    with pytest.raises(InputError, match=r"does not take images .*in its layer 1, Linear"):
        evaluated(network)


def test_a_layer_without_a_size() -> None:
    with pytest.raises(InputError, match="lazy layer"):
        evaluated(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))


def test_a_lock_and_an_interrupt() -> None:
    import threading

    network: Any = Base()
    network.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied"):
        evaluated(network)

    class Interrupted(Base):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(Interrupted())


def broken(*given: Any, **more: Any) -> Any:
    """In place of a function of ours: a bug."""
    raise RuntimeError("a bug of ours")


@pytest.mark.parametrize(
    "name",
    [
        "robustsnn.models.scoring.margin",
        "robustsnn.models.scoring.padding",
        "robustsnn.adversary.victim.padding",
        "robustsnn.evaluation.judging.make_estimator",
        "robustsnn.evaluation.judging.Rng",
        "robustsnn.estimators.base.reached",
        "robustsnn.diagnosis.preflight.margin",
        "robustsnn.models.identity._unsaved",
    ],
)
@pytest.mark.parametrize("kind", [Base, plain])
def test_a_bug_of_ours_is_not_blamed_on_the_network(name, kind, monkeypatch):
    monkeypatch.setattr(name, broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        evaluated(kind())
