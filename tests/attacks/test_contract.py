"""What every attack must do, for all attacks: ours, those of libraries, and a user's file."""

import copy
import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustsnn.adversary.catalogue import attack_names, load_attack
from robustsnn.adversary.losses import cross_entropy
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.kinds import ENERGY, KINDS, NORMS
from robustsnn.common.randomness import Rng
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.bptt import Bptt
from robustsnn.models.scoring import judge
from robustsnn.snn.network import Network, NetworkConfig

LIBRARY = ["FGSM", "BIM", "MIFGSM", "PGD", "PGDL2", "UPGD", "APGD"]
# These need the name of an attack. The first is always installed; the others have their own tests.
PEERS = ("torchattacks", "foolbox", "art", "secml")
# Budgets that tests can afford; each of the long steps of FMN makes rounding ten times larger.
BUDGETS = {
    "square": "square:queries=300",
    "hop-skip-jump": "hop-skip-jump:queries=150,draws=30",
    "fmn": "fmn:steps=8",
    "energy": "energy:steps=8",
    "rays": "rays:queries=200",
}
MISSING = () if importlib.util.find_spec("foolbox") else ("hop-skip-jump",)
SPECS = [
    *(BUDGETS.get(name, name) for name in attack_names() if name not in (*PEERS, *MISSING)),
    "energy:steps=5,keep_label=no,restarts=2",
    "energy:steps=5,random_start=no",
    "pgd:steps=7,iterate=last,early_exit=no",
    "pgd:steps=5,restarts=3,loss=margin",
    "pgd:steps=10,random_start=no",
    "transfer:fgsm",
    *(f"torchattacks:{name}" for name in LIBRARY),
    str(Path(__file__).with_name("users_attack.py")),
]
CASES = [
    pytest.param(spec, norm, id=f"{Path(spec).name}-{norm}")
    for spec in SPECS
    for norm in NORMS
    if norm in getattr(load_attack(spec), "norms", NORMS)
]
AIMED = ("fixed-epsilon", "transfer", "minimum-norm")
#: The attacks that need spikes, whatever network a test would choose.
SPIKING = [spec for spec in SPECS if load_attack(spec).kind == ENERGY]
AIMED_CASES = [case for case in CASES if load_attack(str(case.values[0])).kind in AIMED]
# What a library does with NaN is not ours to test.
OUR_AIMED_CASES = [c for c in AIMED_CASES if not str(c.values[0]).startswith("torchattacks:")]
DETERMINISTIC = {
    "none",
    "fgsm",
    "transfer:fgsm",
    BUDGETS["fmn"],
    BUDGETS["rays"],
    "pgd:steps=10,random_start=no",
    "energy:steps=5,random_start=no",
    *(f"torchattacks:{name}" for name in ("FGSM", "BIM", "MIFGSM", "UPGD")),
}
RANDOM_CASES = [case for case in CASES if case.values[0] not in DETERMINISTIC]
SHAPE = (3, 8, 8)
EPSILON = {"Linf": "0.06", "L2": "0.6"}
every_attack = pytest.mark.parametrize(("spec", "norm"), CASES)
every_aimed_attack = pytest.mark.parametrize(("spec", "norm"), AIMED_CASES)


class Classifier(nn.Module):
    """A small smooth network with dropout, so that evaluation mode matters."""

    def __init__(self, hidden: int = 24, classes: int = 5) -> None:
        super().__init__()
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.classes = classes
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(size, hidden),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = 5 * self.layers(4 * (images - 0.5))
        return logits


class Linear(nn.Module):
    """A network of two classes with logits `(0, w.x + b)`, whose boundary is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 2
        generator = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(SHAPE, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = (images * self.w).flatten(1).sum(1) + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def images_at(self, norm: str, distance: float, count: int) -> tuple[torch.Tensor, ...]:
        """Images of both classes, each exactly that far from the boundary."""
        w = self.w.detach()
        generator = torch.Generator().manual_seed(4)
        x = 0.45 + 0.1 * torch.rand((count, *SHAPE), generator=generator, dtype=torch.float64)
        labels = torch.arange(count) % 2
        dual = w.abs().sum() if norm == "Linf" else w.norm()
        wanted = (2 * labels - 1) * distance * dual
        now = (x * w).flatten(1).sum(1) + self.b.detach()
        x = x + ((wanted - now) / w.square().sum()).reshape(-1, 1, 1, 1) * w
        return x, labels


def smooth(dtype: torch.dtype = torch.float64) -> Classifier:
    torch.manual_seed(11)
    return Classifier().to(dtype)


def spiking() -> Network:
    torch.manual_seed(12)
    network = Network(
        NetworkConfig(
            architecture="vgg5", kind="snn", classes=4, image=SHAPE, widths=(4, 6, 6),
            classifier=(16, 12), mean=(0.5,) * 3, std=(0.25,) * 3, time_steps=4,
        )
    )  # fmt: skip
    for layer in network.classifier.modules():
        if isinstance(layer, nn.Linear):
            # With the published N(0, 0.01), the read-out of such a small network never spikes.
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for neurons in network.spiking_layers().values():
        neurons.threshold.data.fill_(0.3)
    return network


def images_for(network: nn.Module, count: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Images that touch both ends of the range, labelled as the network sees them."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand((count, *SHAPE), generator=generator, dtype=torch.float64)
    x = (1.4 * x - 0.2).clamp(0, 1).to(dtype)
    # A copy is labelled, so that the tests see what a victim does to the network itself.
    return x, Victim(copy.deepcopy(network), Backprop(), range(count)).logits(x).argmax(1)


def victim_of(network: nn.Module, ids: range | list[int], micro_batch: int = 4) -> Victim:
    """A victim whose substitute is the same network, so that a transfer is the attack itself."""
    estimator = Bptt() if isinstance(network, Network) else Backprop()
    twin = Victim(copy.deepcopy(network), estimator, ids, micro_batch)
    return Victim(network, estimator, ids, micro_batch, substitute=twin)


def run(
    spec: str,
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    threat: ThreatModel,
    seed: int = 0,
) -> torch.Tensor:
    ids = range(len(images))
    attack = load_attack(spec)
    return attack(victim_of(network, ids), images, labels, threat, Rng(seed, ids))


def test_every_kind_is_known() -> None:
    assert {load_attack(spec).kind for spec in SPECS} <= set(KINDS)


@every_aimed_attack
def test_succeeds_beyond_the_distance_and_fails_within_it(spec: str, norm: str) -> None:
    # A search without gradients gets closer with every query, and it has few here.
    enough = 3.5 if getattr(load_attack(spec), "gradient_free", False) else 1.25
    distance = {"Linf": 0.05, "L2": 0.5}[norm] * 1.25 / enough
    network = Linear()
    images, labels = network.images_at(norm, distance, 6)
    for factor, survivors in ((enough, 0), (0.8, 6)):
        threat = ThreatModel(norm, repr(factor * distance))
        # The pixel range does not limit the shortest way out, so the closed form holds.
        reach = threat.radius * threat.ascent(network.w.detach()[None])
        assert bool(((images + reach).clamp(0, 1) == images + reach).all())
        assert bool(((images - reach).clamp(0, 1) == images - reach).all())
        found = run(spec, network, images, labels, threat)
        assert int((network(found).argmax(1) == labels).sum()) == survivors


@pytest.mark.parametrize(("spec", "norm"), OUR_AIMED_CASES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_finds_where_the_network_has_no_numbers(spec: str, norm: str, value: float) -> None:
    """The judge calls such an image wrong, so no attack may discard it."""

    class Fragile(Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = super().forward(images)
            known = (images[:, None] == clean).flatten(2).all(2).any(1)
            # Only the true class, so that infinity looks like a certain success.
            broken = torch.zeros_like(logits).scatter(1, (logits[:, 1:] > 0).long(), value)
            return torch.where(known[:, None], logits, logits + broken)

    # The ball does not reach the boundary, so there is nothing else to find.
    clean, labels = Linear().images_at(norm, {"Linf": 0.05, "L2": 0.5}[norm], 4)
    threat = ThreatModel(norm, {"Linf": "0.045", "L2": "0.45"}[norm])
    found = run(spec, Fragile(), clean, labels, threat)
    assert bool(threat.admits(found, clean).all())
    assert judge(Fragile()(found), labels)[0].tolist() == [-1] * 4


def network_for(spec: str, which: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The smooth network or the spiking one; the latter for an attack that needs spikes."""
    if which == "smooth" and spec in SPIKING:
        pytest.skip("the attack needs spikes")
    return smooth(dtype) if which == "smooth" else spiking().to(dtype)


@pytest.mark.parametrize("spec", SPIKING)
def test_says_in_one_line_that_there_are_no_spikes(spec: str) -> None:
    network = smooth()
    images, labels = images_for(network, 3, torch.float64)
    with pytest.raises(InputError, match="the network has no spikes"):
        run(spec, network, images, labels, ThreatModel("Linf", "0.06"))


@every_attack
@pytest.mark.parametrize("which", ["smooth", "spiking"])
def test_stays_in_ball_and_range(spec: str, norm: str, which: str) -> None:
    network = network_for(spec, which, torch.float32)
    images, labels = images_for(network, 5, torch.float32)
    threat = ThreatModel(norm, EPSILON[norm])
    found = run(spec, network, images, labels, threat)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert bool(threat.admits(found, images).all())


@every_attack
def test_leaves_everything_as_it_was(spec: str, norm: str) -> None:
    network = spiking()
    images, labels = images_for(network, 5, torch.float32)
    network.train()
    network.classifier.eval()
    next(network.features.parameters()).requires_grad_(False)
    kept = images.clone(), labels.clone(), copy.deepcopy(network.state_dict())
    modes = [m.training for m in network.modules()]
    grads = [p.requires_grad for p in network.parameters()]
    surrogates = [layer.surrogate for layer in network.spiking_layers().values()]
    generators = torch.get_rng_state(), str(np.random.get_state()), random.getstate()

    found = load_attack(spec)(
        victim_of(network, range(5)),
        images,
        labels,
        ThreatModel(norm, EPSILON[norm]),
        Rng(0, range(5)),
    )

    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (str(np.random.get_state()), random.getstate()) == generators[1:]
    assert [m.training for m in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == grads
    assert all(p.grad is None for p in network.parameters())
    assert [layer.surrogate for layer in network.spiking_layers().values()] == surrogates
    assert all(torch.equal(a, kept[2][name]) for name, a in network.state_dict().items())
    assert not found.requires_grad
    assert not images.requires_grad
    # A proposal that shared memory with the images would now have changed them.
    found.fill_(7)
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


@every_attack
def test_epsilon_zero_is_the_identity(spec: str, norm: str) -> None:
    network = spiking().double() if spec in SPIKING else smooth()
    images, labels = images_for(network, 5, torch.float64)
    found = run(spec, network, images, labels, ThreatModel(norm, "0"))
    assert torch.equal(found, images)


@pytest.mark.parametrize(
    ("spec", "norm"),
    # Attacks for the least distance return images that they cannot break within the ball.
    [case for case in AIMED_CASES if load_attack(str(case.values[0])).kind != "minimum-norm"],
)
def test_beats_its_start_and_random_noise(spec: str, norm: str) -> None:
    network = smooth().eval()
    images, labels = images_for(network, 8, torch.float64)
    threat = ThreatModel(norm, EPSILON[norm])
    found = run(spec, network, images, labels, threat)

    def gain(x: torch.Tensor) -> torch.Tensor:
        return (cross_entropy(network(x), labels) - cross_entropy(network(images), labels)).detach()

    # PGD draws its first start from this stream; for other attacks it is one more random point.
    noise = [threat.random_point(images, Rng(0, range(8)).stream("start-0"))]
    noise += [threat.random_point(images, Rng(seed, range(8))) for seed in range(20)]
    noise += [images + threat.scaled(Rng(s, range(8)).normal(SHAPE, images)) for s in range(20)]
    best = torch.stack([gain(x) for x in noise]).amax(0)
    # An attack may stop at the first misclassification, so only that counts from there on.
    fooled = network(found).argmax(1) != labels
    assert bool((fooled | (gain(found) > best.clamp(min=0))).all())
    # A search without gradients stops just beyond the boundary.
    searches = getattr(load_attack(spec), "gradient_free", False)
    assert searches or float(gain(found).mean()) > 2 * float(best.mean())


@every_attack
def test_same_seed_same_images(spec: str, norm: str) -> None:
    network = spiking().double() if spec in SPIKING else smooth()
    images, labels = images_for(network, 4, torch.float64)
    threat = ThreatModel(norm, EPSILON[norm])
    first, second = (run(spec, network, images, labels, threat, 9) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("spec", "norm"), RANDOM_CASES)
def test_another_seed_draws_differently(spec: str, norm: str) -> None:
    # It is enough on one of the two networks: on a smooth one every start can end in the same
    # corner of the ball, and on any network an attack may return images that it cannot break.
    differs = False
    for network in (smooth(torch.float32), spiking()):
        if spec in SPIKING and not isinstance(network, Network):
            continue
        images, labels = images_for(network, 4, torch.float32)
        threat = ThreatModel(norm, EPSILON[norm])
        first, second = (run(spec, network, images, labels, threat, seed) for seed in (1, 2))
        differs |= not torch.equal(first, second)
    assert differs


@every_attack
@pytest.mark.parametrize("which", ["smooth", "spiking"])
def test_does_not_depend_on_batching_or_order(spec: str, norm: str, which: str) -> None:
    network = network_for(spec, which)
    images, labels = images_for(network, 7, torch.float64)
    ids = [40, 3, 17, 8, 25, 1, 99]
    attack = load_attack(spec)
    threat = ThreatModel(norm, EPSILON[norm])

    def run(order: list[int], size: int) -> torch.Tensor:
        found = torch.empty_like(images)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            some = [ids[i] for i in rows]
            found[rows] = attack(
                victim_of(network, some, micro_batch=size), images[rows], labels[rows], threat,
                Rng(5, some),
            )  # fmt: skip
        return found

    whole = run([0, 1, 2, 3, 4, 5, 6], 7)
    for size in (1, 3):
        torch.testing.assert_close(run([6, 2, 0, 5, 1, 4, 3], size), whole, rtol=0, atol=1e-9)
