"""YAML from strangers: plain values only, no aliases, no duplicate keys, limited size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from robustsnn.errors import InputError

LARGEST_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """A loader that refuses aliases, which can expand without end, and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed here", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The document in a YAML file.

    Raises:
        InputError: There is no such file, or it is too large or malformed; the message names
            the line.
    """
    text = _text(path)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise InputError(f"{path}{where}: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML ({error}).") from None


def line_of(path: Path, location: Sequence[str | int]) -> str:
    """The text `, line N` for the field at a location of a YAML file, or for its nearest parent.

    It is empty if the file cannot be read.

    Args:
        path: The file.
        location: The keys and positions from the root; the search stops at the first one that is
            not in the file.
    """
    try:
        node = yaml.compose(_text(path), Loader=_Loader)
    except (yaml.YAMLError, InputError, RecursionError):
        return ""
    line: int | None = None
    for part in location:
        found = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value == str(part):
                    found, line = value, key.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part < len(node.value):
                found = node.value[part]
                line = found.start_mark.line
        if found is None:
            break
        node = found
    return "" if line is None else f", line {line + 1}"


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"no file {path}: name a YAML file.")
    if path.stat().st_size > LARGEST_BYTES:
        raise InputError(f"{path} is larger than {LARGEST_BYTES:,} bytes: name a smaller file.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
