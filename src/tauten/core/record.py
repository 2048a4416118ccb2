"""What one pass did to a model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tauten.core.value import JsonObject, Value


class Record(Value):
    """Name, parameters, seed, seconds, hash before and after, and notes of one applied pass."""

    name: str
    parameters: JsonObject
    seed: int
    seconds: Annotated[float, Field(ge=0)]
    before: str
    after: str
    notes: JsonObject = {}
