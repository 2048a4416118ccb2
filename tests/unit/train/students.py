"""Students for progressive distillation."""

from __future__ import annotations

from torch import nn

from tests.unit.train.problems import CLASSES, FEATURES


def middle() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(FEATURES, 4), nn.ReLU(), nn.Linear(4, CLASSES))


def wrong() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES + 1)


def nothing() -> None:
    pass


def failing() -> nn.Module:
    raise ValueError("no such width")


NOT_A_FUNCTION = 3
