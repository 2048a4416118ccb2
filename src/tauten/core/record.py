"""What one pass did to a model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from tauten.core.value import Value


class Record(Value):
    """Name, parameters, seed, seconds, hash before and after, and notes of one applied pass."""

    name: str
    parameters: dict[str, Any]
    seed: int
    seconds: Annotated[float, Field(ge=0)]
    before: str
    after: str
    notes: dict[str, Any] = {}
