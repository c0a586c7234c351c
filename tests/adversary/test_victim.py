import gc
import resource
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from robustsnn.adversary.catalogue import load_attack
from robustsnn.adversary.losses import LOSSES, TARGETED
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.randomness import Rng, derive
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.bptt import Bptt
from robustsnn.estimators.make import make_estimator
from robustsnn.models.scoring import margin, score
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.surrogate import make_surrogate

SHAPE = (1, 8, 8)


class Recorder(nn.Module):
    """A linear network that writes down what it was given, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 4, dtype=torch.float64)
        self.dropout = nn.Dropout(0.9)
        self.batches: list[int] = []
        self.modes: list[bool] = []
        self.frozen: list[bool] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        self.modes.append(self.training or self.dropout.training)
        self.frozen.append(not any(p.requires_grad for p in self.parameters()))
        logits: torch.Tensor = self.linear(self.dropout(images).flatten(1))
        return logits


class Stochastic(nn.Module):
    """Logits that are the keys it was given."""

    stochastic = True
    classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        self.seen += keys.tolist()
        own = images.flatten(1).sum(1)
        return torch.stack([own, keys.double()], dim=1)


def network(kind="snn", encoding="direct", dtype=torch.float64) -> Network:
    torch.manual_seed(2)
    poisson = encoding == "poisson"
    config = NetworkConfig(
        architecture="vgg5", kind=kind, classes=4, image=SHAPE, widths=(4, 6, 6),
        classifier=(12, 10), mean=(0.5,), std=(0.5 if poisson else 0.25,), encoding=encoding,
        time_steps=4 if kind == "snn" else 1,
    )  # fmt: skip
    made = Network(config)
    for layer in made.classifier.modules():
        if isinstance(layer, nn.Linear):
            # The published N(0, 0.01) leaves the read-out of so small a network silent.
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for spiking in made.spiking_layers().values():
        spiking.threshold.data.fill_(0.3)
    return made.to(dtype)


def batch(count=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((count, *SHAPE), generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.arange(count) % 4


def test_every_forward_has_one_shape_and_every_image_is_counted_once():
    recorder = Recorder()
    images, labels = batch(10)
    victim = Victim(recorder, Backprop(), range(10), micro_batch=4)
    victim.logits(images)
    victim.gradient(images, labels)
    victim.select([7]).logits(images[[7]])
    assert set(recorder.batches) == {4}
    assert len(recorder.batches) == 3 + 3 + 1
    assert victim.forward_passes.tolist() == [2] * 7 + [3] + [2] * 2
    assert victim.backward_passes.tolist() == [1] * 10


def test_logits_and_gradients_are_those_of_the_network():
    plain = Recorder().eval()
    images, labels = batch(6)
    victim = Victim(plain, Backprop(), range(6), micro_batch=4)
    weight = plain.linear.weight.detach()
    expected = images.flatten(1) @ weight.T + plain.linear.bias.detach()
    torch.testing.assert_close(victim.logits(images), expected)
    found = victim.gradient(images, labels)
    torch.testing.assert_close(found.logits, expected)
    # Cross-entropy of a linear network: W^T (softmax - onehot), of each image alone.
    error = expected.softmax(1) - torch.eye(4, dtype=torch.float64)[labels]
    torch.testing.assert_close(found.gradient.flatten(1), error @ weight)
    torch.testing.assert_close(
        found.loss, -expected.log_softmax(1).gather(1, labels[:, None])[:, 0]
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_a_gradient_is_the_image_s_own(loss, kind):
    made = network(kind)
    images, labels = batch(5)
    victim = Victim(made, make_estimator("bptt", made), range(5), micro_batch=8)
    together = victim.gradient(images, labels, loss)
    for i in range(5):
        alone = victim.select([i]).gradient(images[[i]], labels[[i]], loss)
        torch.testing.assert_close(alone.gradient[0], together.gradient[i])
    torch.testing.assert_close(together.loss, LOSSES[loss](together.logits, labels))


def test_the_network_is_evaluated_frozen_and_given_back_as_it_was():
    recorder = Recorder().train()
    recorder.dropout.eval()
    recorder.linear.bias.requires_grad_(False)
    images, labels = batch()
    victim = Victim(recorder, Backprop(), range(5))
    victim.logits(images)
    victim.gradient(images, labels)
    victim.network(images.clone().requires_grad_()).sum().backward()
    assert recorder.modes == [False] * 3
    assert recorder.frozen == [True] * 3
    assert (recorder.training, recorder.dropout.training) == (True, False)
    assert (recorder.linear.weight.requires_grad, recorder.linear.bias.requires_grad) == (
        True,
        False,
    )
    assert recorder.linear.weight.grad is None


def test_a_failing_network_is_given_back_as_it_was_too():
    made = network()
    own = [layer.surrogate for layer in made.spiking_layers().values()]
    victim = Victim(made, Bptt(make_surrogate("arctan")), range(2))
    with pytest.raises(InputError, match="takes images"):
        victim.logits(torch.zeros(2, 1, 5, 5, dtype=torch.float64))
    assert made.training
    assert all(p.requires_grad for p in made.parameters())
    assert [layer.surrogate for layer in made.spiking_layers().values()] == own


def test_gradients_work_where_autograd_is_off():
    images, labels = batch()
    victim = Victim(network(), Bptt(), range(5))
    expected = victim.gradient(images, labels).gradient
    with torch.no_grad():
        assert torch.equal(victim.gradient(images, labels).gradient, expected)
    with torch.inference_mode():
        assert torch.equal(victim.gradient(images, labels).gradient, expected)


def test_zero_gradients_are_counted_per_image():
    class Dead(nn.Module):
        def forward(self, images):
            own = images.flatten(1).sum(1)
            # The gradient dies for dark images only.
            return torch.stack([own.relu(), 0 * own - 1], dim=1)

    images = torch.stack([-torch.ones(SHAPE), torch.ones(SHAPE), -torch.ones(SHAPE)])
    victim = Victim(Dead(), Backprop(), range(3))
    found = victim.gradient(images, torch.zeros(3, dtype=torch.int64), "margin")
    assert victim.zero_grad.tolist() == [1, 0, 1]
    assert not found.gradient[0].any()
    victim.select([2]).gradient(images[[2]], torch.tensor([0]), "margin")
    assert victim.zero_grad.tolist() == [1, 0, 2]


@pytest.mark.parametrize("cut", [lambda x: torch.zeros(len(x), 2), lambda x: x.detach().flatten(1)])
def test_a_cut_graph_counts_as_zero_gradients(cut):
    class Cut(nn.Module):
        def forward(self, images):
            return cut(images)

    victim = Victim(Cut(), Backprop(), range(3))
    found = victim.gradient(torch.rand(3, 1, 1, 2), torch.zeros(3, dtype=torch.int64))
    assert not found.gradient.any()
    assert victim.zero_grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("exposed", [False, True])
def test_nonfinite_gradients_are_counted_and_replaced(exposed):
    class Root(nn.Module):
        def forward(self, images):
            own = images.flatten(1).sqrt().sum(1)
            return torch.stack([own, -own], dim=1)

    images = torch.full((3, 1, 2, 2), 0.25)
    images[1, 0, 0, 0] = 0.0
    victim = Victim(Root(), Backprop(), range(3))
    labels = torch.zeros(3, dtype=torch.int64)
    if exposed:
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES["margin"](victim.network(x), labels).sum(), x)
    else:
        gradient = victim.gradient(images, labels, "margin").gradient
    assert victim.nonfinite_grad.tolist() == [0, 1, 0]
    assert victim.backward_passes.tolist() == [1, 1, 1]
    assert bool(gradient.isfinite().all())
    assert float(gradient[1, 0, 0, 0]) == 0
    assert float(gradient[1, 0, 1, 1]) == pytest.approx(-2.0)


def test_keys_are_fresh_at_each_pass_and_belong_to_the_image():
    made = Stochastic()
    victim = Victim(made, Backprop(), [4, 9, 2], micro_batch=2, seed=1)
    images = torch.rand(3, 1, 2, 2)
    first, second = victim.logits(images)[:, 1], victim.logits(images)[:, 1]
    assert len(set(first.tolist() + second.tolist())) == 6
    # Another batch, order and micro-batch: the same keys at the same passes.
    again = Victim(Stochastic(), Backprop(), [2, 4], micro_batch=8, seed=1)
    assert again.logits(images[[2, 0]])[:, 1].tolist() == first[[2, 0]].tolist()
    assert again.select([1]).logits(images[[0]])[:, 1].tolist() == second[[0]].tolist()
    other = Victim(Stochastic(), Backprop(), [2, 4], micro_batch=8, seed=2)
    assert not set(other.logits(images[[2, 0]])[:, 1].tolist()) & set(first.tolist())


def test_poisson_logits_change_with_the_pass_and_repeat_with_the_victim():
    made = network(encoding="poisson")
    images, labels = batch()

    def passes():
        victim = Victim(made, Bptt(), range(5), micro_batch=2)
        assert victim.stochastic
        return victim.logits(images), victim.gradient(images, labels)

    logits, found = passes()
    logits2, found2 = passes()
    assert not torch.equal(logits, found.logits)
    assert torch.equal(logits, logits2)
    assert torch.equal(found.gradient, found2.gradient)
    assert found.gradient.any()


def test_the_exposed_network_equals_the_victim():
    made = network().train()
    images, labels = batch()
    victim = Victim(made, Bptt(make_surrogate("arctan")), range(5), micro_batch=2)
    expected = victim.gradient(images, labels)
    x = images.clone().requires_grad_()
    exposed = victim.network
    logits = exposed.eval()(x)
    (gradient,) = torch.autograd.grad(LOSSES["cross-entropy"](logits, labels).sum(), x)
    torch.testing.assert_close(logits.detach(), expected.logits)
    torch.testing.assert_close(gradient, expected.gradient)
    assert made.training
    assert next(exposed.parameters()).device == torch.device("cpu")
    assert victim.forward_passes.tolist() == [2] * 5
    assert victim.backward_passes.tolist() == [2] * 5


def test_passes_of_a_foreign_batch_are_spread_and_rounded_up():
    victim = Victim(Recorder(), Backprop(), range(4))
    images, _ = batch(6)
    victim.network(images)
    assert victim.forward_passes.tolist() == [2] * 4
    alone = victim.select([3])
    alone.network(images)
    assert victim.forward_passes.tolist() == [2, 2, 2, 8]


def test_selections_share_the_ledger_and_carry_the_substitute():
    images, _ = batch(4)
    substitute = Victim(Recorder(), Backprop(), [5, 6, 7, 8])
    victim = Victim(Recorder(), Backprop(), [5, 6, 7, 8], substitute=substitute)
    sub = victim.select(torch.tensor([False, True, True, False])).select([1])
    assert sub.image_ids == (7,)
    assert sub.substitute is not None
    sub.substitute.logits(images[[2]])
    sub.logits(images[[2]])
    sub.logits(images[[2]])
    assert victim.forward_passes.tolist() == [0, 0, 2, 0]
    assert substitute.forward_passes.tolist() == [0, 0, 1, 0]


def test_an_empty_selection():
    images, labels = batch(2)
    victim = Victim(network(), Bptt(), range(2), micro_batch=2)
    none = victim.select([])
    found = none.gradient(images[:0], labels[:0])
    assert found.gradient.shape == (0, *SHAPE)
    assert found.logits.shape == (0, 4)
    assert victim.forward_passes.tolist() == [0, 0]


def test_the_wrong_number_of_images_is_a_mistake():
    victim = Victim(Recorder(), Backprop(), range(3))
    with pytest.raises(ValueError, match="use select"):
        victim.logits(batch(2)[0])


def test_unknown_loss():
    images, labels = batch(2)
    with pytest.raises(InputError, match="no loss named"):
        Victim(Recorder(), Backprop(), range(2)).gradient(images, labels, "hinge")


def test_nothing_keeps_the_images_alive():
    images, labels = batch(3)
    victim = Victim(network(), Bptt(), range(3))
    found = victim.gradient(images, labels)
    exposed = victim.network
    x = images.clone().requires_grad_()
    exposed(x).sum().backward()
    references = [weakref.ref(t) for t in (found.gradient, found.logits, x)]
    del found, x
    gc.collect()
    assert [r() for r in references] == [None] * 3


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read there")
@pytest.mark.parametrize("kind", ["ann", "snn"])
def test_memory_does_not_grow_over_200_attack_batches(kind):
    made = network(kind, dtype=torch.float32)
    images, labels = batch(16, torch.float32)
    attack = load_attack("pgd:steps=2,early_exit=no")

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def attacked(first: int, batches: int) -> None:
        for start in range(first, first + batches):
            ids = range(16 * start, 16 * start + 16)
            victim = Victim(made, make_estimator("bptt", made), ids, micro_batch=16)
            attack(victim, images, labels, ThreatModel("Linf", "8/255"), Rng(0, ids))

    attacked(0, 20)
    before = resident()
    attacked(20, 200)
    # One graph of this network kept per batch would be some 100 MB by now.
    assert resident() - before < 20e6


def test_a_short_batch_may_be_padded_to_a_power_of_two_only():
    recorder = Recorder()
    images, labels = batch(11)
    victim = Victim(recorder, Backprop(), range(11), micro_batch=8, shrink=True)
    expected = Victim(recorder, Backprop(), range(11), micro_batch=8).gradient(images, labels)
    recorder.batches.clear()
    found = victim.gradient(images, labels)
    torch.testing.assert_close(found.gradient, expected.gradient)
    victim.select([5]).logits(images[[5]])
    # Never to fewer than four, which other kernels compute.
    assert recorder.batches == [8, 4, 4]


def test_a_pass_of_one_image_has_the_shape_of_four_for_attack_and_verdict_alike():
    recorder = Recorder().eval()
    images, labels = batch(3)
    alone = Victim(recorder, Backprop(), range(3), micro_batch=1)
    found = alone.gradient(images, labels)
    logits = score(recorder, images, range(3), 1)
    assert set(recorder.batches) == {4} and len(recorder.batches) == 6
    together = Victim(recorder, Backprop(), range(3), micro_batch=8).gradient(images, labels)
    torch.testing.assert_close(found.gradient, together.gradient)
    torch.testing.assert_close(logits, together.logits)
    assert alone.forward_passes.tolist() == alone.backward_passes.tolist() == [1] * 3


def test_the_start_goes_with_its_images():
    images, _ = batch(6)
    victim = Victim(Recorder(), Backprop(), range(6), start=images)
    assert Victim(Recorder(), Backprop(), range(6)).start is None
    assert torch.equal(victim.select([4, 1]).start, images[[4, 1]])
    assert torch.equal(victim.select([4, 1]).select([1]).start, images[[1]])
    with pytest.raises(ValueError, match="another number"):
        Victim(Recorder(), Backprop(), range(6), start=images[:2])


@pytest.mark.parametrize("loss", TARGETED)
def test_targeted_losses_follow_their_own_target(loss):
    recorder = Recorder()
    images, labels = batch(6)
    targets = (labels + 1) % 4
    found = Victim(recorder, Backprop(), range(6), micro_batch=4).gradient(
        images, labels, loss, targets
    )
    x = images.clone().requires_grad_()
    z = recorder.linear(x.flatten(1))
    top = z.sort(1, descending=True).values
    rows = torch.arange(6)
    values = z[rows, targets] - z[rows, labels]
    if loss == "targeted-dlr":
        values = values / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
    torch.testing.assert_close(found.loss, values)
    torch.testing.assert_close(found.gradient, torch.autograd.grad(values.sum(), x)[0])
    with pytest.raises(InputError, match="targeted loss"):
        Victim(recorder, Backprop(), range(6)).gradient(images, labels, "margin", targets)


class Noisy(nn.Module):
    """Logits that depend on a draw in a way that does not average out."""

    stochastic = True
    classes = 3

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, 3, dtype=torch.float64))

    def forward(self, images: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        noise = torch.stack(
            [torch.randn(64, generator=torch.Generator().manual_seed(int(k) % 2**31)) for k in keys]
        )
        return torch.tanh(images.flatten(1) * noise.double()) @ self.weight


@pytest.mark.parametrize("average", ["gradients", "logits"])
@pytest.mark.parametrize("micro_batch", [3, 8, 100])
def test_expectation_over_draws(average, micro_batch):
    network = Noisy()
    images, labels = batch(5)
    labels = labels % 3
    estimator = make_estimator(f"backprop:draws=6,average={average}", network)
    victim = Victim(network, estimator, range(5), micro_batch=micro_batch, seed=3)
    found = victim.gradient(images, labels)
    assert victim.forward_passes.tolist() == victim.backward_passes.tolist() == [6] * 5
    # Each image's draws are keyed by seed, image and pass count, whatever the batch.
    for i in range(5):
        keys = torch.tensor([derive(3, "key", i, n, 0) for n in range(6)])
        x = images[[i]].clone().requires_grad_()
        logits = network(x.expand(6, -1, -1, -1), keys)
        one = torch.nn.functional.cross_entropy
        if average == "logits":
            value = one(logits.mean(0, keepdim=True), labels[[i]])
        else:
            value = one(logits, labels[[i]].expand(6))
        torch.testing.assert_close(found.gradient[[i]], torch.autograd.grad(value, x)[0])
        torch.testing.assert_close(found.logits[i], logits.mean(0))
        mean = one(logits.mean(0, keepdim=True), labels[[i]])
        torch.testing.assert_close(found.loss[i], mean)


def test_simultaneous_perturbation_is_its_formula_and_needs_no_derivative():
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Recorder()
            self.inputs: list[torch.Tensor] = []

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.inputs.append(images.clone())
            logits: torch.Tensor = self.inner(images).round(decimals=1).detach()
            return logits

    network = Watched().eval()
    images, labels = batch(4)
    estimator = make_estimator("spsa:pairs=4,sigma=0.3", network)
    victim = Victim(network, estimator, range(4), micro_batch=4)
    found = victim.gradient(images, labels, "margin")
    assert victim.forward_passes.tolist() == [9] * 4
    assert victim.backward_passes.tolist() == [0] * 4
    expected = torch.zeros_like(images)
    clean, *probes = network.inputs
    assert torch.equal(clean, images)
    for above, below in zip(probes[::2], probes[1::2], strict=True):
        torch.testing.assert_close(above + below, 2 * images)
        signs = (above - images) / 0.3
        torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
        slope = margin(network(above), labels) - margin(network(below), labels)
        expected += slope.reshape(-1, 1, 1, 1) * signs / (2 * 0.3 * 4)
    torch.testing.assert_close(found.gradient, expected)
    again = victim.gradient(images, labels, "margin").gradient
    assert not torch.equal(again, found.gradient)
    # The same whatever the batch, drawn by image and pass count.
    alone = Victim(network, estimator, [2], micro_batch=8)
    torch.testing.assert_close(
        alone.gradient(images[[2]], labels[[2]], "margin").gradient, found.gradient[[2]]
    )


def test_simultaneous_perturbation_tends_to_the_gradient():
    recorder = Recorder()
    images, labels = batch(4)
    exact = Victim(recorder, Backprop(), range(4)).gradient(images, labels, "margin").gradient
    estimator = make_estimator("spsa:pairs=2000,sigma=0.001", recorder)
    found = Victim(recorder, estimator, range(4)).gradient(images, labels, "margin").gradient
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), exact.flatten(1))
    # For N random directions in d dimensions it is about sqrt(N / (N + d)).
    assert float(cosine.min()) > 0.95


def test_the_exposed_network_differentiates_by_the_estimator_and_forwards_as_itself():
    made = network()
    images, labels = batch(5)
    for text in ("bptt:arctan:width=0.3", "rga", "twin", "hart:width=1"):
        estimator = make_estimator(text, made)
        victim = Victim(made, estimator, range(5), micro_batch=4)
        x = images.clone().requires_grad_()
        logits = victim.network(x)
        torch.testing.assert_close(logits.detach(), made.eval()(images))
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
        expected = Victim(made, estimator, range(5), micro_batch=4).gradient(images, labels)
        if text == "twin":
            # The loss is taken at the network's own logits, which the library sees.
            assert bool((x.grad.flatten(1) != 0).any(1).all())
        else:
            torch.testing.assert_close(x.grad, expected.gradient)
