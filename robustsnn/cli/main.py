"""The command `robustsnn` and its exit codes; large libraries are imported inside commands."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import typer

from robustsnn.cli import evaluate, listing, reports, sweep, train
from robustsnn.cli.app import app
from robustsnn.common.process import keep_freed_memory, let_idle_threads_sleep
from robustsnn.common.wording import READABLE
from robustsnn.errors import InputError

__all__ = ["app", "main"]

#: The modules that add their commands to `app` when they are imported.
COMMANDS = (evaluate, sweep, reports, train, listing)


def main() -> None:
    """Run the command line.

    It exits with 0 if the work is done, 1 if a run is not verified or the output pipe is closed, 2
    for bad input, and 130 if it was interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal or a file in ASCII gets our signs in other words, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=READABLE)
    keep_freed_memory()
    let_idle_threads_sleep()
    sys.exit(_main(sys.argv[1:]))


def _main(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(app)
    arguments = [_at_home(argument) for argument in arguments]
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
            raise
        else:
            return _fail(_usage(error))
    if code == 130:
        print(
            "robustsnn: interrupted; finished batches are kept: the same command resumes.",
            file=sys.stderr,
        )
    return int(code or 0)


def _at_home(argument: str) -> str:
    """An argument with its `~` expanded, which no shell does behind the `=` of an option."""
    option, equals, value = argument.partition("=")
    if argument.startswith("~"):
        return os.path.expanduser(argument)  # noqa: PTH111
    if equals and option.startswith("--") and value.startswith("~"):
        return f"{option}={os.path.expanduser(value)}"  # noqa: PTH111
    return argument


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "robustsnn"
    return f"{str(error.format_message()).rstrip('.')}. See {path} --help."


def _fail(message: str) -> int:
    print(f"robustsnn: {' '.join(message.split())}", file=sys.stderr)
    return 2
