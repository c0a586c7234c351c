"""How many passes an attack may take, as far as its settings say."""

from __future__ import annotations

from robustsnn.adversary.contract import Attack

#: What a backward pass costs next to a forward pass.
BACKWARD = 2.0
#: The passes of an attack that says nothing of its length.
UNKNOWN = 20.0


def passes_of(attack: Attack) -> float:
    """The passes that an attack may take for an image, with a backward pass counted as two.

    An attack that stops with an image once it is misclassified takes fewer. An attack of the
    user's own says as much as it has attributes: `steps`, `restarts`, `targets`, `queries`.

    Examples:
        >>> from robustsnn.adversary.catalogue import load_attack
        >>> passes_of(load_attack("pgd:steps=20"))
        63.0
        >>> passes_of(load_attack("square:queries=500"))
        501.0
    """

    def number(name: str, default: float) -> float:
        value = getattr(attack, name, None)
        return float(value) if isinstance(value, int | float) and value > 0 else default

    queries = number("queries", 0.0)
    if queries:
        return queries * number("restarts", 1.0) + 1.0
    steps = number("steps", 0.0)
    if not steps:
        return UNKNOWN if attack.kind not in ("none", "noise") else number("draws", 1.0)
    runs = number("restarts", 1.0) * number("targets", 1.0)
    return runs * (steps * (1.0 + BACKWARD) + 1.0) + 2.0
