"""Weights as people save them: state dicts, plain or wrapped, read without running code.

A file is read by torch's restricted unpickler, by safetensors or by NumPy without pickles. What
lies next to the weights (hyperparameters, metrics, paths) is not used: objects of types that are
common there are read as empty stand-ins, and any other type is refused with its name.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustsnn.common.files import expanded
from robustsnn.errors import InputError

#: The names under which training scripts store the weights in a file, the most usual one first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
#: Other such names. All of them are prefixes of keys too, where a module holds the network.
MORE_WRAPPERS = ("network", "model_state", "net_state_dict", "weights", "params", "module", "snn")
#: What DataParallel and torch.compile put before the names, and where scripts keep a network.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "snn.")
#: Prefixes that torch puts in, which may stand in the middle of a name as well.
_TORCH_PREFIXES = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")
#: How many keys a message lists.
_LISTED = 6


class _Unused:
    """Stands for an object next to the weights; it ignores everything it is given."""

    def __new__(cls, *args: object, **kwargs: object) -> _Unused:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...


def _no_items(*args: object) -> list[object]:
    """Stands for a queue, which is filled like a list."""
    return []


def _no_entries(*args: object) -> dict[object, object]:
    """Stands for a dict with a default, which is filled like a dict."""
    return {}


#: Types that hyperparameters and metrics have; none of them is made, whatever is in the file.
_UNUSED = (
    *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal"),
    *("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta"),
    *("datetime.timezone", "fractions.Fraction", "pathlib.Path", "pathlib.PurePath"),
    *(
        f"pathlib{part}.{kind}"
        for part in ("", "._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    *("easydict.EasyDict", "addict.addict.Dict", "ml_collections.config_dict.ConfigDict"),
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    *(
        f"omegaconf.{part}"
        for part in ("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata")
    ),
    *("omegaconf.base.Metadata", "omegaconf.nodes.AnyNode", "typing.Any"),
)


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file by name, the wrapper that holds them taken off.

    The file is a safetensors file, an `.npz` archive, or what `torch.save` wrote: a state dict, or
    a dict that holds one under a name such as `state_dict`, `model_state_dict`, `model` or `net`,
    next to anything. No code in the file is run.

    Args:
        path: The file; `~` stands for the home folder.

    Raises:
        InputError: The file is missing or truncated, holds no tensors by name or several sets of
            them, or would run code.
    """
    found = _sets_of(expanded(path))
    if len(found) > 1:
        listed = " and ".join(repr(name) for name in found)
        raise InputError(
            f"{path} holds several sets of weights ({listed}): save the one that is meant with "
            "torch.save(model.state_dict(), file)."
        )
    return next(iter(found.values()))


def load_weights(
    network: nn.Module, path: Path | str, owner: str, *, without: Collection[str] = ()
) -> None:
    """Load the weights of a file into a network, whatever prefix its keys have.

    Args:
        network: The network, which is changed.
        path: The file, as for `read_state_dict`.
        owner: What messages call the network.
        without: Names in the network's state dict that are not weights, such as the membranes of
            the last batch: they are neither needed in the file nor taken from it.

    Raises:
        InputError: The file cannot be read, or its tensors do not fit the network.
    """
    wanted = {name: t for name, t in network.state_dict().items() if name not in without}
    sets = _sets_of(expanded(path))
    named = {key: renamed(tensors, wanted) for key, tensors in sets.items()}
    fitting = {key: t for key, t in named.items() if t.keys() >= wanted.keys()} or named
    if len(fitting) > 1:
        listed = " and ".join(repr(key) for key in fitting)
        raise InputError(
            f"{path} holds several sets of weights ({listed}): save the one that is meant with "
            "torch.save(model.state_dict(), file)."
        )
    tensors = {k: t for k, t in next(iter(fitting.values())).items() if k not in without}
    _check_fit(tensors, wanted, f"{path} does not fit {owner}")
    try:
        network.load_state_dict(tensors, strict=not without)
    except Exception as error:
        # A network may load its state by code of its own, which may raise anything.
        raise InputError(f"{path} does not fit {owner}: {error}") from None


def renamed(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The tensors under the names that a network has for them, as far as prefixes differ.

    Args:
        tensors: The tensors by name.
        wanted: The names in the state dict of the network.

    Examples:
        >>> renamed({"module.net.0.bias": torch.zeros(1)}, {"0.bias"})
        {'0.bias': tensor([0.])}
        >>> renamed({"0.bias": torch.zeros(1)}, {"net.0.bias"})
        {'net.0.bias': tensor([0.])}
    """
    if not wanted or tensors.keys() >= set(wanted):
        return dict(tensors)
    fitting = [n for n in _namings(list(tensors), wanted) if set(n.values()) >= set(wanted)]
    if not fitting:
        return without_prefix(tensors)
    first, *others = fitting
    if len(first) < len(tensors) and any(other.keys() != first.keys() for other in others):
        listed = ", ".join(sorted({_head(names) for names in fitting}))
        raise InputError(
            f"the file holds the network several times ({listed}): save the one that is meant."
        )
    return {first[old]: tensor for old, tensor in tensors.items() if old in first}


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the known prefixes that all of their names share.

    Examples:
        >>> list(without_prefix({"module._orig_mod.a": torch.zeros(1)}))
        ['a']
    """
    found = dict(tensors)
    while found:
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in found)), None)
        if prefix is None or prefix in found:
            break
        found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    return found


def _namings(keys: list[str], wanted: Collection[str]) -> Iterator[dict[str, str]]:
    """Ways to rename keys, as old to new name; a key that is absent is not part of the network."""
    plain = {_TORCH_PREFIXES.sub("", name): name for name in wanted}
    # Without what torch puts in, on both sides: DataParallel or compile around any part.
    bare = {key: _TORCH_PREFIXES.sub("", key) for key in keys}
    if len(set(bare.values())) == len(bare) and len(plain) == len(wanted):
        yield {key: plain.get(name, name) for key, name in bare.items()}
    # Without a prefix that all keys share; other keys, as of a loss, only beside a known one.
    for head in _heads(bare.values()):
        inside = {k: n.removeprefix(head) for k, n in bare.items() if n.startswith(head)}
        if len(inside) == len(bare) or any(head.endswith(known) for known in PREFIXES):
            yield {key: plain.get(name, name) for key, name in inside.items()}
    # With one that all names of the network share, and that the file lacks.
    for head in _heads(plain):
        if all(name.startswith(head) for name in plain):
            added = {key: f"{head}{name}" for key, name in bare.items()}
            yield {key: plain.get(name, name) for key, name in added.items()}


def _head(names: Mapping[str, str]) -> str:
    """The prefix that a renaming takes off."""
    old, new = next(iter(names.items()))
    return old.removesuffix(new) or old


def _heads(names: Collection[str] | Any) -> list[str]:
    """Every prefix that ends with a dot, the shortest first."""
    heads: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(len(parts), 4)):
            heads[".".join(parts[:depth]) + "."] = None
    return sorted(heads, key=lambda head: head.count("."))


def _check_fit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Refuse tensors under other names or with other shapes than a network has."""
    found = f"keys found: {_listed(tensors)}; keys of the network: {_listed(wanted)}"
    # Buffers that torch fills in where an older file lacks them.
    missing = [k for k in wanted if k not in tensors and not k.endswith(".num_batches_tracked")]
    if missing:
        raise InputError(f"{what}: it lacks {_listed(missing)}; {found}.")
    extra = [k for k in tensors if k not in wanted]
    if extra:
        raise InputError(f"{what}: it also holds {_listed(extra)}; {found}.")
    for name, tensor in wanted.items():
        given = tensors.get(name)
        if not isinstance(given, Tensor) or not isinstance(tensor, Tensor) or is_lazy(tensor):
            continue
        if tensor.is_floating_point() and not given.is_floating_point():
            raise InputError(
                f"{what}: {name!r} is {str(given.dtype).removeprefix('torch.')} in the file, and "
                "weights are real floats."
            )
        if given.shape != tensor.shape:
            raise InputError(
                f"{what}: {name!r} has shape {list(given.shape)} in the file and "
                f"{list(tensor.shape)} in the network."
            )


def _listed(names: Collection[str]) -> str:
    shown = [repr(name) for name in list(names)[:_LISTED]]
    if len(names) > _LISTED:
        shown.append(f"... ({len(names)} in all)")
    return ", ".join(shown) or "none"


# --- files ---------------------------------------------------------------------------------


def _sets_of(path: Path) -> dict[str, dict[str, Tensor]]:
    """The sets of weights that a file holds by where they lie in it; at least one."""
    if not path.is_file():
        raise InputError(f"no file {path}: name a state dict.")
    try:
        if path.suffix.lower() == ".safetensors" or _is_safetensors(path):
            return {"": load_tensors(path.read_bytes())}
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {"": {name: torch.from_numpy(arrays[name]) for name in arrays.files}}
    except (SafetensorError, ValueError, KeyError, TypeError, OSError, EOFError) as error:
        raise InputError(f"{path} is not a {path.suffix[1:]} file ({error}).") from None
    loaded = _unpickled(path)
    found = dict(_candidates(loaded))
    if found:
        return found
    if isinstance(loaded, Mapping):
        raise InputError(
            f"{path} holds no tensors by name; keys found: {_listed([*map(str, loaded)])}: save "
            "the weights with torch.save(model.state_dict(), file)."
        )
    raise InputError(
        f"{path} holds {type(loaded).__name__.removeprefix('_')}, not tensors by name: save the "
        "weights with torch.save(model.state_dict(), file)."
    )


def _is_safetensors(path: Path) -> bool:
    """Whether a file of another name begins as safetensors files do: a length, then JSON."""
    with path.open("rb") as file:
        return file.read(10)[8:] == b'{"'


def _candidates(loaded: object, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """State dicts in what was loaded; under known names if there are any, else under any name."""
    if not isinstance(loaded, Mapping) or depth > 3:
        return
    tensors = _tensors(loaded)
    if tensors is not None:
        yield "", tensors
        return
    known = [name for name in WRAPPERS if name in loaded]
    known = known or [name for name in MORE_WRAPPERS if name in loaded]
    for names in (known, [name for name in loaded if name not in known]):
        found = [
            (f"{name}/{inner}".rstrip("/"), tensors)
            for name in names
            for inner, tensors in _candidates(loaded[name], depth + 1)
        ]
        if found:
            yield from found
            return


def _tensors(loaded: Mapping[Any, Any]) -> dict[str, Tensor] | None:
    """A dict as tensors by name; None if it is something else."""
    found: dict[str, Tensor] = {}
    for name, value in loaded.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        # The state that a module keeps beside its tensors may be of any type.
        if not isinstance(name, str) or not (
            isinstance(value, Tensor) or name.endswith("_extra_state")
        ):
            return None
        found[name] = value
    return found or None


def _unpickled(path: Path) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_safe()):
            # Torch warns of pickles that it then refuses; the error below is enough.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises many types of error on a foreign file; only two have another remedy.
        if "TorchScript" in str(error):
            raise InputError(
                f"{path} is a TorchScript archive, which is a program: save its weights with "
                "torch.save(torch.jit.load(file).state_dict(), other_file)."
            ) from None
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        kind = f"it holds a {refused[1]}" if refused else type(error).__name__
        raise InputError(
            f"{path} is not a plain state dict ({kind}): it is truncated, foreign, or a pickle "
            "that would run code, which is refused; save it with torch.save(model.state_dict(), "
            "file)."
        ) from None


def _safe() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What the restricted unpickler may make beyond tensors: NumPy's values, and stand-ins."""
    core = importlib.import_module(
        "numpy._core.multiarray" if np.__version__ >= "2" else "numpy.core.multiarray"
    )
    safe: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [np.ndarray, np.dtype]
    safe += [
        (getattr(core, name), f"numpy.{room}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for room in ("_core", "core")
    ]
    kinds = importlib.import_module("numpy.dtypes")
    safe += [getattr(kinds, name) for name in dir(kinds) if name.endswith("DType")]
    safe += [(_Unused, name) for name in _UNUSED]
    safe += [(_no_items, "collections.deque"), (_no_entries, "collections.defaultdict")]
    # The default of a dict is named by its type; pickles of protocol 2 have the older name.
    plain = ("list", "dict", "int", "float", "str", "tuple", "bool", "complex", "frozenset")
    rooms = ("builtins", "__builtin__")
    safe += [(_Unused, f"{room}.{name}") for room in rooms for name in plain]
    return safe
