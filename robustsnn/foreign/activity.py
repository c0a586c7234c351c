"""Spikes, operations and energy of a network that is not ours, counted on real images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from robustsnn.common.wording import listing
from robustsnn.foreign.detect import neurons, own_layers
from robustsnn.foreign.layer import Layer
from robustsnn.foreign.replay import Pass, handled
from robustsnn.foreign.wrapped import Wrapped
from robustsnn.snn.activity import LayerActivity
from robustsnn.snn.backward_rule import spiking_layers
from robustsnn.snn.energy import AC_PJ, MAC_PJ, energies
from robustsnn.snn.operations import FanOuts, Inputs, LayerOperations, Operations, fan_out

#: Layers with synapses, whose operations are counted.
SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Layers with synapses whose operations are not counted.
OTHERS = (
    nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
#: Functions that multiply by weights, or activations with each other, wherever they stand.
MULTIPLY = {
    "linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm",
    "addmv", "baddbmm", "addbmm", "einsum", "tensordot", "chain_matmul", "conv1d", "conv2d",
    "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "scaled_dot_product_attention", "multi_head_attention_forward",
}  # fmt: skip
#: How many of the places that cannot be counted are named.
MOST_NAMED = 5


@dataclass(frozen=True)
class Counted:
    """What was counted in a network.

    Args:
        layers: The spikes of the layers of neurons whose steps are known.
        operations: The operations; None if some cannot be counted.
        energy: The energies in microjoule per image, by name; empty without operations.
        uncounted: Why there are no operations, as a part of a sentence; empty if there are.
    """

    layers: tuple[LayerActivity, ...]
    operations: Operations | None
    energy: dict[str, float]
    uncounted: str = ""


@torch.no_grad()
def count(
    network: nn.Module, images: Tensor, keys: Tensor | None = None, batch_size: int = 64
) -> Counted:
    """Run a network and count its spikes and operations, as `robustsnn.snn.operations` does.

    An input that is not zero costs as many operations as it meets weights that are not zero. A
    layer that sees the same analog input at every step is computed once, as a network of ours does.
    What stands outside of convolutions and linear layers, such as the product of two activations,
    cannot be counted; then there are no operations, and `uncounted` says why.

    Args:
        network: The network, in evaluation mode; its neurons, if they belong to another library,
            are checked.
        images: Images `[batch, channel, height, width]`, in [0, 1].
        keys: The keys of a network that draws.
        batch_size: The number of images in a forward pass.
    """
    try:
        return _counted(network, images, keys, batch_size)
    except Exception as error:
        # What somebody else wrote may do with a layer what no hook expects. Numbers that are there
        # must not be lost by it.
        said = (str(error).splitlines() or [""])[0]
        return Counted((), None, {}, f"counting them failed ({type(error).__name__}: {said})")


def _counted(network: nn.Module, images: Tensor, keys: Tensor | None, batch_size: int) -> Counted:
    counter = _Counter(network)
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        given = {} if keys is None else {"keys": keys[start : start + batch_size]}
        counter.run(part, given)
    total = max(1, len(images))
    layers = tuple(
        LayerActivity(name, counter.neurons[name], tuple((spikes / total).tolist()))
        for name, spikes in counter.spikes.items()
        if len(spikes)
    )
    uncounted = counter.uncounted()
    if uncounted:
        return Counted(layers, None, {}, uncounted)
    operations = counter.operations(total)
    return Counted(layers, operations, {**counter.literature(total), **energies(operations)})


@dataclass(eq=False)
class _Synapses:
    """The totals of one layer with synapses over the images so far."""

    module: Any
    after_spikes: bool
    binary: bool = True
    static: bool = True
    steps: float = 0.0
    outputs: int = 0
    dense: float = 0.0
    synaptic: float = 0.0
    busy: float = 0.0
    calls: list[Tensor] = field(default_factory=list)


class _Counter:
    """Totals over all images, by the name of each layer, filled by hooks.

    `spikes` has an entry for each step, and none where the steps of a layer are not known.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.inner = network.inner if isinstance(network, Wrapped) else network
        self.layers: dict[str, _Synapses] = {}
        self.spikes: dict[str, Tensor] = {}
        self.neurons: dict[str, int] = {}
        self.outside: dict[str, None] = {}
        self.running: list[str] = []
        self.within = 0
        self.spiked = False
        self.updates = self.activations = self.zeros = 0
        self.fans = FanOuts()
        self.denses: dict[tuple[nn.Module, torch.Size], float] = {}
        cut = network.foreign_layers() if isinstance(network, Wrapped) else {}
        self.cut: dict[str, Layer] = cut

    # --- one pass ------------------------------------------------------------------------------

    def run(self, images: Tensor, given: dict[str, Tensor]) -> None:
        """Count one pass."""
        self.spiked = False
        run = Pass(self.cut)
        seen: dict[str, list[Tensor]] = {}
        with ExitStack() as stack:
            for handle in (*self._hooks(seen), *self._places()):
                stack.callback(handle.remove)
            stack.enter_context(_Outside(self))
            stack.enter_context(handled(self.cut, run.handler))
            whole = self.network.plain if isinstance(self.network, Wrapped) else self.network
            whole(images.clone(), **given)
        for chain in run.chains:
            seen[chain.layer.name] = [chain.stacked(lambda call: call.spikes)]
        for name, steps in seen.items():
            self._neurons(name, steps, len(images))
        for layer in self.layers.values():
            self._settle(layer, len(images))

    def _hooks(self, seen: dict[str, list[Tensor]]) -> list[Any]:
        handles: list[Any] = []
        for name, module in self.inner.named_modules():
            if isinstance(module, SYNAPSES):
                handles.append(module.register_forward_pre_hook(self._enters))
                hook = self._synapse(name)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            elif isinstance(module, nn.ReLU):
                handles.append(module.register_forward_hook(self._activation))
        for name, module, library in neurons(self.inner):

            def split(output: Any, module: Any = module, library: Any = library) -> Tensor:
                found: Tensor = library.split(module, library.spikes(output))
                return found

            handles.append(module.register_forward_hook(self._fires(name, split, seen)))
        for name, layer in (own_layers(self.inner) or spiking_layers(self.inner)).items():

            def plain(output: Any) -> Tensor:
                spikes: Tensor = output[0] if isinstance(output, tuple) else output
                return spikes

            handles.append(layer.register_forward_hook(self._fires(name, plain, seen)))
        return handles

    def _places(self) -> list[Any]:
        """Hooks that note which layer is running, by its name."""
        names = {module: name for name, module in self.inner.named_modules()}

        def begins(module: nn.Module, args: Any) -> None:
            self.running.append(names.get(module, ""))

        def ends(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()

        self.running = []
        return [register_module_forward_pre_hook(begins), register_module_forward_hook(ends)]

    def _enters(self, module: Any, args: Any) -> None:
        self.within += 1

    def _synapse(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, given: dict[str, Any], output: Tensor) -> None:
            self.within -= 1
            x: Tensor = (args[0] if args else given["input"]).detach()
            # Time is in front, or joined with the batch: what is left are rows of time and batch.
            natural = 1 if isinstance(module, nn.Linear) else 1 + len(module.kernel_size)
            rows = x[None] if x.dim() == natural else x.flatten(0, x.dim() - natural - 1)
            layer = self.layers.setdefault(name, _Synapses(module, self.spiked))
            layer.outputs += output.numel()
            layer.calls.append(rows)

        return hook

    def _activation(self, module: Any, args: Any, output: Tensor) -> None:
        self.activations += output.numel()
        self.zeros += output.numel() - int(torch.count_nonzero(output))

    def _fires(
        self, name: str, split: Callable[[Any], Tensor], seen: dict[str, list[Tensor]]
    ) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self.spiked = True
            if name in self.cut:
                return
            try:
                steps = split(output).detach()
            except Exception:
                # The neuron of a kind that is not known, which need not be split like the others.
                steps = next(t for t in _tensors(output))[None]
            seen.setdefault(name, []).append(steps)

        return hook

    def _neurons(self, name: str, calls: list[Tensor], images: int) -> None:
        """Add the spikes of a layer in one pass, `[time, batch, ...]` each."""
        for call in calls:
            self.updates += call.numel()
            self.activations += call.numel()
            self.zeros += call.numel() - int(torch.count_nonzero(call))
        if len({call.shape[1:] for call in calls}) > 1 or calls[0].shape[1] != images:
            self.spikes[name], self.neurons[name] = torch.zeros(0), 0
            return
        each = torch.cat(calls).flatten(2)
        total = each.double().mean(2).sum(1).cpu()
        held = self.spikes.get(name)
        if held is not None and held.shape != total.shape:
            total = torch.zeros(0)
        self.spikes[name] = total if held is None or not len(total) else held + total
        self.neurons[name] = each.shape[2]

    def _settle(self, layer: _Synapses, images: int) -> None:
        """Add what entered a layer in one pass of that many images."""
        calls, layer.calls = layer.calls, []
        if not calls:
            return
        steps = sum(map(len, calls)) / images
        layer.steps = max(layer.steps, steps)
        layer.static &= len({call.shape[1:] for call in calls}) == 1
        layer.static &= layer.static and steps == int(steps) and _same(torch.cat(calls), images)
        for rows in calls:
            fan = self.fans.of(layer.module, rows)
            active = (rows != 0).sum(0, dtype=fan.dtype)
            layer.synaptic += float((active * fan).sum())
            layer.dense += len(rows) * self._dense(layer.module, rows.shape[1:])
            layer.binary &= bool(((rows == 0) | (rows.abs() == 1)).all())
            layer.busy += float((rows != 0).double().flatten(1).mean(1).sum())

    # --- the whole -----------------------------------------------------------------------------

    @property
    def spiking(self) -> bool:
        """Whether neurons were seen."""
        return bool(self.spikes)

    def uncounted(self) -> str:
        """What cannot be counted, as a part of a sentence; empty if all can."""
        what = [
            f"{type(module).__name__} {name}".rstrip()
            for name, module in self.inner.named_modules()
            if isinstance(module, OTHERS)
        ]
        what += self.outside
        if what:
            rest = [f"{len(what) - MOST_NAMED} more"] if len(what) > MOST_NAMED else []
            return (
                "it multiplies outside of convolutional and linear layers too "
                f"({', '.join([*what[:MOST_NAMED], *rest])})"
            )
        again = [name for name, layer in self.layers.items() if layer.steps > 1]
        if again and not self.spiking:
            return (
                f"it computes {listing(again[:MOST_NAMED])} several times for an image, and no "
                "neurons are known"
            )
        return "" if self.layers else "it has no convolutional or linear layer"

    def _inputs(self, layer: _Synapses) -> Inputs:
        if not self.spiking or not (layer.binary or layer.after_spikes):
            return "analog"
        if layer.static and not layer.after_spikes:
            return "analog"
        return "spikes" if layer.binary else "pooled"

    def operations(self, images: int) -> Operations:
        """The means over the images, in the order in which layers run."""
        held = [*self.inner.parameters(), *self.inner.buffers()]
        found = []
        for name, layer in self.layers.items():
            # A static input is the same at every step, so that one of them is enough.
            each = images * (layer.steps if self._once(layer) else 1)
            found.append(
                LayerOperations(
                    name=name,
                    inputs=self._inputs(layer),
                    passes=1 if self._once(layer) else round(layer.steps),
                    weights=layer.module.weight.numel(),
                    kept=int(torch.count_nonzero(layer.module.weight)),
                    dense=layer.dense / each,
                    synaptic=layer.synaptic / each,
                    bias_reads=0.0 if layer.module.bias is None else layer.outputs / each,
                )
            )
        share = self.zeros / self.activations if self.activations else float("nan")
        return Operations(
            images=images,
            layers=tuple(found),
            membrane_updates=self.updates / images,
            activation_sparsity=share,
            footprint_bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
        )

    def _once(self, layer: _Synapses) -> bool:
        """Whether a layer is computed once: a static input is the same at every step."""
        return layer.static and self._inputs(layer) == "analog"

    def _dense(self, module: Any, shape: torch.Size) -> float:
        """The operations of one input if neither it nor a weight were zero."""
        if (module, shape) not in self.denses:
            self.denses[module, shape] = float(fan_out(module, shape, dense=True).sum())
        return self.denses[module, shape]

    def literature(self, images: int) -> dict[str, float]:
        """The energies as papers count them, with the names of `robustsnn.snn.energy.Energy`."""
        dense = spiking = 0.0
        for layer in self.layers.values():
            weight = layer.module.weight
            outputs = layer.outputs / images / max(1.0, layer.steps)
            macs = outputs * weight[0].numel() * float((weight != 0).double().mean())
            dense += MAC_PJ * macs
            once = self._once(layer)
            spiking += MAC_PJ * macs if once else AC_PJ * macs * layer.busy / images
        found = {"ann_uj": dense * 1e-6}
        if not self.spiking:
            return found
        if not spiking_layers(self.network):
            # It is attacked as an ANN, and must not be taken for one.
            found = {}
        return {**found, "snn_input_uj": spiking * 1e-6}


class _Outside(TorchFunctionMode):
    """Notes multiplications that do not stand in a layer whose operations are counted."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in MULTIPLY and not self.counter.within:
            where = self.counter.running[-1] if self.counter.running else ""
            self.counter.outside[f"{name.strip('_')}{f' in {where}' if where else ''}"] = None
        return func(*args, **(kwargs or {}))


def _tensors(output: Any) -> list[Tensor]:
    parts = output if isinstance(output, list | tuple) else [output]
    return [part for part in parts if isinstance(part, Tensor)]


def _same(rows: Tensor, images: int) -> bool:
    """Whether rows are the same at each of their steps, in whatever order they lie."""
    steps = len(rows) // images
    by_time = rows.unflatten(0, (steps, images))
    by_image = rows.unflatten(0, (images, steps)).transpose(0, 1)
    return bool((by_time == by_time[:1]).all()) or bool((by_image == by_image[:1]).all())
