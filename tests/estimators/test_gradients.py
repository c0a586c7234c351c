import pytest
import torch
from torch import nn

from robustsnn.adversary.victim import Victim
from robustsnn.errors import InputError
from robustsnn.estimators.backprop import Backprop
from robustsnn.estimators.bptt import Bptt
from robustsnn.estimators.make import make_estimator
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.neuron import LIF, FixedDropout
from robustsnn.snn.surrogate import SURROGATES, make_surrogate


def network(kind="snn") -> Network:
    torch.manual_seed(0)
    made = Network(
        NetworkConfig(
            architecture="vgg5", kind=kind, classes=3, image=(1, 8, 8), widths=(4, 4, 4),
            classifier=(8, 8), mean=(0.5,), std=(0.25,), time_steps=4 if kind == "snn" else 1,
        )
    )  # fmt: skip
    for layer in made.classifier.modules():
        if isinstance(layer, nn.Linear):
            # The published N(0, 0.01) leaves the read-out of so small a network silent.
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for spiking in made.spiking_layers().values():
        spiking.threshold.data.fill_(0.3)
    return made.double()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bptt", "bptt"),
        ("bptt:arctan:width=0.5", "bptt:arctan(width=0.5,amplitude=1)"),
        ("bptt:triangle:width=0.5,amplitude=2", "bptt:triangle(width=0.5,amplitude=2)"),
        ("bptt:fast-sigmoid", "bptt:fast-sigmoid(width=0.25,amplitude=1)"),
        ("bptt:rectangle(width=2)", "bptt:rectangle(width=2,amplitude=1)"),
        ("bptt:reset=attached", "bptt:reset=attached"),
        ("bptt:cut=1,reset=detached", "bptt:reset=detached,cut=1"),
        ("bptt:arctan:width=0.5,cut=2", "bptt:arctan(width=0.5,amplitude=1):cut=2"),
        ("bptr", "bptr"),
        ("bptr:leak=0.1", "bptr:leak=0.1"),
        ("rga", "rga"),
        ("rga:gamma=0.3", "rga:gamma=0.3"),
        ("hart", "hart:width=0.5"),
        ("pdsg", "pdsg"),
        ("assg", "assg:vanishing=0.425"),
        ("assg:vanishing=0.45", "assg:vanishing=0.45"),
        ("twin", "twin"),
        ("spsa", "spsa:pairs=64,sigma=2/255"),
        ("spsa:pairs=8,sigma=0.01", "spsa:pairs=8,sigma=0.01"),
        ("bptt:draws=5", "bptt:draws=5,average=gradients"),
        ("bptt:arctan:draws=5", "bptt:arctan(width=0.31831,amplitude=1):draws=5,average=gradients"),
        ("assg:draws=2,average=logits", "assg:vanishing=0.425,draws=2,average=logits"),
    ],
)
def test_names_on_a_spiking_network(text, name):
    made = make_estimator(text, network())
    assert made.name == name
    assert make_estimator(made.name, network()).name == name


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_by_name(surrogate):
    assert make_estimator(f"bptt:{surrogate}", network()) == Bptt(make_surrogate(surrogate))


@pytest.mark.parametrize("plain", [network("ann"), nn.Linear(2, 2)])
def test_without_spikes_bptt_is_backprop(plain):
    assert make_estimator("bptt", plain) == Backprop()
    assert make_estimator("backprop", plain).name == "backprop"
    with pytest.raises(InputError, match="needs spiking layers"):
        make_estimator("bptt:arctan", plain)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bppt", "Did you mean 'bptt'"),
        ("bptt:arctangent", "Did you mean 'arctan'"),
        ("bptt:arctan:widht=2", "Did you mean 'width'"),
        ("bptt:arctan:width=two", "must be a number"),
        ("bptt:arctan:width=-1", "positive"),
        ("bptt:arctan(width=1", "malformed"),
        ("backprop", "use bptt"),
        ("backprop:x=1", "no settings"),
        ("backprop:x", "not a setting"),
        ("rga:arctan", "not a setting"),
        ("rga:beta=1", "beta must be above 1"),
        ("bptr:leak=2", r"leak must lie in \[0, 1\]"),
        ("hart:width=0", "width must be above 0"),
        ("hart:widht=1", "Did you mean 'width'"),
        ("assg:vanishing=0.5", "between 0 and 0.5"),
        ("bptt:reset=half", "'attached' or 'detached'"),
        ("bptt:cut=0", "at least 1 time step"),
        ("bptt:width=2", "no field of bptt|Did you mean"),
        ("bptt:cut=1,cut=2", "given twice"),
        ("spsa:pairs=0", "pairs must be at least 1"),
        ("spsa:draws=4", "draws anew"),
        ("bptt:draws=0", "draws must be at least 1"),
        ("bptt:draws=4,average=votes", "'gradients' or 'logits'"),
        ("bptt:average=logits", "needs draws too"),
    ],
)
def test_bad_estimators_are_refused_in_one_line(text, says):
    with pytest.raises(InputError, match=says) as caught:
        make_estimator(text, network())
    assert "\n" not in str(caught.value)


def test_a_surrogate_is_applied_and_taken_back():
    made = network()
    own = [layer.surrogate for layer in made.spiking_layers().values()]
    other = make_surrogate("arctan")
    with Bptt(other).applied(made):
        assert {layer.surrogate for layer in made.spiking_layers().values()} == {other}
    assert [layer.surrogate for layer in made.spiking_layers().values()] == own
    with pytest.raises(RuntimeError), Bptt(other).applied(made):
        raise RuntimeError
    assert [layer.surrogate for layer in made.spiking_layers().values()] == own


def test_the_gradient_is_that_of_a_network_with_the_surrogate_built_in():
    made, reference = network(), network()
    other = make_surrogate("sigmoid", width=0.7)
    for layer in reference.spiking_layers().values():
        layer.surrogate = other
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    x = images.clone().requires_grad_()
    loss = nn.functional.cross_entropy(reference.eval()(x), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, x)
    found = Victim(made, Bptt(other), range(4)).gradient(images, labels).gradient
    torch.testing.assert_close(found, expected)
    own = Victim(made, Bptt(), range(4)).gradient(images, labels).gradient
    assert not torch.allclose(own, found)


def test_logits_do_not_depend_on_the_estimator():
    made = network()
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    expected = Victim(made, Bptt(), range(4)).logits(images)
    assert len(expected.unique()) > 4
    for name in SURROGATES:
        assert torch.equal(
            Victim(made, Bptt(make_surrogate(name)), range(4)).logits(images), expected
        )


def test_the_twin_is_the_network_with_staircases_for_neurons():
    made = network()
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    x = images.clone().requires_grad_()
    here = (x - 0.5) / 0.25
    for module in (*made.features, *made.classifier):
        if isinstance(module, LIF):
            ramp = (here / module.threshold).clamp(0, 1)
            stairs = torch.floor(8 * ramp + 0.5) / 8
            here = ramp + (stairs - ramp).detach()
        elif not isinstance(module, FixedDropout):
            here = module(here)
    # The sum over time of a static input is a multiple.
    loss = nn.functional.cross_entropy(4 * here, labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, x)
    victim = Victim(made, make_estimator("twin", made), range(4))
    found = victim.gradient(images, labels)
    torch.testing.assert_close(found.gradient, expected)
    assert bool((expected != 0).any())
    # Its own logits would be a forecast of the network's; they must not be taken for them.
    assert torch.equal(found.logits, made.eval()(images))
    assert victim.forward_passes.tolist() == [2] * 4
    assert victim.backward_passes.tolist() == [1] * 4
