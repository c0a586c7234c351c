"""Where code of the user's own runs, and whose mistake an exception is.

A network, a factory, an attack or a data set of the user's own may raise anything. Here it becomes
one line that names the file and the line. An exception of ours keeps its traceback, since it is a
bug, and an interrupt stays an interrupt.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import sysconfig
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Literal

from robustsnn.errors import InputError

#: How the modules of the user's own files begin, which are loaded by their path.
USERS = "robustsnn_user_"
#: Where a library runs a network: its layers, its hooks, its gradient.
_RUN_BY = ("torch.nn.modules.module", "torch.autograd", "torch.jit", "torch._dynamo", "torch.fx")
#: What the messages of torch and of Python say when memory runs out.
_MEMORY = ("can't allocate memory", "out of memory")

Owner = Literal["ours", "library", "users"]


class UsersCodeError(InputError):
    """An exception of the user's own code, in one line.

    Args:
        what: What failed, such as `the network`.
        where: The file and the line, or the layer, that it failed in; empty if nothing says so.
        reason: The type and the text of the exception.
    """

    def __init__(self, what: str, where: str, reason: str) -> None:
        super().__init__(
            f"{what} failed{f' ({where})' if where else ''}: {reason}; mend it and run the same "
            "command again."
        )
        self.what, self.where, self.reason = what, where, reason

    def __reduce__(self) -> tuple[type[UsersCodeError], tuple[str, str, str]]:
        # It may come from another process.
        return type(self), (self.what, self.where, self.reason)

    @property
    def text(self) -> str:
        """The text of the exception without its type."""
        return self.reason.partition(": ")[2] or self.reason


@contextlib.contextmanager
def users_code(what: str, *, all_of_it: bool = False, network: Any = None) -> Iterator[None]:
    """Report in one line what code of the user's own raises inside the block.

    Args:
        what: What messages call that code.
        all_of_it: Whether the block does nothing but call it, so that every exception is its own.
            Otherwise an exception counts as its own if it left a function of the user's, or a
            layer of a library that is run for the user, and no function of ours after that.
        network: The network that the code belongs to, which has the names of its layers.

    Raises:
        UsersCodeError: The code raised an exception or asked to exit. Errors for lack of memory
            pass unchanged, because fewer images at a time may do.

    Examples:
        >>> with users_code("the factory", all_of_it=True):
        ...     raise KeyError("width")
        Traceback (most recent call last):
        robustsnn.common.users_code.UsersCodeError: the factory failed: KeyError: 'width'; ...
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error) or not (all_of_it or is_users(error)):
            raise
        raise UsersCodeError(what, where_of(error, network), reason_of(error)) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a CPU or an accelerator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY)


def reason_of(error: BaseException) -> str:
    """The type and the first line of an exception."""
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_users(error: BaseException) -> bool:
    """Whether an exception came out of the user's own code, or of a layer that it is made of."""
    frames = [(owner_of(frame), frame) for frame, _ in _frames(error.__traceback__)]
    ours = [place for place, (owner, _) in enumerate(frames) if owner == "ours"]
    if ours and frames[ours[-1]][1].f_code is handed_over.__code__:
        return True
    after = frames[ours[-1] + 1 :] if ours else frames
    if not after:
        return False
    owner, first = after[0]
    if owner == "library":
        run = str(first.f_globals.get("__name__", "")).startswith(_RUN_BY)
        return run or any(one == "users" for one, _ in after)
    # A function that was put in place of one of ours is not a network's or an attack's.
    return _is_of_file(first) or _is_method(first)


def handed_over(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function of the user's network, or of its library, from the middle of ours.

    A pass that is cut at its neurons calls them in place of the network. Whatever they raise is the
    network's own, although no layer or method of it may stand between.

    Args:
        function: The function.
        *args: What it is given by place.
        **kwargs: What it is given by name.

    Examples:
        >>> handed_over(max, [1, 3], default=0)
        3
    """
    return function(*args, **kwargs)


def through_users_file(error: BaseException) -> bool:
    """Whether an exception passed a function of a user's own attack, estimator or surrogate.

    It may have been raised in a function of ours that such a function called wrongly.
    """
    return any(_is_of_file(frame) for frame, _ in _frames(error.__traceback__))


def is_users_file(module: str) -> bool:
    """Whether a module is an attack, estimator or surrogate that was loaded by its path.

    Examples:
        >>> is_users_file("robustsnn_user_attack_0123"), is_users_file("robustsnn.attacks.pgd")
        (True, False)
    """
    return module.startswith(USERS)


def where_of(error: BaseException, network: Any = None) -> str:
    """The deepest place in the user's own files that an exception came from, or its layer.

    If it was raised by a library that was called there, the function of the library is named too.

    Args:
        error: The exception.
        network: The network whose layers have names, if there is one.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = list(_frames(error.__traceback__))
    for frame, line in reversed(frames):
        if owner_of(frame) == "users":
            return f"{frame.f_code.co_filename}, line {line}{_raised_in(frames, frame)}"
    for frame, _ in reversed(frames):
        module = frame.f_locals.get("self")
        if hasattr(module, "_modules") and hasattr(network, "named_modules"):
            named = {one: name for name, one in network.named_modules()}
            if module is not network and module in named:
                layer = f"in its layer {named[module]}, {type(module).__name__}"
                return f"{layer}{_raised_in(frames, frame)}"
    return ""


def _raised_in(frames: list[tuple[FrameType, int]], caller: FrameType) -> str:
    """The function of a library that raised an exception, as a part of a sentence.

    Empty if the caller raised it itself, or an operation that is not written in Python.
    """
    frame = frames[-1][0]
    name = str(frame.f_globals.get("__name__", ""))
    if frame is caller or owner_of(frame) != "library" or name == "torch.nn.modules.module":
        return ""
    return f", in {name}.{frame.f_code.co_qualname}"


def owner_of(frame: FrameType) -> Owner:
    """Whose code a frame runs: ours, that of an installed library, or the user's own."""
    name = str(frame.f_globals.get("__name__", ""))
    if name == "robustsnn" or name.startswith("robustsnn."):
        return "ours"
    if name.split(".")[0] in sys.stdlib_module_names and name != "__main__":
        return "library"
    return "library" if is_installed(frame.f_code.co_filename) else "users"


def is_installed(file: str) -> bool:
    """Whether a file belongs to Python or to an installed package.

    Examples:
        >>> is_installed(contextlib.__file__), is_installed("nets.py")
        (True, False)
    """
    packages = "site-packages" in file or "dist-packages" in file
    return packages or file.startswith(("<frozen", *_places()))


@functools.cache
def _places() -> tuple[str, ...]:
    """The folders of Python's own library."""
    paths = sysconfig.get_paths()
    return tuple(paths[name] + "/" for name in ("stdlib", "platstdlib") if paths.get(name))


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _is_of_file(frame: FrameType) -> bool:
    return is_users_file(str(frame.f_globals.get("__name__", "")))


def _is_method(frame: FrameType) -> bool:
    """Whether a frame runs a method of a class of the user's own."""
    code = frame.f_code
    owner = type(frame.f_locals.get(code.co_varnames[0])) if code.co_argcount else object
    for kind in owner.__mro__:
        held = vars(kind).get(code.co_name)
        function = getattr(held, "fget", None) or getattr(held, "__func__", held)
        if getattr(function, "__code__", None) is code:
            return kind.__module__.split(".")[0] != "robustsnn"
    return False
