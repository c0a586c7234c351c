"""The one error that means: what was given cannot be used, and here is the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    r"""A mistake in what the user gave.

    The message is one line that names the thing and the remedy; the command line
    prints it on stderr and exits with 2.

    Examples:
        >>> str(InputError("no suite file x.yaml:\n give the path of an existing one."))
        'no suite file x.yaml: give the path of an existing one.'
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not registered, with the nearest names.

    Args:
        kind: What was looked up, such as "attack".
        name: The name that was not found.
        known: Every name that would have been found.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    return InputError(f"no {kind} named {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def installing(extra: str) -> str:
    """How to install what an extra holds, as a part of a sentence; no index has RobustSNN.

    Args:
        extra: The name of the extra.

    Examples:
        >>> installing("peers")
        "pip install -e '.[peers]' in a clone of RobustSNN"
    """
    return f"pip install -e '.[{extra}]' in a clone of RobustSNN"
