"""The `guardlit` command: finds the subcommand and runs it.

Only the standard library is imported here, so that help, the version and a mistyped command answer at once; the
seconds that torch and Lightning take to import are spent once there is something to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module

from guardlit.commands import COMMANDS
from guardlit.errors import GuardlitError, did_you_mean

USAGE_ERROR = 2
INTERRUPTED = 128 + 2  # as shells report SIGINT
BROKEN_PIPE = 128 + 13  # as shells report SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0, 2 for a mistake of the user (said in one line on stderr) and 130 when interrupted. Any other
        exception is a bug and passes through.
    """
    # Lightning's launchers start further processes from sys.argv: what is parsed and what they see must agree
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    arguments = sys.argv[1:]
    if not arguments:
        print(_help(), file=sys.stderr)
        return USAGE_ERROR
    try:
        code = _answer(arguments)
        sys.stdout.flush()  # here, so that a closed pipe is noticed here
    except GuardlitError as error:
        return _fail(f"guardlit {arguments[0]}", " ".join(str(error).split()))
    except KeyboardInterrupt:
        print(f"\nguardlit {arguments[0]}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its exit
        return BROKEN_PIPE
    return code


def _answer(arguments: list[str]) -> int:
    first = arguments[0]
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first in ("-V", "--version"):
        from guardlit import __version__  # reads the metadata of the installation

        print(f"guardlit {__version__}")
        return 0
    if first.startswith("-"):
        return _fail("guardlit", f"found {first!r} where the command belongs: guardlit COMMAND [options]")
    if first not in COMMANDS:
        return _fail("guardlit", f"unknown command {first!r}: {did_you_mean(first, COMMANDS, 'commands are')}")
    _load(first)(arguments)
    return 0


def _load(command: str) -> Callable[[list[str]], object]:
    run: Callable[[list[str]], object] = import_module(f"guardlit.commands.{COMMANDS[command][1]}").main
    return run


def _fail(program: str, message: str) -> int:
    print(f"{program}: error: {message}", file=sys.stderr)
    return USAGE_ERROR


def _help() -> str:
    width = max(map(len, [*COMMANDS, "--version"])) + 2
    return "\n".join(
        [
            "usage: guardlit COMMAND [options]",
            "",
            "GRPO-Guard for text-to-image flow models, on PyTorch Lightning.",
            "",
            "commands:",
            *(f"  {name:<{width}}{summary}" for name, (summary, _) in COMMANDS.items()),
            "",
            "options:",
            f"  {'--help':<{width}}this text; `guardlit COMMAND --help` lists a command's options",
            f"  {'--version':<{width}}the version",
        ]
    )
