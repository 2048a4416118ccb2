"""Choices that layers make by the input, and how near each was to being another.

Two engines that add in another order may choose otherwise where two numbers nearly tie; both are right. Whoever
compares engines watches the margins, and leaves out samples where one is too small to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_WATCHED: ContextVar[list[torch.Tensor] | None] = ContextVar("choices", default=None)


def note_choice(margin: Callable[[], torch.Tensor]) -> None:
    """Tell by how much the choices of each sample were made: ``margin() -> (batch,)``, called only where one watches.

    A margin is a share of the scale of the numbers that were compared.
    """
    watched = _WATCHED.get()
    if watched is not None:
        watched.append(margin())


@contextmanager
def watch_choices() -> Iterator[list[torch.Tensor]]:
    """Collect the margins of all choices that are made inside."""
    margins: list[torch.Tensor] = []
    token = _WATCHED.set(margins)
    try:
        yield margins
    finally:
        _WATCHED.reset(token)
