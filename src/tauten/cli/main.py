"""The command ``tauten``: one file a verb, which is imported when it is the verb, or when all are told of.

A verb's file imports what the verb needs when it runs, not before.
"""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version as package_version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from tauten.errors import ConfigError, TautenError

VERBS: Final = (
    "optimize", "compare", "evaluate", "inspect", "export", "pack", "unpack", "serve", "bench", "demo",
)  # fmt: skip
"""In the order in which ``--help`` tells of them."""
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


_STYLE: Final[dict[str, Any]] = {
    "add_completion": False,
    "rich_markup_mode": "markdown",
    "pretty_exceptions_enable": False,
}


class _Verbs(Mapping[str, Any]):
    """The verbs as commands, by name; one is imported when it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, verb: str) -> Any:
        if verb not in VERBS:
            raise KeyError(verb)
        if verb not in self._made:
            alone = typer.Typer(**_STYLE)
            alone.command(verb)(_told(import_module(f"tauten.cli.{verb}").command))
            self._made[verb] = get_command(alone)
        return self._made[verb]

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class _Tauten(TyperGroup):
    """The command whose commands are the verbs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        commands: Any = _Verbs()
        self.commands = commands


app = typer.Typer(cls=_Tauten, no_args_is_help=True, **_STYLE)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tauten {package_version('tauten')}")
        raise typer.Exit


@app.callback()
def tauten(
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
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
