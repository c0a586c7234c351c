"""The self-check of a wrapped network: a layer that does not pass it keeps its library's gradient.

It is made once for each run, on a few images. Whatever fails makes fewer layers reached and leaves
a sentence behind; nothing that fails is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.foreign.detect import neurons, own_layers
from robustsnn.foreign.layer import Layer
from robustsnn.foreign.reach import Found
from robustsnn.foreign.replay import (
    Chain,
    Pass,
    backward,
    dynamics_of,
    handled,
    trace_of,
)
from robustsnn.foreign.wrapped import Wrapped, why

#: The number of images that are looked at.
IMAGES = 8
#: The largest relative difference of two gradients that are the same.
APART = 1e-4
#: The distance from the threshold, in units of it, within which rounding may decide a spike.
ROUNDING = 1e-4
#: The most sequences that one module may run in a pass.
SEQUENCES = 64
#: The seed of the draws of a network that draws without saying so.
SEED = 0


def check(network: Wrapped, images: Tensor) -> None:
    """Check which layers can be reached, and note it in the reach that all copies share.

    Args:
        network: The network, in evaluation mode; its state is reset.
        images: Some images, `[batch, channel, height, width]`, in [0, 1].
    """
    reach = network.reach
    if reach.checked or reach.opted_out:
        return
    reach.checked = True
    images = images[:IMAGES].detach().clone()
    frozen = [p for p in network.parameters() if p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.random.fork_rng():
            _Checker(network, images).run()
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        network.reset()


class _Checker:
    """The check of one network on some images."""

    def __init__(self, network: Wrapped, images: Tensor) -> None:
        self.network, self.reach, self.images = network, network.reach, images
        self.keys: dict[str, Tensor] = {}
        if getattr(network, "stochastic", False):
            self.keys = {"keys": torch.arange(len(images))}
        with torch.no_grad():
            self.logits = self.plain(images)
        torch.manual_seed(SEED)
        self.weights = torch.randn_like(self.logits)

    def plain(self, images: Tensor) -> Tensor:
        torch.manual_seed(SEED)
        return self.network.plain(images, **self.keys)

    def run(self) -> None:
        """Every part of the check, in order."""
        self._uses()
        self._own_steps()
        self._sequences()
        layers = self.network.foreign_layers()
        if not layers:
            return
        self._spikes()
        self._gradients()

    def _uses(self) -> None:
        """Find the order in which the layers run, and those that do nothing in a pass."""
        inner = self.network.inner
        used: dict[nn.Module, None] = {}
        by_module: dict[Any, list[str]] = {}
        works: dict[nn.Module, Sequence[str]] = {}
        for name, module, library in neurons(inner):
            works[module] = library.works
            by_module.setdefault(module, []).append(name)
        for name, layer in own_layers(inner).items():
            by_module.setdefault(layer, []).append(name)
            if isinstance(layer, nn.Module):
                works[layer] = ()
            else:
                # It says itself that it is a layer, and its class cannot be looked into.
                used[layer] = None
        try:
            with torch.no_grad(), noted(works, used):
                self.plain(self.images)
        except Exception:
            # The same pass ran before; only a class that bears no subclass can stop it here.
            return
        self.reach.in_order([name for module in used for name in by_module[module]])

    def _own_steps(self) -> None:
        """Note how many steps the layers of our own neurons make."""
        handles = []
        for name, layer in own_layers(self.network.inner).items():

            def hook(module: Any, args: Any, output: Any, name: str = name) -> None:
                spikes = output[0] if isinstance(output, tuple) else output
                self.reach.layers[name].steps = len(spikes)

            handles.append(layer.register_forward_hook(hook))
        try:
            if handles:
                with torch.no_grad():
                    self.plain(self.images)
        finally:
            for handle in handles:
                handle.remove()

    def _sequences(self) -> None:
        """Find the layers whose calls can be told apart, and how many sequences each runs."""
        for name in list(self.network.foreign_layers()):
            while not self.reach.layers[name].why_not:
                layers = _of_module(self.network.foreign_layers(), name)
                try:
                    run, logits = self.cut(layers, live=True)
                except Exception as error:
                    if "sequences in a pass" in str(error) and len(layers) < SEQUENCES:
                        self._add(name, len(layers) + 1)
                        continue
                    self.reach.leave_out(list(layers), why(error))
                    break
                if not run.chains:
                    self.reach.leave_out(list(layers), "its forward is not called")
                elif not torch.equal(logits, self.logits):
                    self.reach.leave_out(list(layers), "the pass differs when it is cut there")
                for chain in run.chains:
                    spikes = chain.stacked(lambda call: call.spikes.detach())
                    self.reach.layers[chain.layer.name].steps = len(spikes)
                break

    def _add(self, name: str, place: int) -> None:
        """Add a layer for one more sequence that a module runs in a pass."""
        first = self.reach.layers[name]
        added: dict[str, Found] = {}
        for key, one in self.reach.layers.items():
            added[key] = one
            if key == (name if place == 2 else f"{name}#{place - 1}"):
                new = f"{name}#{place}"
                added[new] = Found(new, first.library, first.kind, first.leak, first.reset)
        self.reach.layers.clear()
        self.reach.layers.update(added)

    def cut(self, layers: Mapping[str, Layer], live: bool = False) -> tuple[Pass, Tensor]:
        """A pass that is cut at those layers, without gradient, and its logits."""
        run = Pass(layers, live)
        with torch.no_grad(), handled(layers, run.handler):
            return run, self.plain(self.images)

    def _spikes(self) -> None:
        """Compare our dynamics with the spikes and membranes that the library gave."""
        run, logits = self.cut(self.network.foreign_layers())
        if run.chains:
            first = run.chains[0].stacked(lambda call: call.current.detach())
            self.reach.encoding = "direct" if bool((first == first[:1]).all()) else ""
        self.reach.checks["logits equal"] = bool(torch.equal(logits, self.logits))
        wrong = total = 0
        for chain in run.chains:
            here, entries = differing(chain)
            wrong, total = wrong + here, total + entries
            if here:
                reason = (
                    f"{here} of {entries} spikes are not those of the dynamics known of its kind"
                )
                self.reach.leave_out([chain.layer.name], reason)
        self.reach.checks["spikes"] = total
        self.reach.checks["spikes that differ"] = wrong

    def _gradients(self) -> None:
        """Compare own surrogates through rules with the library's autograd."""
        with self._trained_mode() as usable:
            theirs = self.native() if usable else None
            if theirs is None or not bool(theirs.any()):
                theirs = None
                self.reach.checks["gradient of the library"] = "none"
            while layers := self.network.foreign_layers():
                apart, reason = self._apart(layers, theirs)
                if not reason:
                    self.reach.checks["gradients apart"] = apart
                    break
                worst = self._worst(layers, theirs)
                self.reach.leave_out(worst or list(layers), reason)
        self.reach.native = self._has_native()

    def _apart(self, layers: Mapping[str, Layer], theirs: Tensor | None) -> tuple[float, str]:
        """The relative difference of the gradients, and why these layers cannot be reached."""
        try:
            ours = self.through(layers)
        except Exception as error:
            return float("nan"), why(error)
        if theirs is None:
            return float("nan"), ""
        apart = float((ours - theirs).norm() / theirs.norm())
        if apart <= APART:
            return apart, ""
        return apart, f"its gradient is {apart:.1e} of its length off that of the library"

    def _worst(self, layers: Mapping[str, Layer], theirs: Tensor | None) -> list[str]:
        """The layers that are wrong by themselves; none if only together."""
        modules = {layer.module: _of_module(layers, name) for name, layer in layers.items()}
        if len(modules) == 1:
            return []
        return [name for some in modules.values() if self._apart(some, theirs)[1] for name in some]

    def through(self, layers: Mapping[str, Layer]) -> Tensor:
        """The gradient through the rules of layers that are cut."""
        run = Pass(layers)
        with torch.enable_grad():
            inside = self.images.clone().requires_grad_()
            with handled(layers, run.handler):
                logits = self.plain(inside.clone())
            return backward(run, inside, logits, self.weights)

    def native(self) -> Tensor | None:
        """The gradient that the library gives in the mode it is in."""
        with torch.enable_grad():
            x = self.images.clone().requires_grad_()
            logits = self.plain(x.clone())
            if not logits.requires_grad:
                return None
            (found,) = torch.autograd.grad((logits * self.weights).sum(), x, allow_unused=True)
        return found

    def _has_native(self) -> bool:
        """Whether the library gives this gradient in evaluation mode, as it is attacked."""
        found = self.native()
        return found is not None and bool(found.any()) and not self._differs_by_mode(found)

    def _differs_by_mode(self, found: Tensor) -> bool:
        """Whether neurons in training mode give another gradient for the same logits."""
        with self._trained_mode() as usable:
            other = self.native() if usable else None
        if other is None:
            return False
        return float((other - found).norm()) > APART * float(other.norm())

    @contextmanager
    def _trained_mode(self) -> Iterator[bool]:
        """Neurons alone in training mode inside the block, and whether they predict the same."""
        layers = self.network.foreign_layers().values()
        modes = {layer.module: layer.module.training for layer in layers}
        try:
            for module in modes:
                module.training = True
            with torch.no_grad():
                yield bool(torch.equal(self.plain(self.images), self.logits))
        finally:
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def noted(works: Mapping[nn.Module, Sequence[str]], used: dict[nn.Module, None]) -> Iterator[None]:
    """Note which modules are used inside the block, in the order of their first use.

    A user may call `forward`, or a part of a neuron, and not the module; hooks would not see that.

    Args:
        works: The modules, and the attributes besides `forward` whose use counts.
        used: What is filled.
    """
    kinds = {module: type(module) for module in works}

    def spied(kind: type[nn.Module], names: Sequence[str]) -> type[nn.Module]:
        def look(module: nn.Module, name: str) -> Any:
            if name == "forward" or name in names:
                used.setdefault(module)
            return kind.__getattribute__(module, name)

        body = {"__getattribute__": look, "__module__": kind.__module__}
        return type(kind.__name__, (kind,), body)

    try:
        for module, names in works.items():
            module.__class__ = spied(kinds[module], names)
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


def differing(chain: Chain) -> tuple[int, int]:
    """How many steps of neurons are not those of the known dynamics, and of how many.

    A spike counts if the membrane is further from the threshold than rounding can explain, or if a
    membrane that the library returned is another.
    """
    d = chain.dynamics
    trace = trace_of(chain)
    with torch.no_grad():
        wrong = torch.zeros_like(trace.spikes, dtype=torch.bool)
        before, after = dynamics_of(d, trace.current, trace.spikes)
        for t, u in enumerate(before):
            o = trace.spikes[t]
            z = u / d.threshold
            least, most = z.new_full((), ROUNDING), z.new_full((), 1 + ROUNDING)
            if d.graded:
                wrong[t] = _off(z, o, _most(chain))
            else:
                wrong[t] = ((z > most) & (o != 1)) | ((z < 1 - least) & (o != 0))
            wrong[t] |= (o != o.round()) | (o < 0)
        at = 0
        for call in chain.calls:
            at += len(chain.layer.library.split(chain.layer.module, call.current))
            for read in call.reads:
                if read.role == "other" or read.every:
                    continue
                known = before if read.role == "before reset" else after
                apart = (known[at - 1] + d.rest - read.value.detach()).abs()
                scale = d.threshold.abs() + read.value.detach().abs()
                wrong[at - 1] |= apart > 10 * ROUNDING * scale
    return int(wrong.sum()), wrong.numel()


def _most(chain: Chain) -> float:
    """The most spikes of a neuron in a step."""
    function = getattr(chain.layer.module, "spike_fn", None)
    most = getattr(function, "max_num_spikes_per_bin", None)
    return float("inf") if most is None else float(most)


def _off(z: Tensor, spikes: Tensor, most: float) -> Tensor:
    """Whether a number of spikes is not the whole part of z, rounding apart."""
    slack = ROUNDING * (1 + z.abs())
    low = (z - slack).floor().clamp(0, most)
    high = (z + slack).floor().clamp(0, most)
    return (spikes < low) | (spikes > high)


def _of_module(layers: Mapping[str, Layer], name: str) -> dict[str, Layer]:
    """The layers of the module of that layer."""
    module = layers[name].module
    return {key: layer for key, layer in layers.items() if layer.module is module}
