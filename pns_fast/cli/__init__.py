"""The command line ``pns-fast``: a module a command. Torch is imported inside them, so that ``--help`` is instant."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Sequence

from .. import __version__
from . import info, plant, plot, report, reproduce, sweep, theory
from .options import COMMON, Parser

# in the order of --help; each has add(commands), which adds its parser and sets the function to run
_COMMANDS = (sweep, reproduce, plant, plot, report, theory, info)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 where a cell failed, a planted ticket is not exact, or the reader of the output has left; 2 for a user's
        error, with one line on stderr; 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no encoding ends a sweep at its last line
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # not when Python ends, whose error nobody could tell in one line
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if os.environ.get("PNS_TRACEBACK") or not _is_of_the_user(error):
            raise
        is_unread = isinstance(error, BrokenPipeError) and _stdout_is_unread()  # pns-fast info | head -1
        if not is_unread:
            message = " ".join(str(error).split()) or "there is not enough memory"
            print(f"pns-fast: error: {message}", file=sys.stderr)
        if isinstance(error, OSError):
            _discard_output()
        return 1 if is_unread else 2
    except KeyboardInterrupt:
        print("pns-fast: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if getattr(args, "config", None):
        sweep.apply_config(args)
        args = parser.parse_args(argv)
    return args.run(args)


def _is_of_the_user(error: Exception) -> bool:
    """Whether one line says all: not of a RuntimeError, unless it is torch's word for a MemoryError."""
    is_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return is_memory or not isinstance(error, RuntimeError)


def _stdout_is_unread() -> bool:
    """Whether stdout is a pipe whose other end is closed."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_output() -> None:
    """Drop what stdout does not take, which Python would try to write again at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> Parser:
    parser = Parser(
        prog="pns-fast",
        description="Plant known winning tickets, then prune and train whole populations of networks.",
        epilog="Set PNS_TRACEBACK=1 to see where an error came from.",
        **COMMON,
    )
    parser.add_argument("--version", action="version", version=f"pns-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
