import pytest
import torch
from torch import nn

from robustsnn.errors import InputError
from robustsnn.gradients import Backprop, Bptt, make_estimator
from robustsnn.snn.network import Network, NetworkConfig
from robustsnn.snn.surrogate import SURROGATES, make_surrogate
from robustsnn.victim import Victim


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
        ("backprop:x", "no settings"),
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
