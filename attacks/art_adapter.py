"""The attacks of the Adversarial Robustness Toolbox that take a norm and an epsilon, by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from robustsnn.adversary.peers import check_norm, check_option, count_classes, craft, library
from robustsnn.adversary.threat import ThreatModel
from robustsnn.adversary.victim import Victim
from robustsnn.common.kinds import NORMS
from robustsnn.common.randomness import Rng
from robustsnn.common.spec import parse_fields, parse_value
from robustsnn.errors import InputError, unknown

# These are set from the victim, the threat model and the form of the call, never by the user.
_GIVEN = ("estimator", "norm", "eps", "targeted", "verbose", "summary_writer")
# One has another norm, one is for another framework, and one starts processes.
_REFUSED = ("Wasserstein", "ProjectedGradientDescentTensorFlowV2", "AutoAttack")
# The norms as ART writes them.
_ORDER = {"Linf": np.inf, "L2": 2}


@dataclass(frozen=True)
class Art:
    """One attack of ART, with the library's own defaults except for the step.

    If `eps_step` is not given, it is 2 epsilon in `AutoProjectedGradientDescent`, as APGD
    prescribes, and keeps ART's ratio of 0.1 to its epsilon of 0.3 in the others. The attack works
    on a micro-batch at a time under a forked generator that is seeded from (seed, image ids).

    Args:
        name: The name as ART spells it, such as `AutoProjectedGradientDescent`.
        options: Its other arguments, with their values as written.

    Raises:
        InputError: ART is not installed, or has no such attack or argument.

    Source: Nicolae et al., Adversarial Robustness Toolbox, arXiv 1807.01069.
    """

    kind: ClassVar[str] = "fixed-epsilon"
    norms: ClassVar[tuple[str, ...]] = NORMS
    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        self._arguments()

    @classmethod
    def from_spec(cls, text: str) -> Art:
        """The attack of the text after `art:`, such as `SquareAttack:max_iter=100`."""
        name, _, rest = text.partition(":")
        if not name:
            raise InputError(
                "art needs the name of an attack, such as art:AutoProjectedGradientDescent."
            )
        return cls(name.strip(), tuple(parse_fields(rest, f"art:{name}").items()))

    @property
    def steps(self) -> int | None:
        """The number of steps, if the attack has one."""
        default = _parameters(self.name).get("max_iter")
        given = self._arguments().get("max_iter", default and default.default)
        return None if given is None else int(given)

    @property
    def restarts(self) -> int | None:
        """The number of random starts, if the attack has one."""
        default = _parameters(self.name).get("nb_random_init")
        given = self._arguments().get("nb_random_init", default and default.default)
        return None if given is None else max(1, int(given))

    @property
    def gradient_free(self) -> bool:
        """Whether the attack follows no gradient."""
        return self.name == "SquareAttack"

    @property
    def fewest_classes(self) -> int:
        """The fewest classes of a network that its loss can be computed for."""
        return 3 if self._arguments().get("loss_type") == "difference_logits_ratio" else 2

    def __call__(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: ThreatModel, rng: Rng
    ) -> Tensor:
        """Proposed images, `[batch, ...]`.

        Raises:
            InputError: The pixel range is not that of the attack, ART does not know the device,
                or the attack fails on the network.
        """
        owner = f"art:{self.name}"
        check_norm(owner, threat.norm, self.norms)
        if images.device.type not in ("cpu", "cuda"):
            raise InputError(f"{owner} runs on cpu or cuda, not on {images.device}.")
        if len(images) == 0:
            return images.clone()
        classes = count_classes(victim, images)
        classification = library("art.estimators.classification", "adversarial-robustness-toolbox")

        def run(network: nn.Module, images: Tensor, labels: Tensor, seed: int) -> Tensor:
            classifier = classification.PyTorchClassifier(
                model=network,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(images.shape[1:]),
                nb_classes=classes,
                clip_values=(0.0, 1.0),
                device_type="cpu" if images.device.type == "cpu" else "gpu",
            )
            arguments = {**self._defaults(threat), **self._arguments()}
            attack = _attack(self.name)(classifier, **arguments)
            found = attack.generate(images.float().cpu().numpy(), labels.cpu().numpy())
            return torch.from_numpy(np.asarray(found))

        return craft(owner, victim, images, labels, threat, rng, run)

    def _defaults(self, threat: ThreatModel) -> dict[str, Any]:
        parameters = _parameters(self.name)
        values: dict[str, Any] = {"norm": _ORDER[threat.norm], "eps": threat.radius}
        if "eps_step" in parameters:
            ratio = parameters["eps_step"].default / parameters["eps"].default
            auto = self.name == "AutoProjectedGradientDescent"
            values["eps_step"] = threat.radius * (2 if auto else ratio)
        if "verbose" in parameters:
            values["verbose"] = False
        return values

    def _arguments(self) -> dict[str, Any]:
        """The options that were given, in the types of the library's own defaults."""
        owner = f"art:{self.name}"
        parameters = _parameters(self.name)
        free = [p for p in parameters if p not in _GIVEN]
        values = {}
        for option, text in self.options:
            if option in _GIVEN:
                raise InputError(f"{owner}: {option} comes from the evaluation, drop it.")
            if option not in free:
                raise unknown(f"field of {owner}", option, free)
            default = parameters[option].default
            kind = str if default is None else type(default)
            values[option] = parse_value(text, kind, f"{owner}: {option}")
            check_option(owner, option, values[option], default)
        return values


def accepted() -> list[str]:
    """The attacks of ART that this adapter takes."""
    evasion = library("art.attacks.evasion", "adversarial-robustness-toolbox")
    return sorted(
        name
        for name, kind in vars(evasion).items()
        if isinstance(kind, type)
        and name not in _REFUSED
        and {"estimator", "norm", "eps"} <= set(inspect.signature(kind).parameters)
    )


def _attack(name: str) -> Any:
    if name not in accepted():
        raise unknown("attack of ART with a norm and an epsilon", name, accepted())
    return getattr(library("art.attacks.evasion", "adversarial-robustness-toolbox"), name)


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(_attack(name)).parameters)


ATTACK = Art
