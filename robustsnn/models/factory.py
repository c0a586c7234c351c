"""Networks that code of the user's own builds: `python.module:factory`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from robustsnn.common.users_code import UsersCodeError, users_code
from robustsnn.errors import InputError
from robustsnn.models.calling import frozen, uncompiled
from robustsnn.models.weights import load_weights


def from_factory(text: str, weights: Path | None = None) -> nn.Module:
    """The network of `python.module:factory`, in evaluation mode and frozen.

    Args:
        text: The module and its function that builds the network; an attribute that is a network
            already will do.
        weights: The file of its weights.

    Raises:
        InputError: The module or function does not exist, its code raises an exception, what it
            returns is not a network, or the weights do not fit.

    Examples:
        >>> from_factory("torch.nn:Identity")
        Identity()
    """
    module_name, _, attribute = text.partition(":")
    if module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").replace("/", ".").lstrip(".")
        raise InputError(f"{text!r} names a file: write {dotted}:{attribute}, without .py.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = _module(module_name, text)
    try:
        factory = getattr(module, attribute)
    except AttributeError as error:
        raise _not_found(text, error) from None
    # A network is callable too, with images, and must not be called here.
    ready = isinstance(factory, nn.Module) or not callable(factory)
    with users_code(repr(text), all_of_it=True):
        network = factory if ready else factory()
    if not isinstance(network, nn.Module):
        raise InputError(f"{text!r} returned {type(network).__name__}, not a torch.nn.Module.")
    network = uncompiled(network)
    if weights is not None:
        # The states of neurons have the shape of the last batch, and are made anew in each pass.
        states = [name for name, buffer in network.named_buffers() if buffer.numel() == 0]
        load_weights(network, weights, repr(text), without=states)
    with users_code(repr(text), all_of_it=True):
        return frozen(network)


def _module(name: str, text: str) -> ModuleType:
    """The module of a factory, which is run if it is not loaded."""
    try:
        with users_code(f"importing {name or 'the module'} for {text!r}", all_of_it=True):
            return importlib.import_module(name)
    except UsersCodeError as error:
        cause = error.__cause__
        # Something that the module imports may be missing too, which is its own mistake.
        missing = isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}.")
        if missing or (isinstance(cause, ValueError | ImportError) and not error.where):
            raise _not_found(text, cause) from None
        raise


def _not_found(text: str, error: BaseException | None) -> InputError:
    return InputError(f"cannot find {text!r} ({error}): give module:factory, importable from here.")
