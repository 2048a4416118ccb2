"""The command ``tauten``: one file a verb, each imported when it runs."""

from __future__ import annotations

import json
import sys

import click
import typer

from tauten.errors import TautenError

INTERRUPTED = 130


class _Verbs(typer.core.TyperGroup):
    """Finds a verb in the file of its name, so that ``tauten serve`` never waits for what ``optimize`` needs."""

    names = ("optimize", "evaluate", "inspect", "serve", "bench", "demo")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.names:
            return None
        import importlib

        verb = importlib.import_module(f"tauten.cli.{cmd_name}")
        app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        app.command(cmd_name)(verb.command)
        return typer.main.get_command(app)


app = typer.Typer(cls=_Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


@app.callback()
def tauten() -> None:
    """Make a trained PyTorch model smaller and faster within a budget, measure the file, and serve it."""


def main(argv: list[str] | None = None) -> int:
    """Run a verb. Errors that Tauten raises on purpose become one line and an exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        app(arguments, standalone_mode=False)
    except TautenError as fault:
        return _fail(type(fault).__name__, str(fault), fault.exit_code, arguments)
    except click.exceptions.Exit as fault:
        return fault.exit_code
    except click.ClickException as fault:
        if "--json" in arguments:
            return _fail("UsageError", fault.format_message(), fault.exit_code, arguments)
        fault.show()
        return fault.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _fail("Interrupted", "interrupted", INTERRUPTED, arguments)
    return 0


def _fail(kind: str, message: str, code: int, arguments: list[str]) -> int:
    if "--json" in arguments:
        print(json.dumps({"error": {"type": kind, "message": message, "exit_code": code}}))
    else:
        print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
