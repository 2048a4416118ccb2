"""How a contract says that it is broken."""

from __future__ import annotations


def hold(condition: object, what: str) -> None:
    """Raise ``AssertionError`` with ``what`` where the condition does not hold; also under ``python -O``."""
    if not condition:
        raise AssertionError(what)
