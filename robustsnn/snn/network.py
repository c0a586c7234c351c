"""The network: images in [0, 1] to logits, with normalisation, encoding and read-out inside."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustsnn.errors import InputError
from robustsnn.snn.architectures import architecture
from robustsnn.snn.architectures.description import Residual, Sizes
from robustsnn.snn.encoding import direct, poisson, quantised, single_spike
from robustsnn.snn.neuron import LIF, FixedDropout
from robustsnn.snn.surrogate import Surrogate, make_surrogate

#: The largest sizes that a description may name. They are far beyond any network that is trained
#: here, and a few bytes must not take any amount of memory.
MOST_CLASSES, MOST_CHANNELS, LONGEST_SIDE, MOST_STEPS, MOST_LAYERS = (
    100_000,
    65_536,
    4096,
    10_000,
    200,
)
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
#: Numbers that float32 holds, with room for the product of two.
Scale = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Shift = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
State = dict[str, Tensor]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SurrogateConfig(_Strict):
    """A surrogate by name; see `robustsnn.snn.surrogate`."""

    name: str = "triangle"
    width: Scale = 1.0
    amplitude: Scale = 0.3

    def make(self) -> Surrogate:
        """The surrogate itself."""
        return make_surrogate(self.name, self.width, self.amplitude)


class NetworkConfig(_Strict):
    """Everything but the weights: enough to build a network again.

    `image` is (channel, height, width); `mean` and `std` are per channel, in pixel units of
    [0, 1]; `widths` and `classifier` are the published sizes by default; `levels` goes with the
    quantised encoding, and `time_weight` with the single-spike one: the weight in a logit of the
    steps that are left when the output neuron of its class fires.
    """

    architecture: str
    kind: Literal["ann", "snn"]
    classes: Annotated[int, Field(ge=2, le=MOST_CLASSES)]
    image: tuple[Side, Side, Side]
    widths: Annotated[tuple[Channels, ...], Field(max_length=MOST_LAYERS)] | None = None
    classifier: Annotated[tuple[Channels, ...], Field(max_length=MOST_LAYERS)] | None = None
    mean: tuple[Shift, ...]
    std: tuple[Scale, ...]
    encoding: Literal["direct", "poisson", "quantised", "single-spike"] = "direct"
    levels: Annotated[int, Field(ge=1, le=2**16)] | None = None
    time_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    time_steps: Steps = 1
    readout: Literal["sum", "mean"] = "sum"
    surrogate: SurrogateConfig = SurrogateConfig()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @model_validator(mode="after")
    def _consistent(self) -> NetworkConfig:
        channels = self.image[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(f"mean and std need {channels} numbers, one a channel")
        if self.kind == "ann" and (self.time_steps != 1 or self.encoding != "direct"):
            raise ValueError("an ANN has one time step and takes the image directly")
        if self.encoding == "poisson" and any(v != 0.5 for v in (*self.mean, *self.std)):
            raise ValueError("poisson encoding needs mean and std 0.5: pixels scaled to [-1, 1]")
        if (self.encoding == "quantised") != (self.levels is not None):
            raise ValueError("levels goes with the quantised encoding, and only with it")
        if (self.encoding == "single-spike") != (self.time_weight is not None):
            raise ValueError("time_weight goes with the single-spike encoding, and only with it")
        if self.encoding == "single-spike" and self.time_steps < 2:
            raise ValueError("single-spike encoding needs at least 2 time_steps")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; those that are newer than networks which do not use them are left out."""
        found: dict[str, Any] = handler(self)
        for field in ("levels", "time_weight"):
            if getattr(self, field) is None:
                found.pop(field, None)
        return found

    def sizes(self) -> Sizes:
        """The sizes to build with: the published ones where none are given."""
        published = architecture(self.architecture)
        return Sizes(
            widths=published.widths if self.widths is None else self.widths,
            classifier=published.classifier if self.classifier is None else self.classifier,
            classes=self.classes,
            image=self.image,
            dropout=self.dropout,
        )


def _neurons(config: NetworkConfig, once: bool) -> LIF:
    """A layer of neurons of a network."""
    return LIF(surrogate=config.surrogate.make(), once=once)


class _ChannelsLast(torch.autograd.Function):
    """Images with channels last in memory, which makes all convolutions after it faster.

    The gradient comes back in the layout that the images had: attack libraries `view` it.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.plain = images.is_contiguous()
        return images.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous() if ctx.plain else grad


def _pools(module: nn.Module, following: nn.Module | None) -> bool:
    """Whether a pool can be computed together with the spikes before it.

    It cannot where a hook would miss the spikes, nor for a subclass or an instance with a
    `forward` of its own, which is another layer.
    """
    return (
        type(module) is LIF
        and type(following) is nn.AvgPool2d
        and (following.kernel_size, following.stride, following.padding) == (2, 2, 0)
        and not following.ceil_mode
        and following.divisor_override is None
        and not any(
            hooks
            for m in (module, following)
            for hooks in (
                m._forward_hooks,
                m._forward_pre_hooks,
                m._backward_hooks,
                m._backward_pre_hooks,
                "forward" in vars(m),
            )
        )
    )


class Network(nn.Module):
    """An ANN or an SNN of some architecture.

    It maps images `[batch, channel, height, width]`, in pixel units of [0, 1] (any real value is
    taken), to logits `[batch, class]`. The state starts anew in every forward pass. Inside,
    tensors are `[time, batch, ...]`: layers without state run once over `time x batch`, and a
    static input stays at one step until the first spikes.

    `recompute`, a number of time steps or None, trades time for memory on long sequences: in
    evaluation mode a gradient keeps only the membranes between segments of that many steps, and
    runs each segment a second time in the backward pass.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        spiking = config.kind == "snn"
        once = config.encoding == "single-spike"
        neurons = partial(_neurons, config, once)
        layers = architecture(config.architecture).build(
            config.sizes(), neurons if spiking else nn.ReLU
        )
        self.features = layers.features
        self.classifier = layers.classifier
        # In a code of spike times the outputs have one too.
        self.output = neurons() if once else None
        self.time_steps = config.time_steps
        self.recompute: int | None = None
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", torch.tensor(config.mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).reshape(shape), persistent=False)
        self._names = {module: name for name, module in self.named_modules()}

    @property
    def kind(self) -> str:
        """`ann` or `snn`."""
        return self.config.kind

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.config.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""
        return self.config.image

    @property
    def stochastic(self) -> bool:
        """Whether the logits depend on random draws, which `keys` then fix."""
        return self.config.encoding in ("poisson", "quantised")

    def spiking_layers(self) -> dict[str, LIF]:
        """The LIF layers by name, in order of execution."""
        return {name: m for name, m in self.named_modules() if isinstance(m, LIF)}

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Logits `[batch, class]` of images `[batch, channel, height, width]`.

        Args:
            images: Pixels, in units of [0, 1].
            keys: The key of each image, int64 `[batch]`; only a stochastic encoding uses them,
                see `encoding.poisson`. By default image i of the batch has key i, and in training
                mode a new key at every pass.

        Raises:
            InputError: The images have another shape than the network was built for.
        """
        return self.run(images, keys=keys)[0]

    def run(
        self,
        images: Tensor,
        *,
        steps: int | None = None,
        state: State | None = None,
        keys: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Logits and final membranes, from given initial membranes and over given time steps.

        Args:
            images: Pixels `[batch, channel, height, width]`, in units of [0, 1].
            steps: The number of time steps of this run; by default `time_steps`.
            state: The initial membrane `[batch, ...]` of each spiking layer, by name; zero if
                absent. The read-out always starts at zero.
            keys: The keys of a stochastic encoding, as in `forward`.

        Raises:
            InputError: The images have another shape than the network was built for.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise InputError(
                f"the network takes images [batch, {', '.join(map(str, self.input_shape))}] "
                f"(channel, height, width), got {list(images.shape)}: choose data of that shape."
            )
        steps = self.time_steps if steps is None else steps
        if self.stochastic and keys is None:
            # Training on the same draws in every batch would teach the noise.
            fresh = torch.randint(2**62, (len(images),)) if self.training else None
            keys = torch.arange(len(images)) if fresh is None else fresh
        x = self._encoded(images, steps, keys)
        segment = self.recompute
        # Whether a neuron has fired before does not pass from one segment to the next.
        whole = self.training or self.output is not None or not torch.is_grad_enabled()
        if segment is None or segment >= steps or whole:
            logits, final = self._segment(x, steps, state)
        else:
            logits, final = self._segments(x, steps, state, segment)
        if self.config.readout == "mean":
            logits = logits / steps
        return logits, final

    def _encoded(self, images: Tensor, steps: int, keys: Tensor | None) -> Tensor:
        """The normalised input, `[time or 1, batch, channel, height, width]`."""
        if self.config.encoding == "quantised":
            assert keys is not None and self.config.levels is not None
            drawn = quantised(images, steps, self.config.levels, keys)
            return torch.stack([_ChannelsLast.apply((x - self.mean) / self.std) for x in drawn])
        x = _ChannelsLast.apply((images - self.mean) / self.std)
        if self.config.encoding == "poisson":
            assert keys is not None
            return poisson(x, steps, keys)
        if self.config.encoding == "single-spike":
            coded = single_spike(images, x, steps)
            return torch.stack([_ChannelsLast.apply(now) for now in coded])
        return direct(x)

    def _segments(
        self, x: Tensor, steps: int, state: State | None, length: int
    ) -> tuple[Tensor, State]:
        """The same as `_segment`, in segments that the backward pass computes again."""
        logits: Tensor | None = None
        for start in range(0, steps, length):
            some = min(length, steps - start)
            part = x if len(x) == 1 else x[start : start + some]
            # Nothing is drawn inside, so there is no random state to put back.
            added, state = checkpoint(
                self._segment, part, some, state, use_reentrant=False, preserve_rng_state=False
            )
            logits = added if logits is None else logits + added
        assert logits is not None and state is not None
        return logits, state

    def _segment(self, x: Tensor, steps: int, state: State | None) -> tuple[Tensor, State]:
        """The summed output current and the final membranes of some consecutive steps."""
        final: State = {}
        pooled = False
        modules = (*self.features, *self.classifier)
        for module, following in zip(modules, (*modules[1:], None), strict=True):
            if pooled:
                pooled = False
                continue
            pooled = _pools(module, following)
            x = self._step(steps, state, final, module, x, pooled)
        # The last layer is read without neurons: its current is accumulated, without leak or reset.
        logits = x.sum(0) * (steps // x.shape[0])
        if self.output is not None:
            assert self.config.time_weight is not None
            spikes = self._step(steps, state, final, self.output, x)
            # Of T steps, T - t are left after a spike at step t; a gradient estimator may stand in
            # for all steps by a mean.
            left = torch.arange(steps - 1, -1, -1, dtype=x.dtype, device=x.device)
            left = left if len(spikes) == steps else left.sum().reshape(1)
            logits = logits + self.config.time_weight * torch.tensordot(left, spikes, 1)
        return logits, final

    def _step(
        self,
        steps: int,
        state: State | None,
        final: State,
        module: nn.Module,
        x: Tensor,
        pooled: bool = False,
    ) -> Tensor:
        """One layer over time; with `pooled`, together with the pool that follows its spikes.

        It is not a closure, whose cycle would hold the graph until the garbage collector runs.
        """
        if isinstance(module, LIF):
            name = self._names[module]
            before = None if state is None else state.get(name)
            spikes: Tensor
            with_pool = (True,) if pooled else ()
            spikes, final[name] = module(x, steps, before, *with_pool)
            return spikes
        if isinstance(module, Residual):
            return module.run(x, partial(self._step, steps, state, final))
        if isinstance(module, FixedDropout):
            dropped: Tensor = module(x)
            return dropped
        out: Tensor = module(x.flatten(0, 1))
        if out.dim() == 4:
            # The strides of images with one channel do not tell their layout to a convolution.
            out = out.contiguous(memory_format=torch.channels_last)
        return torch.unflatten(out, 0, x.shape[:2])

    def clamp_(self) -> None:
        """Keep every threshold and leak in range; called after every optimizer step."""
        for layer in self.spiking_layers().values():
            layer.clamp_()
