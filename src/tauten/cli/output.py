"""What a command answers: a table for people, or one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]


def emit(document: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """Print ``document`` as JSON on one line, or let ``show`` print it for people, on standard output."""
    if as_json:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
        sys.stdout.flush()
    else:
        from rich.console import Console

        show(Console(highlight=False))
