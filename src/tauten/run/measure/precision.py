"""How much of the time an artifact really computes in few bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.core.value import Value
from tauten.run.engines.engine import Engine, OperationTime

LOW: Final = ("int4", "uint4", "int8", "uint8", "float16", "bfloat16")
"""What counts as low precision: less than the 32 bits that models are trained in."""
_OTHER_SIZES: Final = 16  # of dimensions that are open beside the batch


class Slow(Value):
    """One operation: the backend's name for it and its kind, its precision, and mean milliseconds a call."""

    name: str
    kind: str
    precision: str
    milliseconds: float


class PrecisionTimes(Value):
    """Mean milliseconds a call, over operations, by precision (empty where the backend does not tell).

    ``low_share`` is the share, from 0 to 1, of that time in ``LOW`` precisions; ``operations`` are the slowest ones.
    """

    milliseconds: dict[str, float]
    low_share: Annotated[float, Field(ge=0, le=1)]
    operations: tuple[Slow, ...]


def time_precisions(
    engine: Engine, inputs: Mapping[str, Array] | None = None, *, slowest: int = 10
) -> PrecisionTimes | None:
    """Where the time goes on ``inputs`` (one sample of ones where there are none); ``None`` where it cannot be told.

    Raises ``EngineError`` where the engine fails on them.
    """
    return tally(engine.profile(inputs or ones(engine.inputs)), slowest)


def tally(operations: Sequence[OperationTime], slowest: int = 10) -> PrecisionTimes | None:
    """The same from what an engine measured."""
    total = sum(one.milliseconds for one in operations)
    if not total:
        return None
    times: dict[str, float] = {}
    for one in operations:
        times[one.precision] = times.get(one.precision, 0.0) + one.milliseconds
    ordered = sorted(operations, key=lambda one: -one.milliseconds)[:slowest]
    return PrecisionTimes(
        milliseconds=dict(sorted(times.items(), key=lambda item: -item[1])),
        low_share=min(sum(times.get(name, 0.0) for name in LOW) / total, 1.0),
        operations=tuple(
            Slow(name=o.name, kind=o.kind, precision=o.precision, milliseconds=o.milliseconds) for o in ordered
        ),
    )


def ones(specs: Iterable[TensorSpec]) -> Arrays:
    """One sample of ones for each input: tokens that exist, masks that hide nothing."""
    found: Arrays = {}
    for spec in specs:
        open_sizes = {dim: _OTHER_SIZES for dim in spec.shape if isinstance(dim, str) and dim != "batch"}
        found[spec.name] = np.ones(spec.concrete(1, **open_sizes), spec.dtype)
    return found
