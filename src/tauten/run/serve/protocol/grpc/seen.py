"""Requests like one before: most clients send the same bytes, request after request, but for their raw tensors.

What was made of such bytes is remembered, so that the next request costs a look-up and the cutting of its tensors.
Nothing is taken on trust: equal bytes mean the same message, and they were checked whole when they came first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Generic, NamedTuple, TypeVar

from tauten.run.serve.protocol.grpc.codec import VIEWS_FROM_BYTES, Asked, Raw, raw_fields

_MOST: Final = 512
_MOST_BYTES: Final = 4096
_MOST_ENDS: Final = 8


Way = TypeVar("Way")
"""What answers a request, as the one who asks knows it."""


class Seen(NamedTuple, Generic[Way]):
    """A request but for its raw tensors: what answers it, what it says, and where its tensors lie.

    ``between`` are the bytes from the end of each tensor but the last to the beginning of the next.
    """

    way: Way
    asked: Asked
    cuts: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int, bytes], ...]


class SeenRequests(Generic[Way]):
    """Requests that were read before, by their bytes up to the first raw tensor, the length of that included."""

    def __init__(self) -> None:
        self._seen: dict[bytes, Seen[Way]] = {}
        self._ends: dict[int, tuple[int, ...]] = {}  # where such bytes may end, by the length of the whole message

    def find(self, data: bytes) -> Seen[Way] | None:
        """The one that ``data`` equals but for its raw tensors."""
        for end in self._ends.get(len(data), ()):
            seen = self._seen.get(data[:end])
            if seen is not None and seen.cuts[-1][1] == len(data):
                for begin, until, between in seen.between:
                    if data[begin:until] != between:
                        return None
                return seen
        return None

    def learn(self, data: bytes, way: Way, asked: Asked) -> None:
        """Remember what ``data`` says. It has no id: those differ each time.

        Nothing is remembered where it has no raw tensors, or where anything else stands behind the first of them. A
        full table is emptied: clients that never repeat themselves shall not fill the memory.
        """
        fields = raw_fields(data)
        if not fields or fields[0].begin > _MOST_BYTES or fields[-1].end != len(data):
            return
        pairs = tuple(pairwise(fields))
        if any(field.end != following.tag for field, following in pairs):
            return
        ends = self._ends.get(len(data), ())
        if len(self._seen) >= _MOST or len(self._ends) >= _MOST or len(ends) >= _MOST_ENDS:
            self._seen.clear()
            self._ends.clear()
            ends = ()
        begin = fields[0].begin
        if begin not in ends:
            self._ends[len(data)] = (*ends, begin)
        self._seen[data[:begin]] = Seen(
            way,
            asked,
            tuple((field.begin, field.end) for field in fields),
            tuple((one.end, following.begin, data[one.end : following.begin]) for one, following in pairs),
        )


def cut(data: bytes, cuts: Sequence[tuple[int, int]]) -> Sequence[Raw]:
    """The raw tensors of a message: small ones copied, which costs less than to see them in it."""
    source: Raw = data if len(data) < VIEWS_FROM_BYTES else memoryview(data)
    return [source[begin:end] for begin, end in cuts]
