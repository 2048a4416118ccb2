"""The command ``tauten``: one file a verb. A verb's file imports what the verb needs when it runs, not before."""

from __future__ import annotations

import json
import sys

import typer

from tauten.cli import bench, demo, evaluate, inspect, optimize, serve
from tauten.errors import TautenError

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
)
for verb in (optimize, evaluate, inspect, serve, bench, demo):
    app.command(verb.__name__.rpartition(".")[2])(verb.command)


@app.callback()
def tauten() -> None:
    """Make a trained PyTorch model smaller and faster within a budget, measure the file, and serve it."""


def main() -> None:
    """Run a verb. Errors that Tauten raises on purpose become one line on standard error and an exit code."""
    try:
        app()
    except TautenError as fault:
        _fail(type(fault).__name__, str(fault), fault.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted", "interrupted", INTERRUPTED)


def _fail(kind: str, message: str, code: int) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"type": kind, "message": message, "exit_code": code}}))
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
