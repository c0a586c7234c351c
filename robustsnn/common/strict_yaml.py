"""YAML from strangers: plain values only, no aliases, no duplicate keys, bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from robustsnn.errors import InputError

LARGEST_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Refuses aliases, which can expand without end, and keys given twice."""

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
        InputError: No such file, too large, or malformed; the message names the line.
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
    """`, line N` of the field at that location of a YAML file, or of its nearest parent.

    Args:
        path: The file.
        location: Keys and positions from the root; what is not in the file is passed over.
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
        raise InputError(f"{path} is larger than {LARGEST_BYTES:,} bytes: not a file of this kind.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
