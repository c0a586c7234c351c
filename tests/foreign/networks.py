"""Small networks as tutorials of other libraries write them, trained for seconds."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustsnn.data.datasets import load_dataset

CHANNELS, SIDE = 4, 12


def needs(package: str) -> pytest.MarkDecorator:
    """Skip where a library is not installed, and say so."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed here")


def older_spikingjelly() -> bool:
    """Whether SpikingJelly is the release before 2.0."""
    import importlib.metadata

    return importlib.metadata.version("spikingjelly").startswith("0.")


def quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without the warnings that libraries give when they are imported."""

    @functools.wraps(function)
    def silent(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return silent


def images(count: int = 8) -> Tensor:
    """Clean images `[count, 1, 28, 28]` of the sample that ships."""
    return load_dataset("fashion-mnist", None, samples=count).tensor()


def lively(network: nn.Module, factor: float) -> nn.Module:
    """The network with larger weights, so that untrained neurons fire."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= factor
    return network


def trained(network: nn.Module, steps: int = 40) -> nn.Module:
    """The network after a few steps of Adam, in evaluation mode; the last graph is still held."""
    data = load_dataset("fashion-mnist", None)
    x, y = data.tensor(), data.targets()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(steps):
        some = torch.randint(500, len(x), (24,), generator=generator)
        forget(network)
        loss = nn.functional.cross_entropy(network(x[some]), y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def forget(network: nn.Module) -> None:
    """Reset a network as the documentation of its library says."""
    for module in network.modules():
        package = type(module).__module__.split(".")[0]
        if package == "spikingjelly" and hasattr(module, "reset"):
            module.reset()  # type: ignore[operator]
        if package == "sinabs" and hasattr(module, "reset_states"):
            module.reset_states()  # type: ignore[operator]
        if package == "snntorch":
            # `utils.reset` by hand, for this network alone.
            for name in ("mem", "syn"):
                if name in module._buffers:
                    setattr(module, name, torch.zeros(0))


class SpikingJelly(nn.Module):
    """One step at a time or the whole sequence, with BatchNorm or without."""

    def __init__(
        self,
        mode: str = "m",
        node: str = "LIFNode",
        steps: int = 4,
        norm: bool = True,
        inside: bool = False,
        kind: type | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        settings = {"surrogate_function": surrogate.ATan(), **settings}
        make = kind or getattr(neuron, node)
        self.steps, self.mode, self.inside = steps, mode, inside
        self.net = nn.Sequential(
            layer.Conv2d(1, CHANNELS, 5, bias=False),
            *([layer.BatchNorm2d(CHANNELS)] if norm else []),
            make(**settings),
            layer.AvgPool2d(2),
            layer.Flatten(),
            layer.Linear(CHANNELS * SIDE * SIDE, 20, bias=False),
            make(**settings),
            layer.Linear(20, 10, bias=False),
        )
        functional.set_step_mode(self, mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.inside:
            from spikingjelly.activation_based import functional

            functional.reset_net(self)
        if self.mode == "m":
            out: Tensor = self.net(x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)).mean(0)
            return out
        return torch.stack([self.net(x) for _ in range(self.steps)]).mean(0)


class SnnTorch(nn.Module):
    """State in `forward` or hidden; read out by spikes or by membranes."""

    def __init__(
        self,
        hidden: bool = False,
        read: str = "spikes",
        steps: int = 5,
        reset: bool = True,
        kind: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        import snntorch
        from snntorch import surrogate

        settings = {"beta": 0.9, "spike_grad": surrogate.fast_sigmoid(5), **settings}
        make = kind or snntorch.Leaky
        self.steps, self.hidden, self.read, self.resets = steps, hidden, read, reset
        if hidden:
            settings["init_hidden"] = True
        self.conv = nn.Conv2d(1, CHANNELS, 5)
        self.lif1 = make(**settings)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(CHANNELS * SIDE * SIDE, 10)
        self.lif2 = make(**settings, **({"output": True} if hidden else {}))

    def forward(self, x: Tensor) -> Tensor:
        from snntorch import utils

        one: tuple[Any, ...] = ()
        two: tuple[Any, ...] = ()
        if self.hidden and self.resets:
            utils.reset(self)
        elif not self.hidden:
            one, two = (_states(lif.reset_mem()) for lif in (self.lif1, self.lif2))
        found = []
        for _ in range(self.steps):
            if self.hidden:
                spikes = self.lif1(self.conv(x))
                last, *_, membrane = self.lif2(self.fc(self.pool(spikes).flatten(1)))
            else:
                spikes, *one_ = self.lif1(self.conv(x), *one)
                last, *two_ = self.lif2(self.fc(self.pool(spikes).flatten(1)), *two)
                one, two, membrane = tuple(one_), tuple(two_), two_[-1]
            found.append(last if self.read == "spikes" else membrane)
        return torch.stack(found).sum(0)


def _states(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


class Norse(nn.Module):
    """Cells in a loop, or layers over the whole sequence, read out by a leaky integrator."""

    def __init__(
        self,
        layers: bool = False,
        cell: str = "LIF",
        steps: int = 10,
        parameters: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        import norse.torch as norse

        values = {
            name: value if isinstance(value, str) or callable(value) else torch.as_tensor(value)
            for name, value in settings.items()
        }
        p = (parameters or norse.LIFParameters)(**values)
        self.steps, self.layers = steps, layers
        make = getattr(norse, cell if layers else f"{cell}Cell")
        self.conv = nn.Conv2d(1, CHANNELS, 5)
        self.one, self.two, self.out = make(p), make(p), norse.LICell()
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(CHANNELS * SIDE * SIDE, 20)
        self.fc2 = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        read: Any = None
        found = []
        if self.layers:
            spikes, _ = self.one(self.conv(x).repeat(self.steps, 1, 1, 1, 1))
            flat = self.pool(spikes.flatten(0, 1)).flatten(1).unflatten(0, (self.steps, len(x)))
            for z in self.two(self.fc1(flat))[0]:
                v, read = self.out(self.fc2(z), read)
                found.append(v)
            return torch.stack(found).max(0).values
        one: Any = None
        two: Any = None
        for _ in range(self.steps):
            z, one = self.one(self.conv(x), one)
            z, two = self.two(self.fc1(self.pool(z).flatten(1)), two)
            v, read = self.out(self.fc2(z), read)
            found.append(v)
        return torch.stack(found).max(0).values


class Sinabs(nn.Module):
    """Squeezed layers, as `from_model` gives them, or layers over `[batch, time, ...]`."""

    def __init__(
        self, neuron: str = "IAF", squeezed: bool = True, steps: int = 4, **settings: Any
    ) -> None:
        super().__init__()
        import sinabs.layers as layers

        self.steps, self.squeezed = steps, squeezed
        name = f"{neuron}Squeeze" if squeezed else neuron
        if squeezed:
            settings["num_timesteps"] = steps
        make = getattr(layers, name)
        self.conv = nn.Conv2d(1, CHANNELS, 5)
        self.one, self.two = make(**settings), make(**settings)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(CHANNELS * SIDE * SIDE, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.unsqueeze(1).repeat(1, self.steps, 1, 1, 1).flatten(0, 1))
        y = self._spikes(self.one, y)
        y = self._spikes(self.two, self.fc(self.pool(y).flatten(1)))
        total: Tensor = y.unflatten(0, (len(x), self.steps)).sum(1)
        return total

    def _spikes(self, neuron: Any, y: Tensor) -> Tensor:
        rows = y if self.squeezed else y.unflatten(0, (-1, self.steps))
        found: Tensor = neuron(rows)
        return found if self.squeezed else found.flatten(0, 1)


def _of(name: str, make: Callable[[], nn.Module]) -> Any:
    return pytest.param(quiet(make), marks=needs(name), id=name)


#: One network of each library, for tests of all of them.
EACH_LIBRARY = [
    _of("spikingjelly", lambda: SpikingJelly("m")),
    _of("snntorch", SnnTorch),
    _of("norse", Norse),
    _of("sinabs", Sinabs),
]
