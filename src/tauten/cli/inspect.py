"""``tauten inspect``."""

from __future__ import annotations


def command() -> None:
    """Under construction."""
