"""An engine that answers large batches in parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Self

from tauten.artifact.read import Artifact
from tauten.core.rows import count_rows, has_batch, join_rows, take_rows
from tauten.core.tensor import Array, Arrays
from tauten.errors import EngineError
from tauten.run.engines.engine import Engine


class InParts(Engine):
    """Hands at most ``rows`` samples at once to another engine, so that a batch of any size needs no more memory.

    Raises ``EngineError`` where an input or an output does not count samples, so that it cannot be divided.
    """

    def __init__(self, engine: Engine, rows: int) -> None:
        super().__init__(engine.inputs, engine.outputs)
        if rows < 1:
            raise EngineError(f"expected parts of at least one sample, got {rows}")
        fixed = [spec.name for spec in (*engine.inputs, *engine.outputs) if not has_batch((spec,))]
        if fixed:
            raise EngineError(f"batches cannot be answered in parts: {', '.join(fixed)} has no batch dimension")
        self._engine = engine
        self._rows = rows

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """Not by itself: it goes around an engine that was loaded."""
        raise EngineError("InParts goes around an engine: InParts(load(artifact), rows)")

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        count = count_rows(self.inputs, inputs)
        if count <= self._rows:
            return self._engine.run(inputs)
        number = math.ceil(count / self._rows)
        ends = [count * part // number for part in range(number + 1)]
        parts = (take_rows(self.inputs, inputs, range(start, end)) for start, end in itertools.pairwise(ends))
        return join_rows(self.outputs, [self._engine.run(part) for part in parts])

    def describe(self) -> dict[str, Any]:
        return {**self._engine.describe(), "rows_at_once": self._rows}

    def close(self) -> None:
        self._engine.close()
