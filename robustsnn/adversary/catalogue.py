"""Attacks by name or by file: those that ship in `attacks/`, and a user's own.

The name of an attack is the name of its file with dashes for underscores, so that a new attack
takes no more than a new file. A user's own file is used in the same way, by its path. Nothing here
imports torch by itself.
"""

from __future__ import annotations

from typing import Any

from robustsnn.adversary.contract import Attack
from robustsnn.common.content import module_names, object_named, summary
from robustsnn.common.installed import installed, package_of
from robustsnn.common.kinds import KINDS
from robustsnn.common.spec import build, parse_fields
from robustsnn.errors import InputError

#: The ending of a file that adapts another library; its attack is named without it.
ADAPTER = "_adapter"


def attack_names() -> list[str]:
    """The names of the attacks that ship and of those that other installed packages add.

    The name of a file is written with dashes; `x_adapter.py` is `x`.

    Examples:
        >>> "pgd" in attack_names()
        True
    """
    return sorted({*_modules(), *installed("attacks")})


def attack_summary(name: str) -> str:
    """The first line of an attack's description, read without importing the attack.

    Examples:
        >>> attack_summary("fgsm").partition(":")[0]
        'FGSM'
    """
    modules = _modules()
    if name not in modules:
        return f"of the package {package_of('attacks', name)}"
    return summary("attacks", modules[name])


def attack_class(name: str) -> type[Attack]:
    """The class of the attack of that name, or of the attack in that file.

    Raises:
        InputError: There is no such attack, or its class does not keep the protocol `Attack`.

    Examples:
        >>> attack_class("fgsm").__name__
        'FGSM'
    """
    kind: Any = object_named(name, "attacks", _modules(), "ATTACK", "attack")
    if not isinstance(kind, type):
        raise InputError(f"{name} defines no attack: end it with a line ATTACK = YourClass.")
    if "__call__" not in dir(kind):
        raise InputError(f"{name}: {kind.__name__} has no __call__: see docs/adding.md.")
    if getattr(kind, "kind", None) not in KINDS:
        raise InputError(f"{name}: {kind.__name__}.kind must be one of {', '.join(KINDS)}.")
    return kind


def load_attack(spec: str) -> Attack:
    """The attack that a specification describes.

    Args:
        spec: A name or the path of a `.py` file, followed by fields: `pgd`,
            `pgd:steps=20,step_size=2/255`, `torchattacks:MIFGSM:steps=5`,
            `transfer:pgd:steps=7`, `my/attack.py:strength=3`.

    Raises:
        InputError: There is no such attack, file or field, or a value has the wrong type or range.

    Examples:
        >>> load_attack("pgd:steps=20").steps
        20
    """
    name, _, rest = (part.strip() for part in spec.strip().partition(":"))
    kind: Any = attack_class(name)
    from_spec = getattr(kind, "from_spec", None)
    made: Attack = (
        build(kind, name, parse_fields(rest, name)) if from_spec is None else from_spec(rest)
    )
    return made


def _modules() -> dict[str, str]:
    return module_names("attacks", ADAPTER)
