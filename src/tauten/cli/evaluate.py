"""``tauten evaluate``."""

from __future__ import annotations


def command() -> None:
    """Under construction."""
