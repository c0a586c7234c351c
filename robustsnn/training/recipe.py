"""Recipes: YAML files, strictly validated, that say how a checkpoint came to be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustsnn.common.epsilon import parse_epsilon
from robustsnn.common.fields import first_of, said_of
from robustsnn.common.strict_yaml import line_of, read_yaml
from robustsnn.errors import InputError
from robustsnn.snn.network import LONGEST_SIDE, MOST_STEPS, NetworkConfig

Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


#: The methods that train an ANN or an SNN.
EITHER = ("gaussian", "adversarial")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conversion(_Strict):
    """How the trained ANN becomes the SNN that training starts from.

    `scale` multiplies the calibrated thresholds, and `percentile` is the one of calibration;
    `steps` and `images` are the time steps and the images of calibration; `leak` is the initial
    leak of every layer.
    """

    scale: Rate = 0.3
    percentile: Annotated[float, Field(gt=0, le=100)] = 99.7
    steps: Steps = 20
    images: Positive = 512
    leak: Annotated[float, Field(ge=0, le=1)] = 1.0


class Optimizer(_Strict):
    """The optimizer and its learning rate, which falls from `lr` to zero along a cosine."""

    name: Literal["adam", "sgd"] = "adam"
    lr: Rate = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


class Augmentation(_Strict):
    """A random crop after zero padding by `crop` pixels, and a random horizontal flip."""

    crop: Annotated[int, Field(ge=0, le=LONGEST_SIDE)] = 0
    flip: bool = False


class Hire(_Strict):
    """The settings of HIRE-SNN; see `robustsnn.training.hire`.

    `step` and `bound` are sizes in pixel units, as a paper writes them: `4/255`. `noise` is
    `crafted` for the method itself, and for its controls `none`, or `gaussian-linf` or
    `gaussian-l2`: normal noise of the same size in that norm, image by image.
    """

    periods: Steps = 2
    step: str = "8/255"
    bound: str = "8/255"
    order: Literal["free", "updated"] = "free"
    carry: Literal["reset", "detach"] = "reset"
    noise: Literal["crafted", "none", "gaussian-linf", "gaussian-l2"] = "crafted"

    @model_validator(mode="after")
    def _sizes(self) -> Hire:
        _check_sizes(self.step, self.bound)
        return self


class Gaussian(_Strict):
    """The settings of training on noisy images; see `robustsnn.training.gaussian`.

    `deviation` is the standard deviation of the noise in pixel units, as a paper writes it:
    `8/255`. The share `noisy_share` of every batch gets noise.
    """

    deviation: str
    noisy_share: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _sizes(self) -> Gaussian:
        _check_sizes(self.deviation)
        return self


class Adversarial(_Strict):
    """The settings of adversarial training; see `robustsnn.training.adversarial`.

    `epsilon` and `step` are sizes in pixel units, as a paper writes them: `8/255`. `step` is by
    default 1.25 epsilon for a single step, and 2.5 epsilon / steps for more. The loss is
    `clean_weight` times that of the clean images plus the rest times that of the adversarial ones.
    Each step is along the mean gradient over `draws` passes of a network that draws.
    """

    epsilon: str
    step: str | None = None
    steps: Steps = 1
    draws: Positive = 1
    random_start: bool = True
    clean_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _sizes(self) -> Adversarial:
        _check_sizes(self.epsilon, *(() if self.step is None else (self.step,)))
        return self


class Rewiring(_Strict):
    """How masks change during training; see `robustsnn.training.rewiring`.

    Every `every` updates each layer loses a share of its weights, which falls from `rate` to
    `last_rate` along a cosine over the whole of training, and as many grow elsewhere.
    """

    rate: Annotated[float, Field(gt=0, lt=1)] = 0.5
    last_rate: Annotated[float, Field(ge=0, lt=1)] = 0.005
    every: Positive = 200


class Sparsity(_Strict):
    """Which weights stay zero; see `robustsnn.training.masks`.

    `start` says where the masks come from: `random` draws them, `magnitude` keeps the largest
    weights of `init`, `held` keeps the zeros of `init`, and `predefined` takes fixed patterns.
    `density` is the share of the synaptic weights that is kept, which `held` takes from `init`.
    With `rewiring` the masks change during training, and without it they stay. With `pattern:
    channel` whole channels go, and the network that is saved is that much smaller; `widest` is then
    the largest share of its channels that a layer may keep. Most weights lie in linear layers and
    most operations in convolutions, so that without it little may be gained in time.
    """

    start: Literal["random", "magnitude", "held", "predefined"]
    density: Annotated[float, Field(gt=0, lt=1)] | None = None
    pattern: Literal["weight", "channel"] = "weight"
    widest: Annotated[float, Field(gt=0, le=1)] = 1.0
    rewiring: Rewiring | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Sparsity:
        if (self.start == "held") != (self.density is None):
            raise ValueError("density goes with every start but held, which has that of init")
        if self.rewiring is not None and self.start in ("held", "predefined"):
            raise ValueError(f"start: {self.start} holds its masks, so it takes no rewiring")
        if self.pattern == "channel" and self.start != "random":
            raise ValueError("pattern: channel starts at random")
        if self.widest < 1 and self.pattern != "channel":
            raise ValueError("widest goes with pattern: channel")
        return self


class Guidance(_Strict):
    """What a trained network teaches; see `robustsnn.training.guidance`.

    `teacher` is a zoo name, or a folder relative to the recipe. `attention` weighs the distance of
    the attention maps, and `distillation`, in [0, 1), the teacher's logits at `temperature`.
    """

    teacher: str
    attention: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 10.0
    distillation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    temperature: Rate = 4.0


def _check_sizes(*sizes: str) -> None:
    for size in sizes:
        try:
            parse_epsilon(size)
        except InputError as error:
            raise ValueError(str(error)) from None


class Recipe(_Strict):
    """How a checkpoint came to be: data, architecture, method, settings and seed.

    `init` names the checkpoint that training starts from: a zoo name, or a folder relative to the
    recipe. With `conversion` a spiking network is converted from it, which is an ANN then, and
    without it the weights are taken as they are. The method `conversion` does no more than that,
    for no epoch; `surrogate` trains an SNN from random weights, and its `conversion` calibrates
    thresholds on them. Adversarial training and training on Gaussian noise take an ANN or an SNN.
    `sparsity` goes with every method, `guidance` with the method `ann`. `holdout` is the number of
    training images that are kept out, for choosing settings; `train_images` is the number of images
    to train on, the first ones of the rest, and all of them by default. `dynamics` says whether the
    thresholds and leaks of an SNN are `learned`, the `thresholds` alone, or both `held` where
    training starts; a threshold that is held is the one of calibration, times `conversion.scale`.
    `data_fingerprint` is that of the training images, which other data are refused by; it does not
    change what is trained.
    """

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
    ]
    data: str
    method: Literal["ann", "conversion", "hybrid", "surrogate", "hire", "gaussian", "adversarial"]
    network: NetworkConfig
    init: str | None = None
    conversion: Conversion | None = None
    hire: Hire | None = None
    gaussian: Gaussian | None = None
    adversarial: Adversarial | None = None
    sparsity: Sparsity | None = None
    guidance: Guidance | None = None
    dynamics: Literal["learned", "thresholds", "held"] = "learned"
    optimizer: Optimizer = Optimizer()
    augmentation: Augmentation = Augmentation()
    epochs: Count
    batch_size: Positive = 64
    holdout: Count = 0
    train_images: Positive | None = None
    seed: Count = 0
    substitute: str | None = None
    data_fingerprint: str | None = None

    @model_validator(mode="after")
    def _fits_the_network(self) -> Recipe:
        kind, encoding = self.network.kind, self.network.encoding
        if kind == "ann" and self.dynamics != "learned":
            raise ValueError("dynamics goes with an SNN: an ANN has no thresholds and leaks")
        if self.epochs == 0 and self.dynamics != "learned":
            raise ValueError("dynamics goes with training: method conversion trains nothing")
        draws = encoding in ("poisson", "quantised")
        if self.adversarial is not None and self.adversarial.draws > 1 and not draws:
            raise ValueError("adversarial.draws goes with an encoding that draws")
        if self.hire is None:
            return self
        steps, periods = self.network.time_steps, self.hire.periods
        if steps % periods:
            raise ValueError(f"hire.periods {periods} does not divide time_steps {steps}")
        if encoding == "single-spike" and steps < 2 * periods:
            raise ValueError("a period of the single-spike encoding needs at least 2 time steps")
        if encoding == "single-spike" and self.hire.carry == "detach":
            # Whether a neuron has fired does not pass from one period to the next.
            raise ValueError("hire.carry: detach does not go with the single-spike encoding")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        kind = self.network.kind
        if self.method not in EITHER and (self.method == "ann") != (kind == "ann"):
            raise ValueError(f"method {self.method} does not train a {kind}")
        if kind == "snn" and (self.init is None) != (self.method == "surrogate"):
            needs = "starts from random weights: drop" if self.init else "of an SNN needs"
            raise ValueError(f"method {self.method} {needs} init")
        if self.method == "surrogate" and self.conversion is None:
            raise ValueError("method surrogate needs conversion, to calibrate thresholds")
        if (self.method == "conversion") != (self.epochs == 0):
            raise ValueError("epochs is 0 for method conversion, and at least 1 for all others")
        if self.method == "conversion" and self.conversion is None:
            raise ValueError("method conversion needs the section conversion")
        if kind == "ann" and self.conversion is not None:
            raise ValueError("an ANN takes no conversion")
        if self.guidance is not None and self.method != "ann":
            raise ValueError("guidance goes with method ann")
        if (
            self.init is None
            and self.sparsity is not None
            and self.sparsity.start
            in (
                "magnitude",
                "held",
            )
        ):
            raise ValueError(f"sparsity.start: {self.sparsity.start} needs init")
        for section in ("hire", "gaussian", "adversarial"):
            if (self.method == section) != (getattr(self, section) is not None):
                raise ValueError(
                    f"the {section} section goes with method {section}, and only with it"
                )
        return self

    @property
    def trained_by(self) -> str:
        """The method as checkpoints state it, which tells HIRE-SNN and its controls apart."""
        if self.hire is None or self.hire.noise == "crafted":
            return self.method
        return "periods" if self.hire.noise == "none" else f"periods-{self.hire.noise}"

    def digest(self) -> str:
        """The identity of the recipe: the sha256 of its canonical JSON."""
        # These fields are newer than checkpoints whose recipe does not have them; left out where
        # they are empty, they do not change their digest.
        found = self.model_dump(mode="json", exclude={"data_fingerprint"})
        if self.dynamics == "learned":
            del found["dynamics"]
        for section in ("gaussian", "adversarial", "sparsity", "guidance"):
            if found[section] is None:
                del found[section]
        if self.sparsity is not None and self.sparsity.widest == 1:
            del found["sparsity"]["widest"]
        if self.adversarial is not None and self.adversarial.clean_weight == 0:
            del found["adversarial"]["clean_weight"]
        if self.adversarial is not None and self.adversarial.draws == 1:
            del found["adversarial"]["draws"]
        if self.hire is not None and self.hire.noise == "crafted":
            del found["hire"]["noise"]
        canonical = json.dumps(found, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file.
        overrides: Values by dotted field name (`optimizer.lr`) that replace those of the file.

    Raises:
        InputError: The file is missing or malformed; the message names the line and the field.
    """
    document = document_of(path, overrides)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        first = first_of(error)
        location = [p for p in first["loc"] if isinstance(p, str | int)]
        field = ".".join(map(str, location)) or "recipe"
        raise InputError(
            f"{path}{line_of(path, location)}: {field}: {said_of(error, Recipe)}."
        ) from None


def document_of(path: Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a recipe as its file has them, with some of them replaced.

    The arguments are those of `load_recipe`.

    Raises:
        InputError: The file is missing, is not YAML or holds no mapping, or a field that is
            replaced lies in no section.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: a recipe is a mapping of fields to values.")
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        node = document
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"--set {dotted}: {parent!r} is not a section of {path}.")
        if not isinstance(node, dict):
            raise InputError(f"--set {dotted}: it is not in a section of {path}.")
        node[last] = value
    return document
