"""What a library raises is told by the user's own line that called it, and by its function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustsnn
from robustsnn.errors import InputError
from tests.conftest import Cli
from tests.foreign.networks import SnnTorch, forget, images, needs, quiet

HERE = Path(__file__)


def line_of(mark: str) -> int:
    """The number of the line of this file that ends in a mark."""
    lines = HERE.read_text().splitlines()
    return 1 + next(i for i, line in enumerate(lines) if line.endswith(f"# {mark}"))


class Late(nn.Module):
    """Calls its neurons rightly on pictures of 8 bits, and wrongly on what attacks make of them."""

    def __init__(self, neurons: nn.Module) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(784, 10), neurons

    def forward(self, x: Tensor) -> Tensor:
        forget(self)
        grid = 255 * x.detach()
        right = bool((grid - grid.round()).abs().max() < 1e-3)
        state: Any = None
        total = x.new_zeros(1)
        for step in range(3):
            current = self.fc(x.flatten(1))
            if not right and step == 1:
                current = current[:, :7]
            found = self.lif(current, *([] if state is None else [state]))  # called
            spikes, state = found if isinstance(found, tuple) else (found, None)
            total = total + spikes
        return total


@pytest.mark.parametrize("estimator", [None, "rga", "twin"])
@needs("norse")
@quiet
def test_a_neuron_that_is_called_wrongly_is_told_by_the_line_that_calls_it(
    estimator: str | None, tmp_path: Path
) -> None:
    import norse.torch

    torch.manual_seed(0)
    network = Late(norse.torch.LIFCell()).eval()
    with torch.no_grad():
        labels = network(images()).argmax(1)
    given: dict[str, Any] = {} if estimator is None else {"estimator": estimator}
    with pytest.raises(InputError) as caught:
        robustsnn.evaluate(
            network, (images(), labels), attack="pgd:steps=3", output=tmp_path / "run", **given
        )
    said = str(caught.value)
    assert said.startswith("the network Late failed ")
    where = f"{HERE}, line {line_of('called')}, in norse.torch.functional.lif.lif_feed_forward_step"
    assert where in said and "\n" not in said


class Refusing(nn.Module):
    """One layer of neurons whose spike function refuses to be asked for a slope under attack."""

    attacked = False

    def __init__(self) -> None:
        super().__init__()
        import snntorch

        self.fc, self.lif = nn.Linear(784, 10), snntorch.Leaky(beta=0.9, spike_grad=self.spike)

    @staticmethod
    def spike(x: Tensor) -> Tensor:
        # A rule asks for the slope of a membrane that it has made a leaf.
        if Refusing.attacked and x.requires_grad and x.is_leaf:
            raise LookupError("no slope")  # raised
        slope = torch.sigmoid(5 * x)
        return (x > 0).to(x.dtype) - slope.detach() + slope

    def forward(self, x: Tensor) -> Tensor:
        grid = 255 * x.detach()
        Refusing.attacked = bool((grid - grid.round()).abs().max() > 1e-3)
        membrane = self.lif.reset_mem()
        for _ in range(3):
            _, membrane = self.lif(self.fc(x.flatten(1)), membrane)
        return membrane  # type: ignore[no-any-return]


@needs("snntorch")
@quiet
def test_a_spike_function_that_fails_where_a_rule_asks_it() -> None:
    torch.manual_seed(0)
    network = Refusing().eval()
    with torch.no_grad():
        labels = network(images()).argmax(1)
    with pytest.raises(InputError) as caught:
        robustsnn.evaluate(
            network, (images(), labels), attack="pgd:steps=3", estimator="bptt:reset=attached"
        )
    assert f"{HERE}, line {line_of('raised')}): LookupError: no slope" in str(caught.value)


@needs("snntorch")
@quiet
def test_images_of_another_shape_are_told_as_for_an_ann() -> None:
    network = SnnTorch().eval()
    with pytest.raises(InputError) as caught:
        robustsnn.evaluate(network, (images().repeat(1, 3, 1, 1), torch.arange(8)), attack="fgsm")
    said = str(caught.value)
    assert "the network does not take images [batch, 3, 28, 28]" in said and "networks.py" in said


FACTORY = """
import snntorch
from torch import nn

def build():
    neurons = snntorch.Leaky(beta=0.9, reset_mechanism="nothing")
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), neurons)
"""


@needs("snntorch")
def test_a_factory_that_calls_a_library_wrongly(tmp_path: Path, warm: Cli) -> None:
    (tmp_path / "wrong_nets.py").write_text(FACTORY)
    done = warm("evaluate", "wrong_nets:build", "--data", "fashion-mnist", "--samples", "4")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert "wrong_nets.py, line 6, in snntorch._neurons.neurons." in said
    assert len(done.stderr.strip().splitlines()) == 1
