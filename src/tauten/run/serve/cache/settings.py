"""How answers are remembered."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tauten.core.target import parse_bytes
from tauten.core.value import Value

_SCHEMES: Final = ("redis", "rediss", "unix")


class CacheSettings(Value):
    """Where answers are remembered and how many.

    ``where`` is ``memory``, or the URL of a Redis server that several servers share; memory then stands before it.
    ``max_bytes`` bounds memory, ``age_s`` how long an answer is given again.
    """

    where: Annotated[str, Field(min_length=1)] = "memory"
    max_bytes: Annotated[int, Field(ge=0)] = 256 * 10**6
    age_s: Annotated[float, Field(gt=0)] = 3600.0

    @field_validator("max_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("where")
    @classmethod
    def _known(cls, where: str) -> str:
        if where != "memory" and urlsplit(where).scheme not in _SCHEMES:
            raise ValueError("expected 'memory' or a URL such as redis://127.0.0.1:6379/0")
        return where
