"""What was found in a network, and which of it estimators reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from robustsnn.common.wording import count, listing


@dataclass
class Found:
    """A layer of neurons that was found.

    Args:
        name: The name of the layer in the network.
        library: The library and its version.
        kind: The kind of neuron.
        leak: The leak, in words.
        reset: What a spike does, in words.
        steps: The number of time steps; 0 before it is known.
        why_not: Why estimators do not reach it; empty if they do.
    """

    name: str
    library: str
    kind: str
    leak: str = ""
    reset: str = ""
    steps: int = 0
    why_not: str = ""


@dataclass
class Reach:
    """What was found in a network; all copies of the network share it.

    Args:
        layers: The layers, by name; in the order in which they run, once that was seen.
        unused: The layers that are in the network and do nothing in a pass.
        opted_out: Whether the user asked that neurons be left alone.
        checked: Whether the self-check was made.
        steps_said: Whether the user said how many time steps there are.
        encoding: How an image becomes input over time, if that was seen: `direct`, or empty.
        native: Whether the library gives a gradient of its own in evaluation mode.
        checks: What the self-check measured, by name.
        check: The self-check, which a network makes by itself at its first gradient if nobody has
            made it.
        original: The network that copies have not been compared with yet.
    """

    layers: dict[str, Found] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    opted_out: bool = False
    checked: bool = False
    steps_said: bool = False
    encoding: str = ""
    native: bool = True
    checks: dict[str, Any] = field(default_factory=dict)
    check: Callable[..., None] | None = field(default=None, repr=False)
    original: Any = field(default=None, repr=False)

    @property
    def reached(self) -> list[Found]:
        """The layers that estimators reach."""
        return [one for one in self.layers.values() if not one.why_not and not self.opted_out]

    @property
    def steps(self) -> int:
        """The number of time steps of the layer that has most of them; 0 before it is known."""
        return max((one.steps for one in self.layers.values()), default=0)

    @property
    def complete(self) -> bool:
        """Whether estimators reach every layer."""
        return len(self.reached) == len(self.layers)

    def in_order(self, names: list[str]) -> None:
        """List the layers in the order in which they run, and apart those that do not.

        Args:
            names: The names of the layers that run, in that order.
        """
        self.unused = [name for name in self.layers if name not in names]
        self.layers = {name: self.layers[name] for name in names if name in self.layers}

    def leave_out(self, names: list[str], why: str) -> None:
        """Let the library differentiate those layers itself.

        Args:
            names: The names of the layers.
            why: Why, as a part of a sentence; what is known already is kept.
        """
        for name in names:
            self.layers[name].why_not = self.layers[name].why_not or why

    @property
    def sentence(self) -> str:
        """One line on what was found and reached."""
        found = list(self.layers.values())
        idle = f"{count(len(self.unused), 'layer')} never called" if self.unused else ""
        if not found:
            return f"neurons were found, {idle}"
        libraries = listing(_distinct([one.library for one in found]))
        kinds = listing(_distinct([one.kind for one in found]))
        leaks = listing(_distinct([one.leak for one in found if one.leak]))
        resets = listing(_distinct([one.reset for one in found if one.reset]))
        parts = [f"{count(len(found), 'layer')} of {kinds}"]
        if leaks:
            parts.append(f"leak {leaks}")
        if resets:
            parts.append(resets)
        if self.steps:
            hint = " (if it takes one step a call, say how many: steps=8)"
            alone = self.steps == 1 and not self.steps_said
            parts.append(count(self.steps, "time step") + (hint if alone else ""))
        parts.append(f"estimators reach {len(self.reached)} of {count(len(found), 'layer')}")
        if idle:
            parts.append(idle)
        return f"{libraries}: {', '.join(parts)}"

    @property
    def caution(self) -> str:
        """Why estimators do not reach every layer; empty if they do."""
        if self.complete:
            return ""
        said = f"Estimators reach {len(self.reached)} of {count(len(self.layers), 'layer')}"
        if self.opted_out:
            return f"{said} of neurons, because --from none left them to their library."
        reasons = [f"{one.name}: {one.why_not}" for one in self.layers.values() if one.why_not]
        return (
            f"{said} of neurons; the others keep the gradient of their library "
            f"({'; '.join(reasons)})."
        )

    def row(self) -> dict[str, Any]:
        """What was found, as the manifest holds it."""
        return {
            "sentence": self.sentence,
            "reached": len(self.reached),
            "left_alone": self.opted_out,
            "unused": list(self.unused),
            "layers": [vars(one) for one in self.layers.values()],
            "checks": dict(self.checks),
        }


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))
