"""Where the backward pass of a layer of neurons peaks, and where its forward pass flips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustsnn.common.wording import percent
from robustsnn.diagnosis.finding import Finding
from robustsnn.diagnosis.preflight import is_neuron
from robustsnn.diagnosis.probe.specimen import Specimen
from robustsnn.errors import InputError
from robustsnn.snn.backward_rule import Trace, spiking_layers
from robustsnn.snn.copying import copy_of

#: The number of images, and the largest numbers of neurons of an image and of steps, looked at.
IMAGES, NEURONS, STEPS = 8, 4096, 6
#: The currents that are added to that of a step, in units of the threshold: from -REACH to REACH.
REACH, POINTS = 2.0, 41
#: A backward pass that hardly changes over that reach has no peak: the least slope is at least that
#: share of the largest.
NO_PEAK = 0.9
#: The median distance between peak and flip, in units of the threshold, above which it is flagged;
#: of a surrogate in its place, the points of the grid let a tenth be seen.
FAR = 0.15
#: The share of membranes that may contradict the threshold that estimators are told.
CONTRADICTED = 0.005


@dataclass(frozen=True)
class Placed:
    """What was seen of one layer.

    Args:
        distances: The median distance of each step that was looked at, in units of the threshold.
        contradicted: The share of the membranes whose spike contradicts the threshold that
            estimators are told; None if they are told none.
    """

    distances: Mapping[int, float]
    contradicted: float | None

    @property
    def far(self) -> float:
        """The largest of the distances; 0 without any."""
        return max(self.distances.values(), default=0.0)


def placement(specimen: Specimen) -> list[Finding]:
    """D16: whether surrogates lie where spikes flip; no finding without layers that tell.

    The current of one step of a layer is shifted. Somewhere the spike of that step flips, which is
    bisected to a point of a grid, and somewhere the layer's own derivative is largest. Nothing
    needs to be known of the layer for that: it takes a current `[time, batch, ...]` and returns
    spikes of the same form. Layers of other libraries, which are checked by themselves, and those
    whose derivative has no peak, are left out.
    """
    placed = _placed(specimen.first(IMAGES))
    if not placed:
        return []
    worst = max(placed, key=lambda name: placed[name].far)
    told = {n: one.contradicted for n, one in placed.items() if one.contradicted is not None}
    lied = {name: share for name, share in told.items() if share > CONTRADICTED}
    reached = set(spiking_layers(specimen.network))
    alone = placed[worst].far > FAR and worst not in reached
    said = (
        f"In {worst} the backward pass peaks {placed[worst].far:.2f} thresholds away from where "
        "spikes flip"
    )
    if lied:
        most = max(lied, key=lambda name: lied[name])
        said += (
            f"; in {most} {percent(lied[most])} of the membranes spike against the threshold that "
            "estimators are told"
        )
    return [
        Finding(
            "D16",
            "surrogate-misplaced",
            placed[worst].far > FAR or bool(lied),
            "invalid" if lied or alone else "caution",
            f"{said}.",
            placed[worst].far,
            {
                "distance by layer and step": {
                    name: {str(step): value for step, value in one.distances.items()}
                    for name, one in placed.items()
                },
                "against the threshold": told,
            },
            passed="In every layer that tells, the backward pass peaks at most "
            f"{placed[worst].far:.2f} thresholds away from where spikes flip.",
        )
    ]


def _placed(specimen: Specimen) -> dict[str, Placed]:
    """What is seen of each layer in one pass of the images."""
    network = copy_of(specimen.network)
    layers = {n: one for n, one in spiking_layers(network).items() if isinstance(one, nn.Module)}
    known = set(map(id, layers.values()))
    layers |= {
        n: one for n, one in network.named_modules() if is_neuron(one) and id(one) not in known
    }
    found: dict[str, Placed] = {}

    def look(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            # The layer is called again below.
            handles[name].remove()
            try:
                placed = _of_layer(layer, inputs, output, id(layer) in known)
            except (RuntimeError, InputError, TypeError, ValueError, IndexError):
                # It takes or returns something else, or is not differentiable here.
                return
            if placed is not None:
                found[name] = placed

        return hook

    handles = {name: one.register_forward_hook(look(name)) for name, one in layers.items()}
    if not layers:
        return found
    dataclasses.replace(specimen, network=network, micro_batch=len(specimen)).judge(specimen.images)
    # One call of every layer is counted as a pass of the network.
    calls = POINTS * max((len(one.distances) for one in found.values()), default=0)
    specimen.spent.forward += calls * len(specimen)
    specimen.spent.backward += calls * len(specimen)
    return found


def _of_layer(layer: nn.Module, inputs: tuple[Any, ...], output: Any, ours: bool) -> Placed | None:
    """What is seen of a layer that was called with those inputs; None if it does not tell."""
    current, *more = inputs
    # A pass that pools its spikes too would be that of several neurons at once.
    more = more[:2] if ours else more
    with torch.no_grad():
        spikes = _first(layer(current, *more))
    if spikes.dim() < 2 or not spikes.is_floating_point():
        return None
    current = current.detach().expand(len(spikes), *current.shape[1:]).contiguous()
    if current.shape != spikes.shape or not bool(((spikes == 0) | (spikes == 1)).all()):
        return None
    threshold = _scale(layer, current)
    steps = torch.linspace(0, len(spikes) - 1, min(STEPS, len(spikes))).round().int().unique()
    distances = {}
    for step in steps.tolist():
        distance = _distance(lambda x: _first(layer(x, *more)), current, step, threshold)
        if distance is not None:
            distances[step] = distance
    told = _contradicted(layer, current, more) if ours else None
    return None if not distances and told is None else Placed(distances, told)


def _distance(
    run: Callable[[Tensor], Tensor], current: Tensor, step: int, threshold: float
) -> float | None:
    """The median distance between peak and flip at a step; None if no neuron shows both."""
    shifts = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64).tolist()
    spikes, slopes = [], []
    for shift in shifts:
        with torch.enable_grad():
            x = current.clone()
            x[step] += shift * threshold
            x.requires_grad_()
            out = run(x)[step]
            (slope,) = torch.autograd.grad(out.sum(), x)
        some = _some(out.detach(), slope[step])
        spikes.append(some[0])
        slopes.append(some[1].abs())
    fired, slope = torch.stack(spikes) > 0, torch.stack(slopes)
    # The spike flips once on the way, from none to one.
    silent = (~fired).sum(0)
    flips = (silent > 0) & (silent < POINTS) & (fired.diff(dim=0) != 0).sum(0).eq(1) & fired[-1]
    most, least = slope.amax(0), slope.amin(0)
    shown = flips & (most > 0) & (least < NO_PEAK * most)
    if not bool(shown.any()):
        return None
    # The middle between the last silent point and the first that fires.
    flip = silent.double() - 0.5
    top = slope >= most * (1 - 1e-5)
    place = torch.arange(POINTS, dtype=torch.float64, device=slope.device)[:, None]
    peak = (place * top).sum(0) / top.sum(0)
    width = 2 * REACH / (POINTS - 1)
    return float(((flip - peak).abs() * width)[shown].median())


def _some(*values: Tensor) -> list[Tensor]:
    """The values of some neurons, `[image * neuron]`, the same ones of each."""
    flat = [one.flatten(1) for one in values]
    stride = -(-flat[0].shape[1] // NEURONS)
    return [one[:, ::stride].flatten() for one in flat]


def _contradicted(layer: Any, current: Tensor, more: list[Any]) -> float:
    """The share of the membranes whose spike contradicts the threshold of the trace."""
    held: list[Trace] = []

    def rule(grad: Tensor, trace: Trace) -> Tensor:
        held.append(trace)
        return torch.zeros_like(grad)

    before = layer.rule
    try:
        layer.rule = rule
        with torch.enable_grad():
            x = current.clone().requires_grad_()
            _first(layer(x, *more)).sum().backward()
    finally:
        layer.rule = before
    (trace,) = held
    wrong = total = 0
    for step in range(len(trace.membranes)):
        over = trace.over(step)
        # Rounding may put a membrane on either side.
        sure = over.abs() > 1e-4
        wrong += int((sure & ((over > 0) != (trace.spikes[step] > 0))).sum())
        total += over.numel()
    return wrong / max(1, total)


def _scale(layer: nn.Module, current: Tensor) -> float:
    """The size of a threshold of the layer; that of its currents if it does not say it."""
    named = ("threshold", "v_threshold", "v_th", "vth", "thresh")
    for value in (getattr(layer, name, None) for name in named):
        if isinstance(value, Tensor | float | int) and not isinstance(value, bool):
            size = float(torch.as_tensor(value).detach().double().abs().mean())
            if size > 0:
                return size
    return float(current.abs().double().mean()) or 1.0


def _first(output: Any) -> Tensor:
    while isinstance(output, tuple | list):
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError("a layer of neurons returns spikes")
    return output
