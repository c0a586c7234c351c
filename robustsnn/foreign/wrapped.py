"""A network with neurons of another library, as a network that names its spiking layers.

The network is not changed: it runs its own code, and its state is reset before every pass. Where an
estimator asks for another gradient than the library's, the pass is cut at the neurons (`replay`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.foreign.detect import neurons, own_layers, stateful, version_of
from robustsnn.foreign.layer import Layer
from robustsnn.foreign.library import Unknown
from robustsnn.foreign.reach import Found, Reach
from robustsnn.foreign.replay import Replay, handled, settings_of
from robustsnn.foreign.twin import Twins
from robustsnn.models.calling import AT_ONCE, call
from robustsnn.models.shapes import Shaped, are_logits, not_logits
from robustsnn.snn.backward_rule import spiking_layers
from robustsnn.snn.neuron import LIF

#: What a wrapped network says of itself only if the network inside says it.
SAID_INSIDE = ("stochastic", "classes", "input_shape", AT_ONCE)


class Wrapped(nn.Module):
    """A network whose neurons estimators can reach, from images in [0, 1] to logits.

    Args:
        inner: The network as its user wrote it; it is not changed.
        reach: What was found in it, which its copies share.
    """

    def __init__(self, inner: nn.Module, reach: Reach | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.reach = found_in(inner) if reach is None else reach
        self.training = inner.training

    @property
    def inner_name(self) -> str:
        """What the network inside is called, for readers."""
        return str(getattr(self.inner, "inner_name", type(self.inner).__name__))

    def spiking_layers(self) -> dict[str, Any]:
        """The layers that estimators reach, by name."""
        own: dict[str, Any] = own_layers(self.inner)
        return {
            name: own[name] if name in own else self._layers()[name]
            for name, found in self.reach.layers.items()
            if not (found.why_not or self.reach.opted_out)
        }

    def foreign_layers(self) -> dict[str, Layer]:
        """Those of them that belong to another library."""
        return {n: one for n, one in self.spiking_layers().items() if isinstance(one, Layer)}

    def _layers(self) -> dict[str, Layer]:
        """The layers of other libraries whose dynamics are known, made when first asked for."""
        made: dict[str, Layer] | None = self.__dict__.get("_made")
        wanted = [n for n, found in self.reach.layers.items() if not found.why_not]
        if made is None or any(n not in made for n in wanted if n not in own_layers(self.inner)):
            made = {} if made is None else made
            modules = {name: (module, library) for name, module, library in neurons(self.inner)}
            for name in wanted:
                stem, _, place = name.partition("#")
                if stem in modules and name not in made:
                    made[name] = Layer(name, *modules[stem], place=int(place or 1) - 1)
            self.__dict__["_made"] = made
        return made

    def around(self, inner: nn.Module) -> Wrapped:
        """Another network of the same factory, wrapped as a copy of this one."""
        return Wrapped(inner, self.reach)

    def neuron_modules(self) -> list[nn.Module]:
        """The modules that are neurons."""
        return [module for _, module, _ in neurons(self.inner)]

    def forward(self, images: Tensor, **keys: Any) -> Tensor:
        """Logits `[batch, class]` of images `[batch, channel, height, width]`.

        Args:
            images: Pixels, in units of [0, 1].
            **keys: `keys`, for a network that draws.
        """
        wanted = torch.is_grad_enabled() and images.requires_grad
        if wanted and not self.reach.checked and self.reach.check is not None:
            # An estimator may have set its rule already, and the check is about the library's own.
            asked = self.__dict__.pop("_made", {})
            self.reach.check(self, images)
            self.__dict__["_made"] = {**self._layers(), **asked}
        layers = self.foreign_layers()
        run: Callable[[Tensor], Tensor] = partial(self.plain, **keys)
        if not (wanted and layers):
            return run(images)
        if any(layer.twin for layer in layers.values()):
            twins = Twins(layers, max(self.reach.steps, 1))
            with handled(layers, twins.handler):
                return run(images)
        if self.reach.native and not any(layer.changed for layer in layers.values()):
            return run(images)
        found: Tensor = Replay.apply(images, layers, run, settings_of(layers))
        return found

    def plain(self, images: Tensor, **keys: Any) -> Tensor:
        """The network's own forward pass, from a state that is reset.

        Raises:
            InputError: It does not return logits.
        """
        with self._registered():
            try:
                if isinstance(self.inner, Shaped):
                    self.inner.find_time_axis(images, keys.get("keys"), before=self.reset)
                self.reset()
                logits = call(self.inner, images, **keys)
            finally:
                # Nothing of a pass stays behind: neither its graph nor a state.
                self.reset()
        if not are_logits(logits, len(images)):
            raise not_logits(self.inner_name, logits)
        return logits

    def reset(self) -> None:
        """Let every module that keeps a state forget what it has seen."""
        for module, library in stateful(self.inner):
            library.reset(module)

    @contextmanager
    def _registered(self) -> Iterator[None]:
        """Name these neurons, and no others, in a list by which their library resets neurons.

        snnTorch resets what is in a list of the process. Copies are not in it, and the neurons of
        other networks are.
        """
        by_base: dict[type, list[nn.Module]] = {}
        for _, module, _ in neurons(self.inner):
            for base in type(module).__mro__:
                if isinstance(vars(base).get("instances"), list):
                    by_base.setdefault(base, []).append(module)
        with ExitStack() as stack:
            for base, some in by_base.items():
                stack.enter_context(_attribute(base, "instances", some))
            yield

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in SAID_INSIDE and "inner" in self._modules:
                return getattr(self.inner, name)
            raise

    def extra_repr(self) -> str:
        """Whether the neurons are left alone, since that is another network to an attacker."""
        return "neurons left alone" if self.reach.opted_out else ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrapped:
        for module, _ in stateful(self.inner):
            if any("__deepcopy__" in vars(base) for base in type(module).__mro__):
                # sinabs builds a new layer from some of its attributes, in training mode.
                _copy_as_it_is(module, memo)
        copied = Wrapped(copy.deepcopy(self.inner, memo), self.reach)
        copied.training = self.training
        copied.reset()
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_made"}


def _copy_as_it_is(module: nn.Module, memo: dict[int, Any]) -> None:
    """Copy a module attribute by attribute, whatever its own `__deepcopy__` does."""
    made = type(module).__new__(type(module))
    memo[id(module)] = made
    made.__dict__.update(copy.deepcopy(module.__dict__, memo))


@contextmanager
def _attribute(owner: type, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def found_in(network: nn.Module) -> Reach:
    """What is found in a network: neurons of other libraries, and of ours."""
    reach = Reach()
    reach.steps_said = isinstance(network, Shaped) and network.shape.steps is not None
    for name, module, library in neurons(network):
        kind = str(library.kind(module))
        one = Found(name, f"{library.title} {version_of(library)}", kind)
        reach.layers[name] = one
        try:
            Layer(name, module, library)
            one.leak, one.reset = library.shown(module).values()
        except Exception as error:
            # Another version of a library may lack an attribute; the run goes on without it.
            one.why_not = why(error)
    for name, layer in own_layers(network).items():
        if not isinstance(layer, LIF):
            reach.layers[name] = Found(name, "named by spiking_layers()", type(layer).__name__)
            continue
        shown = f"{float(layer.leak):.3g}"
        how = "reset to rest" if layer.reset == "hard" else "reset by subtraction"
        reach.layers[name] = Found(name, "RobustSNN", "LIF", shown, how)
    return reach


def why(error: Exception) -> str:
    """Why a neuron cannot be reached, as a part of a sentence."""
    if isinstance(error, Unknown):
        return str(error)
    text = (str(error).splitlines() or [""])[0]
    return f"it is not as in the versions that are known ({type(error).__name__}: {text})"


def needs_wrapping(network: nn.Module) -> bool:
    """Whether a network holds neurons that it does not name as its spiking layers."""
    if spiking_layers(network):
        return False
    return any(True for _ in itertools.chain(neurons(network), own_layers(network)))
