"""The command ``tauten``: one file a verb. A verb's file imports what the verb needs when it runs, not before."""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import typer

from tauten.cli import bench, compare, demo, evaluate, export, inspect, optimize, pack, serve, unpack
from tauten.errors import ConfigError, TautenError

INTERRUPTED = 130
_UsageError: Any = typer.BadParameter.__base__
"""What Typer raises for a command line that it cannot read; it has no public name there."""
_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.EFBIG}
"""Errors of the disk and the account, which a traceback would not explain."""


class Interrupted(TautenError):
    """Ctrl-C, before the verb had an answer."""

    exit_code = INTERRUPTED


def _told(command: Callable[..., None]) -> Callable[..., None]:
    """The verb, with Ctrl-C as an error of ours: Typer would end the process without a word."""

    @functools.wraps(command)
    def told(*arguments: object, **options: object) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None

    return told


app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
for verb in (optimize, compare, evaluate, inspect, export, pack, unpack, serve, bench, demo):
    app.command(verb.__name__.rpartition(".")[2])(_told(verb.command))


@app.callback()
def tauten() -> None:
    """Make a trained PyTorch model smaller and faster within a budget, measure the file, and serve it."""


def main() -> None:
    """Run a verb. What fails for a known reason becomes one line on standard error and an exit code.

    With ``--json`` it is one JSON document on standard output too: from a verb, the command line or the disk.
    """
    try:
        # Typer prints its own errors for people, and leaves them to us for programs.
        raise SystemExit(app(standalone_mode="--json" not in sys.argv))
    except TautenError as fault:
        _fail(type(fault).__name__, str(fault), fault.exit_code)
    except _UsageError as fault:
        _fail("UsageError", fault.format_message(), ConfigError.exit_code)
    except KeyboardInterrupt:
        _fail(Interrupted.__name__, "interrupted", INTERRUPTED)
    except OSError as fault:
        if fault.errno not in _OUTSIDE:
            raise
        where = f"{fault.filename}: " if fault.filename else ""
        _fail("OSError", f"{where}{fault.strerror}", TautenError.exit_code)


def _fail(kind: str, message: str, code: int) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"type": kind, "message": message, "exit_code": code}}))
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
