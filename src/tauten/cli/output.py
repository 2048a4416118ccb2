"""What a command says: a table for people or one JSON document for programs, progress and errors beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

JSON = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]

console = Console(stderr=True, highlight=False)
"""For progress, notes and errors: everything that is not the answer."""


def emit(document: Any, as_json: bool, show: Callable[[Console], None]) -> None:
    """Print ``document`` as JSON on one line, or let ``show`` print it for people, on standard output."""
    if as_json:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
        sys.stdout.flush()
    else:
        show(Console(highlight=False))
