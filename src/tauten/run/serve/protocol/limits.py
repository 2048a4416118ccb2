"""What one connection may cost a server."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from tauten.core.target import parse_bytes
from tauten.core.value import Value

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Limits(Value):
    """What one connection may cost, and how long each thing may take.

    ``max_head_bytes`` bounds request line and headers, ``max_body_bytes`` the body. ``receive_s`` is the time from a
    request's first byte to its last, ``idle_s`` that between requests, ``send_s`` how long a client may leave an
    answer unread.
    """

    max_head_bytes: Annotated[int, Field(ge=256)] = 32 * 2**10
    max_body_bytes: Annotated[int, Field(ge=0)] = 64 * 10**6
    receive_s: Seconds = 60.0
    idle_s: Seconds = 75.0
    send_s: Seconds = 60.0

    @field_validator("max_body_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value
