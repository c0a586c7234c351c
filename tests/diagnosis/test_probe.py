"""The probe: each diagnostic against closed forms, and fired by the one network made for it."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustsnn.adversary.threat import ThreatModel
from robustsnn.common.randomness import derive
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.probe.attacks import climb, doubling, order
from robustsnn.diagnosis.probe.directions import along, fidelity
from robustsnn.diagnosis.probe.layers import support, through_layers, through_time
from robustsnn.diagnosis.probe.measure import Probed, probe
from robustsnn.diagnosis.probe.specimen import Sizes, Specimen
from robustsnn.diagnosis.probe.taken import take
from robustsnn.diagnosis.probe.watch import mass
from robustsnn.estimators.make import draws_of
from robustsnn.snn.neuron import LIF
from robustsnn.snn.surrogate import Arctan, Rectangle, Sigmoid, Triangle

EPSILON = 0.05
THREAT = ThreatModel("Linf", str(EPSILON))
SHAPE = (1, 4, 4)
PIXELS = math.prod(SHAPE)
#: What the probe of a network always says, flagged or not.
ALWAYS = {
    "no-gradient", "zero-gradient", "nonfinite-gradient", "underflow", "gradient-fidelity",
    "noise-beats-gradient", "saturated", "unavailable-gradients", "unstable-predictions",
    "silent-success", "incomplete-optimisation", "attack-does-not-transfer", "far-above-chance",
    "unconstrained-failure", "gradient-draws", "blind-score",
}  # fmt: skip
SPIKING = {"out-of-support", "temporal-share", "surrogate-misplaced"}


class Linear(nn.Module):
    """Two classes, `z_1 - z_0 = w . (x - 1/2)`: the margin of class 0, its gradient is w."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        weights = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (PIXELS,), generator=weights) * 2 - 1
        sizes = torch.rand(PIXELS, generator=weights) + 0.5
        self.weight = nn.Parameter((signs * sizes).double())
        self.offset = offset

    def margin(self, x: Tensor) -> Tensor:
        return (x.to(self.weight).flatten(1) - 0.5) @ self.weight + self.offset

    def forward(self, images: Tensor) -> Tensor:
        z = self.margin(images)
        return torch.stack([torch.zeros_like(z), z], 1)


def images_at(network: Linear, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Images of class 0 whose nearest other class is `depth` away in Linf, inside the range."""
    x = 0.5 - depths[:, None] * network.weight.detach().sign()
    return x.float().reshape(-1, *SHAPE), torch.zeros(len(depths), dtype=torch.int64)


def probe_of(
    network: nn.Module, images: Tensor, labels: Tensor, micro_batch: int = 16, **changes: Any
) -> Probed:
    network = network.eval()
    with torch.no_grad():
        clean = network(images).argmax(1)
    given = {"seed": 0, "threat": THREAT, "sizes": Sizes(40, 20, 32, 40, 20), **changes}
    return probe(
        network, images, labels, range(len(images)), micro_batch=micro_batch, clean=clean, **given
    )


def found(probed: Probed) -> dict[str, Finding]:
    by_slug = {finding.slug: finding for finding in probed.findings}
    assert len(by_slug) == len(probed.findings)
    for finding in probed.findings:
        assert finding.sentence.endswith("."), finding.sentence
        # A finding that is not flagged says something else than one that is.
        assert finding.severity == "note" or finding.passed not in ("", finding.sentence)
        assert finding.severity in ("invalid", "caution", "note")
        assert dataclasses.replace(finding).as_measure()["id"] == finding.id
    return by_slug


def flagged(probed: Probed) -> set[str]:
    return {s for s, f in found(probed).items() if f.flagged and f.severity != "note"}


def specimen_of(
    network: nn.Module, images: Tensor, labels: Tensor, micro_batch: int = 8
) -> Specimen:
    return Specimen(network.eval(), images, labels, tuple(range(len(images))), micro_batch, 0)


@pytest.fixture
def depths() -> Tensor:
    """From the boundary to three times the radius away."""
    return torch.linspace(0.02, 3.0, 40) * EPSILON


# --- an honest network --------------------------------------------------------------------------


def test_a_linear_network_is_believed(depths):
    network = Linear()
    images, labels = images_at(network, depths)
    probed = probe_of(network, images, labels)
    by_slug = found(probed)
    assert set(by_slug) == ALWAYS and flagged(probed) == set()
    # One step of the gradient fools what lies within the radius, noise hardly anything.
    order = by_slug["noise-beats-gradient"].details
    within = float((depths < EPSILON).double().mean())
    assert order["one step"] == pytest.approx(within) and order["noise"] < within
    assert by_slug["far-above-chance"].evidence == 0 == by_slug["unconstrained-failure"].evidence
    assert by_slug["silent-success"].evidence == 0 == by_slug["attack-does-not-transfer"].evidence


def test_gradients_are_those_of_the_margin(depths):
    network = Linear()
    images, labels = images_at(network, depths)
    taken = take(specimen_of(network, images, labels), THREAT)
    want = network.weight.detach().expand(len(images), -1).float()
    torch.testing.assert_close(taken.here["bptt"].flatten(1), want)
    torch.testing.assert_close(taken.loss.float(), network.margin(images).detach().float())


def test_a_linear_loss_agrees_with_its_differences(depths):
    network = Linear()
    images, labels = images_at(network, depths)
    specimen = specimen_of(network, images, labels)
    finding = fidelity(along(specimen, take(specimen, THREAT), THREAT, 64))
    assert finding.details["rank correlation"]["bptt"] == pytest.approx(1.0, abs=1e-3)
    assert finding.evidence == pytest.approx(1.0, abs=0.08)
    assert finding.details["directions that change the loss"] == 1.0


# --- one network for each diagnostic ------------------------------------------------------------


class Shattered(Linear):
    """Rounded pixels: no gradient at all."""

    def margin(self, x: Tensor) -> Tensor:
        return super().margin((x * 64).round() / 64)


class Detached(Linear):
    """No gradient for images that are light in their first pixel."""

    def margin(self, x: Tensor) -> Tensor:
        light = x.flatten(1)[:, :1] > 0.5
        return super().margin(torch.where(light, x.flatten(1).detach(), x.flatten(1)))


class Explosive(Linear):
    """An infinite gradient in the first pixel, finite logits."""

    def margin(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        return super().margin(x) + (first - first.detach()).abs().sqrt().sum(1)


class Faint(Linear):
    """Logits at the lower end of float32."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).float() * 1e-39


class Loud(Linear):
    """Logits so large that a right answer's cross-entropy is zero."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).float() * 1e6


class Immovable(Linear):
    """A gradient, and a decision that nothing in the pixel range changes."""

    def margin(self, x: Tensor) -> Tensor:
        return super().margin(x) - 100


class Rough(Linear):
    """A margin that jumps between near pixels and is small on average."""

    def margin(self, x: Tensor) -> Tensor:
        wave = 19 * torch.cos(2e5 * x.detach().double().flatten(1).sum(1))
        return super().margin(x) - 20 + wave


class TwoFaced(Linear):
    """Other classes while somebody asks for a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits.flip(1) if images.requires_grad else logits


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class Backwards(Linear):
    """A gradient that points the wrong way."""

    def margin(self, x: Tensor) -> Tensor:
        return super().margin(_Backwards.apply(x))


class Elsewhere(Linear):
    """A gradient that is right in one pixel of sixteen; nothing near fools it anyway."""

    def margin(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        mixed = super().margin(flat.detach())
        other = flat @ torch.linspace(-1, 1, PIXELS, dtype=flat.dtype).roll(5).to(flat)
        return mixed + (other - other.detach())


class Vote(Linear):
    """The winner alone, with the gradient of the margin that decided."""

    def forward(self, images: Tensor) -> Tensor:
        z = super().forward(images) - torch.tensor([0.0, 20.0])
        won = nn.functional.one_hot(z.argmax(1), 2).to(z)
        return z + (won - z).detach()


class Trembling(Linear):
    """Steady logits, and a gradient that draws its sign anew for every pixel and pass."""

    def forward(self, images: Tensor) -> Tensor:
        self.passes = getattr(self, "passes", 0) + 1
        draws = torch.Generator().manual_seed(self.passes)
        signs = (torch.rand(PIXELS, generator=draws) < 0.7).double() * 2 - 1
        z = self.margin(images.detach())
        noisy = (images.double().flatten(1) - 0.5) @ (self.weight * signs)
        z = z + (noisy - noisy.detach())
        return torch.stack([torch.zeros_like(z), z], 1)


class Constant(nn.Module):
    """The same logits for every image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)


@pytest.mark.parametrize(
    ("network", "flags"),
    [
        (Shattered(), {"no-gradient", "zero-gradient"}),
        (Explosive(), {"nonfinite-gradient"}),
        (Faint(), {"underflow"}),
        (Loud(), {"saturated"}),
        (Immovable(), {"far-above-chance", "unconstrained-failure"}),
        (Rough(), {"unstable-predictions"}),
        (TwoFaced(), {"attack-does-not-transfer"}),
        (Backwards(), {"gradient-fidelity", "noise-beats-gradient"}),
        (Elsewhere(), {"gradient-fidelity"}),
        (Trembling(), {"gradient-draws"}),
        (Constant(), {"no-gradient", "zero-gradient"}),
        (Vote(), {"blind-score"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_each_diagnostic_fires_on_the_network_made_for_it(network, flags, depths):
    images, labels = images_at(Linear(), depths)
    seen = flagged(probe_of(network, images, labels))
    assert flags <= seen, seen
    # An attack that goes nowhere also fails where it may go anywhere, and loses to noise.
    assert seen - flags <= {
        "far-above-chance", "unconstrained-failure", "noise-beats-gradient", "gradient-fidelity",
        *({"blind-score"} if isinstance(network, Constant) else ()),
    }, seen  # fmt: skip


def test_zero_gradients_are_counted_by_image():
    network = Detached()
    depths = torch.full((40,), 2 * EPSILON)
    images, labels = images_at(network, depths)
    images[:10, 0, 0, 0] = 0.9  # far from 1/2: at the random start too
    images[10:, 0, 0, 0] = 0.1
    right = network(images).argmax(1) == 0
    by_slug = found(probe_of(network, images, labels))
    want = float(right[:10].sum() / right.sum())
    assert 0.05 < want and by_slug["zero-gradient"].evidence == pytest.approx(want)
    assert by_slug["no-gradient"].evidence == pytest.approx(want)
    assert by_slug["unavailable-gradients"].flagged


def test_a_single_image_without_gradient_is_no_flag():
    network = Detached()
    images, labels = images_at(network, torch.full((10,), 2 * EPSILON))
    images[:, 0, 0, 0] = 0.1
    images[0, 0, 0, 0] = 0.9
    by_slug = found(probe_of(network, images, labels))
    assert by_slug["zero-gradient"].evidence > 0.05 and not by_slug["zero-gradient"].flagged


class Band(Linear):
    """The linear gradient, and a decision that turns in a band on the way and turns back."""

    def margin(self, x: Tensor) -> Tensor:
        z = super().margin(x)
        # From images at twice the radius: -2 is there, -1 the corner of the ball.
        way = z.detach() / (EPSILON * self.weight.detach().abs().sum())
        return z + (((way > -1.95) & (way < -1.2)).to(z) - 0.5 - z).detach()


def test_what_the_last_iterate_lost_is_told():
    images, labels = images_at(Linear(), torch.full((40,), 2 * EPSILON))
    lost = found(probe_of(Band(), images, labels))["silent-success"]
    # Every attack ends at the corner, where no image is fooled; a random start is within the band.
    assert lost.flagged and 0.1 < lost.evidence < 0.7
    honest = found(probe_of(Linear(), images, labels))["silent-success"]
    assert not honest.flagged


class OneByOne(Linear):
    """A gradient in one pixel only, the first that may still be moved."""

    def margin(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        moved = (flat.detach() - 0.5) * self.weight.detach().sign() >= -1.0001 * EPSILON
        first = (~moved).int().argmax(1, keepdim=True)
        here = torch.arange(PIXELS, device=flat.device) == first
        return super().margin(torch.where(here, flat, flat.detach()))


def test_an_attack_that_has_not_ended_is_told():
    images, labels = images_at(Linear(), torch.full((40,), 2 * EPSILON))
    rising = found(probe_of(OneByOne(), images, labels))["incomplete-optimisation"]
    assert rising.flagged and rising.evidence > 0.9
    ended = found(probe_of(Linear(), images, labels))["incomplete-optimisation"]
    assert not ended.flagged and ended.evidence == 0


class Torn(Linear):
    """A graph that cannot be walked back."""

    def margin(self, x: Tensor) -> Tensor:
        return super().margin(_Torn.apply(x))


class _Torn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("no derivative of this")


def test_a_backward_that_raises_is_the_first_indicator(depths):
    images, labels = images_at(Linear(), depths)
    taken = take(specimen_of(Torn(), images, labels), THREAT)
    assert taken.failed == {"bptt": "no derivative of this"}


# --- spiking networks ---------------------------------------------------------------------------


class Spiking(nn.Module):
    """Two layers of LIF neurons with diagonal weights, so that every gradient is a product."""

    def __init__(self, steps: int = 1, width: float = 0.5, layers: int = 1) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(2)
        self.steps = steps
        self.scale = nn.ParameterList(
            nn.Parameter(torch.rand(PIXELS, generator=draws) * 2 + 0.2) for _ in range(layers)
        )
        self.read = nn.Parameter(torch.randn(PIXELS, generator=draws))
        self.neurons = nn.ModuleList(
            LIF(leak=0.75, surrogate=Triangle(width=width, amplitude=1 / width))
            for _ in range(layers)
        )

    def spiking_layers(self) -> dict[str, Any]:
        return {f"neurons.{i}": layer for i, layer in enumerate(self.neurons)}

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)[None]
        for scale, layer in zip(self.scale, self.neurons, strict=True):
            x = layer(x * scale, self.steps).spikes
        z = (x.sum(0) * self.read).sum(1) - 50
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def pictures() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.rand(12, *SHAPE), torch.zeros(12, dtype=torch.int64)


def distances(network: Spiking, images: Tensor) -> np.ndarray[Any, Any]:
    """`|U/V - 1|` of the first layer, one step."""
    current = images.flatten(1) * network.scale[0].detach()
    away: np.ndarray[Any, Any] = (current - 1).abs().numpy()
    return away


def test_layers_are_seen_as_they_are(pictures):
    images, labels = pictures
    network = Spiking(width=0.5)
    taken = take(specimen_of(network, images, labels, micro_batch=5), THREAT)
    z = distances(network, images)
    seen = taken.layers["bptt"]["neurons.0"]
    # The margin's gradient reaches every spike, so the product is zero where the surrogate is.
    assert seen.entries == z.size and seen.compact
    assert seen.silent == seen.zero == (z >= 0.5).sum()
    assert seen.inside == (z < 0.5).sum() and seen.near == (z < 0.1).sum()
    r = np.minimum(z / 0.5, 1)
    assert seen.vanishing == pytest.approx((2 * r - r**2).sum(), rel=1e-5)
    assert seen.sharp == pytest.approx((2 / math.pi * np.arctan(math.pi * 4 * z)).sum(), rel=1e-3)
    (finding,) = support(taken)
    assert finding.evidence == pytest.approx((z < 0.5).mean()) and not finding.flagged
    # Nothing fires: the rate does not let anything through.
    fired = images.flatten(1) * network.scale[0].detach() > 1
    assert taken.layers["bptr"]["neurons.0"].zero == int((~fired).sum())


def test_a_surrogate_that_sees_nothing_is_flagged(pictures):
    images, labels = pictures
    network = Spiking(width=0.01)
    taken = take(specimen_of(network, images, labels), THREAT)
    (finding,) = support(taken)
    assert finding.flagged and finding.evidence == (distances(network, images) < 0.01).mean()


@pytest.mark.parametrize("surrogate", [Triangle(0.5), Rectangle(0.3), Arctan(0.1), Sigmoid(0.2)])
def test_the_mass_of_a_surrogate(surrogate):
    z = torch.tensor([0.0, 0.05, 0.2, 0.4, 2.0], dtype=torch.float64)
    grid = torch.linspace(-2000, 2000, 1_000_001, dtype=torch.float64)
    area = surrogate.derivative(grid)
    want = [float(area[grid.abs() <= v].sum() / area.sum()) for v in z]
    np.testing.assert_allclose(mass(surrogate, z).numpy(), want, atol=0.02)


def test_what_comes_through_time(pictures):
    images, labels = pictures
    network = Spiking(steps=2, width=1.0)
    specimen = specimen_of(network, images, labels)
    (finding,) = through_time(specimen, take(specimen, THREAT))
    scale, read = network.scale[0].detach().double(), network.read.detach().double()
    current = images.flatten(1).double() * scale
    first = current
    second = 0.75 * (first - (first > 1).double()) + current

    def g(u: Tensor) -> Tensor:
        return (1 - (u - 1).abs()).clamp_min(0)

    late = read * g(second)
    early = read * g(first)
    through = 0.75 * late  # the reset's spike is held fixed
    whole = (early + through + late) * scale
    share = (through * scale).norm(dim=1) / whole.norm(dim=1)
    assert finding.evidence == pytest.approx(float(share.mean()), rel=1e-5)
    steps = torch.stack([early + through, late])
    cosine = torch.nn.functional.cosine_similarity(steps[0], steps[1], dim=1)
    told = finding.details["cosine of adjacent steps"]["neurons.0"]
    assert told == pytest.approx(float(cosine.mean()), rel=1e-5)


def test_what_comes_through_layers(pictures):
    images, labels = pictures
    network = Spiking(width=2.0, layers=2)
    (finding,) = through_layers(take(specimen_of(network, images, labels), THREAT))
    first = images.flatten(1).double() * network.scale[0].detach()
    second = (first > 1).double() * network.scale[1].detach()
    read = network.read.detach().double().expand(len(images), -1)
    before = read * (1 - (second - 1).abs() / 2).clamp_min(0) / 2 * network.scale[1].detach()
    logs = [float(length.norm(dim=1).log().mean()) for length in (before, read)]
    assert finding.evidence == pytest.approx(logs[1] - logs[0], rel=1e-4)
    assert list(finding.details["log length"].values()) == pytest.approx(logs, rel=1e-4)
    assert not finding.flagged


def test_a_gradient_that_float32_loses_on_its_way(pictures):
    images, labels = pictures
    network = Spiking(width=2.0, layers=2)
    network.scale[1].data *= 1e-25
    with torch.no_grad():
        network.neurons[1].threshold.mul_(1e-25)
        network.read.mul_(1e-25)
    faint = take(specimen_of(network, images, labels), THREAT)
    (finding,) = through_layers(faint)
    assert finding.flagged and finding.severity == "caution"


def test_a_spiking_network_is_probed_by_every_family_and_left_as_it_was(pictures):
    images, labels = pictures
    network = Spiking(steps=3, width=1.0, layers=2).eval()
    before = copy.deepcopy(network.state_dict())
    surrogates = [layer.surrogate for layer in network.neurons]
    by_slug = found(probe_of(network, images, labels))
    assert set(by_slug) == ALWAYS | SPIKING | {"vanishing-through-layers"}
    zero = by_slug["zero-gradient"].details
    assert {text.partition(":")[0] for text in zero["zero"]} == {
        "bptt", "assg", "hart", "bptr", "rga",
    }  # fmt: skip
    assert set(zero["zero by layer"]["rga"]) == {"neurons.0", "neurons.1"}
    assert 0 <= by_slug["attack-does-not-transfer"].details["of the ANN twin"] <= 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(layer.rule is None and not layer.training for layer in network.neurons)
    assert [layer.surrogate for layer in network.neurons] == surrogates


def test_own_surrogate_without_gradient_concerns_attacks_that_use_it(pictures):
    images, labels = pictures
    by_slug = found(probe_of(Spiking(steps=2, width=1e-6), images, labels))
    assert by_slug["zero-gradient"].flagged and by_slug["zero-gradient"].severity == "caution"
    assert not by_slug["no-gradient"].flagged


# --- stochastic networks ------------------------------------------------------------------------


class Noisy(Linear):
    """Every draw adds a linear term of its own; the mean over draws is the linear network."""

    stochastic = True
    noise = 4.0

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        assert keys is not None
        flat = images.double().flatten(1) - 0.5
        drawn = [
            torch.randn(PIXELS, generator=torch.Generator().manual_seed(k % 2**31)).double()
            for k in keys.tolist()
        ]
        z = self.margin(images) + self.noise * (flat * torch.stack(drawn)).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


def test_doubling_the_draws_of_a_noisy_gradient_breaks_more():
    images, labels = images_at(Linear(), torch.linspace(0.02, 1.0, 16) * EPSILON)
    noisy, calm = Noisy(), Noisy()
    calm.noise = 0.0
    (finding,) = doubling(specimen_of(noisy, images, labels), THREAT, 1)
    assert finding.flagged and finding.evidence > 1 / 16
    (finding,) = doubling(specimen_of(calm, images, labels), THREAT, 1)
    assert not finding.flagged and finding.evidence == 0


def test_a_stochastic_network_is_probed_for_its_draws(depths):
    images, labels = images_at(Linear(), depths[20:])
    network = Noisy().eval()
    clean = torch.zeros(len(images), dtype=torch.int64)
    given = (images, labels, range(len(images)), THREAT, 8, 0, clean)
    probed = probe(network, *given, sizes=Sizes(8, 4, 8, 4, 4, 4))
    assert "too-few-draws" in found(probed)
    assert "attack-does-not-transfer" not in found(probed)


def test_draws_are_read_from_the_names_of_estimators():
    assert draws_of(["bptt", "bptt:draws=5,average=logits", "assg:vanishing=0.4,draws=12"]) == 12
    assert draws_of([]) == draws_of(["bptr"]) == 1


@pytest.mark.parametrize("directions", [4, 64])
def test_few_images_do_not_condemn_an_honest_gradient(directions, depths):
    """A gradient that explains a tenth of the loss, as of spikes, is not called another's."""
    torch.manual_seed(0)

    class Spiky(Linear):
        def margin(self, x: Tensor) -> Tensor:
            wave = torch.sin(2e5 * x.detach().double().flatten(1).sum(1))
            return super().margin(x) - 20 + 0.6 * wave

    images, labels = images_at(Linear(), depths)
    for begin in range(0, 36, 4):
        specimen = specimen_of(Spiky(), images[begin : begin + 4], labels[begin : begin + 4])
        finding = fidelity(along(specimen, take(specimen, THREAT), THREAT, directions))
        assert not finding.flagged, finding.details


class Shuffled(nn.Module):
    """A gradient whose pixels are not those of the image, or where `honest` the true one."""

    def __init__(self, seed: int, honest: bool = False) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(28 * 28, generator=draws).double()
        self.seen = self.weight if honest else self.weight[torch.randperm(784, generator=draws)]

    def forward(self, images: Tensor) -> Tensor:
        x = images.double().flatten(1) - 0.5
        wrong = x @ self.seen
        z = x.detach() @ self.weight - 90 + (wrong - wrong.detach())
        return torch.stack([torch.zeros_like(z), z], 1)


def test_a_single_image_settles_nothing(depths):
    images, labels = images_at(Linear(), depths[:3])
    specimen = specimen_of(Linear(), images, labels)
    finding = fidelity(along(specimen, take(specimen, THREAT), THREAT, 64, 32))
    assert finding.flagged and finding.severity == "caution" and "3 images" in finding.sentence


@pytest.mark.parametrize("samples", [4, 8, 64])
def test_a_gradient_of_something_else_is_told_from_few_images_too(samples):
    images = torch.rand(samples, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(samples, dtype=torch.int64)
    for seed in range(10):
        for honest in (False, True):
            network = Shuffled(seed, honest)
            assert (network(images).argmax(1) == 0).all()
            sizes = Sizes.of(samples)
            specimen = specimen_of(network, images, labels, 32).first(sizes.checked)
            taken = take(specimen, THREAT)
            finding = fidelity(along(specimen, taken, THREAT, sizes.directions, sizes.checked))
            assert finding.flagged != honest, (seed, finding.details)


def test_copies_of_an_image_draw_for_themselves(depths):
    images, labels = images_at(Linear(), depths[:3])
    specimen = specimen_of(Linear(), images, labels)
    twice = specimen.copied(2)
    assert twice.ids[:3] == specimen.ids and len(set(twice.ids)) == 6
    assert torch.equal(twice.images, images.repeat(2, 1, 1, 1))
    assert torch.equal(twice.labels, labels.repeat(2))
    signs = twice.rng("signs").uniform(SHAPE, -1.0, 1.0, like=images)
    assert len(signs.unique(dim=0)) == 6


class Gaps(Linear):
    """No number wherever a pixel is not on the 8-bit grid, by the true class alone."""

    def __init__(self, value: float) -> None:
        super().__init__(offset=-20)
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        off = ((255 * images - (255 * images).round()).abs() > 1e-3).flatten(1).any(1)
        broken = torch.zeros_like(logits)
        broken[:, 0] = self.value
        return torch.where(off[:, None], logits + broken, logits)


class Lucky(Linear):
    """Off the grid wrong on one draw of ten, whatever the noise."""

    stochastic = True

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        assert keys is not None
        logits = super().forward(images)
        off = ((255 * images - (255 * images).round()).abs() > 1e-3).flatten(1).any(1)
        content = (1e6 * images.double().flatten(1).sum(1)).long()
        drawn = torch.tensor(
            [derive(k, c) % 10 == 0 for k, c in zip(keys.tolist(), content.tolist(), strict=True)]
        )
        return torch.where((off & drawn)[:, None], logits.flip(1), logits)


def test_a_lucky_draw_of_noise_fools_nobody(depths):
    images, labels = images_at(Linear(), torch.full((8,), 3 * EPSILON))
    images = (255 * images).round() / 255
    network = Lucky()
    specimen = specimen_of(network, images, labels)
    (finding,) = order(specimen, take(specimen, THREAT), THREAT, 30)
    assert finding.details["noise"] == 0 and not finding.flagged


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_a_success_of_the_probe_too(value, depths):
    network = Gaps(value)
    images, labels = images_at(Linear(), depths)
    images = (255 * images).round() / 255
    probed = probe_of(network, images, labels)
    by_slug = found(probed)
    order = by_slug["noise-beats-gradient"].details
    assert order["noise"] == 1 and len(order["fooled by noise"]) > 0
    assert by_slug["unconstrained-failure"].evidence == 0
    assert by_slug["far-above-chance"].evidence == 0


# --- what a measurement is ----------------------------------------------------------------------


def test_it_repeats_and_does_not_depend_on_the_batch(depths):
    images, labels = images_at(Linear(), depths)

    def rows(micro_batch: int, seed: int = 0) -> list[dict[str, Any]]:
        probed = probe_of(Linear(), images, labels, micro_batch, seed=seed)
        return [finding.as_measure() for finding in probed.findings]

    assert rows(8) == rows(8)
    for one, other in zip(rows(8), rows(3), strict=True):
        assert one["slug"] == other["slug"]
        assert one["evidence"] == pytest.approx(other["evidence"], rel=1e-4, abs=1e-6)
    assert rows(8, seed=1) != rows(8)


def test_only_what_is_right_is_looked_at(depths):
    images, labels = images_at(Linear(), depths)
    labels[::2] = 1
    probed = probe_of(Linear(), images, labels)
    some = probe_of(Linear(), images[1::2], labels[1::2])
    one, other = found(probed), found(some)
    assert one["noise-beats-gradient"].details["one step"] == pytest.approx(
        other["noise-beats-gradient"].details["one step"]
    )
    nothing = probe_of(Linear(), images, torch.ones_like(labels))
    assert nothing.findings == ()


def test_every_pass_is_counted(depths):
    class Counting(Linear):
        seen = 0

        def forward(self, images: Tensor) -> Tensor:
            Counting.seen += len(images)
            return super().forward(images)

    images, labels = images_at(Linear(), depths)
    network = Counting()
    # A micro-batch that divides every number of images, so that no pass is padded.
    probed = probe_of(network, images, labels, micro_batch=4)
    clean = len(images)
    assert probed.forward_passes == Counting.seen - clean


def test_it_costs_less_than_a_twentieth_of_a_standard_run(depths):
    """690 gradients and 6,000 queries an image, of 1,000 images."""
    images, labels = images_at(Linear(), torch.full((200,), 2 * EPSILON))
    probed = probe_of(Linear(), images, labels, micro_batch=64, sizes=Sizes.of(1000))
    standard = 1000 * (2 * 690 + 6000)
    assert probed.forward_passes + probed.backward_passes < 0.05 * standard
    assert Sizes.of(10**6) == Sizes.of(1000) and Sizes.of(4) == Sizes.of(64)
    # The gradient check needs its images; the rest gets by on fewer.
    assert Sizes.of(4).wide == Sizes.of(4).checked == 32 and Sizes.of(160).narrow == 10


def test_an_attack_walks_up_a_linear_loss(depths):
    network = Linear()
    images, labels = images_at(network, depths)
    path = climb(specimen_of(network, images, labels), "bptt", THREAT, images, 8)
    assert path.loss.shape == (9, len(images))
    reached = (EPSILON - depths.double()) * float(network.weight.detach().abs().sum())
    torch.testing.assert_close(path.loss[-1].double(), reached, atol=1e-5, rtol=1e-5)
    assert THREAT.admits(path.last, images).all()


def test_l2(depths):
    network = Linear()
    images, labels = images_at(network, depths)
    probed = probe_of(network, images, labels, threat=ThreatModel("L2", "0.2"))
    assert set(found(probed)) == ALWAYS and flagged(probed) == set()
