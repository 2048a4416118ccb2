"""Where a command talks to people beside its answer."""

from __future__ import annotations

from rich.console import Console

console = Console(stderr=True, highlight=False)
"""For progress, notes and errors: everything that is not the answer."""
