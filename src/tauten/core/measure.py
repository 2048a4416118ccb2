"""A measured number, with its spread."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tauten.core.value import Value


class Measure(Value):
    """A value with unit, interval, repeats, which way is better, and on what it was measured.

    ``low`` and ``high`` bound the value with about 95 % confidence (how is said by the one that measured).

    >>> fast = Measure(value=1.0, low=0.9, high=1.1, unit="ms", better="lower")
    >>> slow = Measure(value=2.0, low=1.8, high=2.2, unit="ms", better="lower")
    >>> fast.beats(slow), slow.beats(fast)
    (True, False)
    """

    value: float
    low: float
    high: float
    unit: str
    better: Literal["lower", "higher"]
    repeats: Annotated[int, Field(ge=1)] = 1
    on: str = ""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not (self.low <= self.value <= self.high):
            raise ValueError(f"low <= value <= high does not hold for {self.low}, {self.value}, {self.high}")
        return self

    @classmethod
    def exact(cls, value: float, unit: str, better: Literal["lower", "higher"], on: str = "") -> Self:
        """A number without spread, such as a count of bytes."""
        return cls(value=value, low=value, high=value, unit=unit, better=better, on=on)

    def beats(self, other: Measure) -> bool:
        """Better outside the noise: the two intervals do not touch."""
        return self.high < other.low if self.better == "lower" else self.low > other.high

    def ratio(self, other: Measure) -> float:
        """How many times better this is than ``other``: above 1 is better, whichever way is better."""
        ours, theirs = (other.value, self.value) if self.better == "lower" else (self.value, other.value)
        if theirs:
            return ours / theirs
        return 1.0 if ours == theirs else math.inf
