"""The command `robustsnn` and its exit codes; large libraries are imported inside commands."""

from __future__ import annotations

import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import typer

from robustsnn.cli import evaluate, listing, reports, sweep, train
from robustsnn.cli.app import app
from robustsnn.common.printable import printable
from robustsnn.common.process import keep_freed_memory, let_idle_threads_sleep
from robustsnn.common.wording import READABLE
from robustsnn.errors import InputError

__all__ = ["app", "main"]

#: The modules that add their commands to `app` when they are imported.
COMMANDS = (evaluate, sweep, reports, train, listing)
#: With this set to 1, an error comes with its traceback.
DEBUG_VARIABLE = "ROBUSTSNN_DEBUG"
#: The exit code of a mistake of ours: EX_SOFTWARE of sysexits.h.
OURS = 70
#: What is said to be kept of a command that was interrupted.
KEPT = {
    **dict.fromkeys(
        ("evaluate", "compare", "crosscheck", "demo"),
        "; finished batches are kept: the same command resumes",
    ),
    "sweep": "; finished batches are kept: the same command resumes",
    "train": "; finished epochs are kept: the same command with --resume goes on",
}
REPORT_TO = "https://github.com/robustsnn/robustsnn/issues"


def main() -> None:
    """Run the command line.

    It exits with 0 if the work is done, 1 if a run is not verified or the output pipe is closed, 2
    for bad input and for what the system refuses, 3 if a run is verified in part, 70 for a mistake
    of ours, and 130 if it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a file in ASCII gets our signs in other words, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=READABLE)
    # Figures are drawn into files, so how they would be shown does not matter.
    os.environ.pop("MPLBACKEND", None)
    keep_freed_memory()
    let_idle_threads_sleep()
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(app)
    arguments = [_at_home(argument) for argument in arguments]
    if unwritable := [one for one in arguments if not one.isascii() and _is_not_text(one)]:
        shown = os.fsencode(unwritable[0]).decode("utf-8", "backslashreplace")
        return _fail(f"the argument {shown!r} is not UTF-8: rename the file, or name it by a link.")
    try:
        code = command(args=arguments, prog_name="robustsnn", standalone_mode=False)
    except InputError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        # Usage errors are compared by name, because their class differs between Typer's releases.
        if type(error).__name__ == "Abort":
            code = 130
        elif type(error).__name__ == "NoArgsIsHelpError":
            print(error)
            return 0
        elif not hasattr(error, "format_message"):
            return _last_resort(error)
        else:
            return _fail(_usage(error))
    if code == 130:
        kept = KEPT.get(next(iter(arguments), ""), "")
        print(f"robustsnn: interrupted{kept}.", file=sys.stderr)
    return int(code or 0)


def _at_home(argument: str) -> str:
    """An argument with its `~` expanded, which no shell does behind the `=` of an option."""
    option, equals, value = argument.partition("=")
    if argument.startswith("~"):
        return os.path.expanduser(argument)  # noqa: PTH111
    if equals and option.startswith("--") and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111
    return argument


def _is_not_text(argument: str) -> bool:
    """Whether an argument holds bytes that are not UTF-8, which no file of ours could hold."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return True
    return False


def _last_resort(error: Exception) -> int:
    """Say in one line what went wrong where nobody foresaw it, and return the exit code.

    What the system refuses and memory that runs out are nobody's mistake; all else is ours.
    """
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno is not None:
        named = "" if error.filename is None else f" {os.fsdecode(error.filename)[:200]!r}"
        reason = error.strerror or type(error).__name__
        return _fail(
            f"the system refuses{named or ' a file'}: {reason}; mend that, or name another place."
        )
    if _out_of_memory(error):
        said = " ".join(str(error).split())[:200] or "no more can be allocated"
        return _fail(f"memory ran out ({said}): take fewer or smaller images at a time.")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split())[:300]
    _fail(
        f"a mistake of RobustSNN, not of yours ({type(error).__name__}: {said}{where}): please "
        f"report it with the command at {REPORT_TO}; {DEBUG_VARIABLE}=1 prints the traceback."
    )
    return OURS


def _out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from robustsnn.common.users_code import out_of_memory

    return out_of_memory(error)


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "robustsnn"
    return f"{str(error.format_message()).rstrip('.')}. See {path} --help."


def _fail(message: str) -> int:
    print(f"robustsnn: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 2
