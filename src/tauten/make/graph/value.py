"""What the trace knows of a tensor: one ``Axis`` a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tauten.errors import PassError
from tauten.make.graph.ids import IdArray


@dataclass(frozen=True)
class Axis:
    """One dimension of a tensor.

    ``ids`` name the channel of each element along it, shape ``(size,)``; ``None`` where no element can be removed,
    and ``reason`` says why. ``zero`` says that an element whose channel is zeroed in every parameter is zero there
    itself, which is not so behind a sigmoid. ``alike`` says of one without ids that its elements are copies of one
    another (a tensor of zeros, one channel spread over many), so that it can be as long as whatever it meets.
    """

    size: int
    ids: IdArray | None = None
    zero: bool = False
    reason: str = ""
    alike: bool = False

    def __post_init__(self) -> None:
        if self.ids is not None and self.ids.shape != (self.size,):
            raise PassError(f"a dimension of {self.size} elements was given ids of shape {self.ids.shape}")

    @property
    def tracked(self) -> bool:
        """Whether its elements carry ids."""
        return self.ids is not None

    def with_zero(self, zero: bool) -> Axis:
        """The same axis, with removed elements known to be zero or not."""
        return self if self.zero == zero else replace(self, zero=zero)


@dataclass(frozen=True)
class Value:
    """A tensor in the trace. A size that varies between calls stands as a large prime (see ``trace``)."""

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    def with_zero(self, zero: bool) -> Value:
        """The same tensor; ``zero`` False where removed elements are no longer known to be zero."""
        return Value(tuple(axis.with_zero(axis.zero and zero) for axis in self.axes))


def opaque(sizes: Sequence[int], reason: str) -> Value:
    """A tensor of which no element can be removed."""
    return Value(tuple(Axis(size, reason=reason) for size in sizes))
