"""Runs a model in stages, and sends on only the rows that need more: what engines with early exits share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tauten.artifact.manifest import Stage
from tauten.core.rows import count_rows
from tauten.core.tensor import Array, Arrays, TensorSpec

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Step:
    """A stage that can be run: ``run(arrays)`` gives everything in ``gives`` for arrays named as in ``reads``."""

    stage: Stage
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    run: Callable[[Arrays], Sequence[Array]]


class Stages:
    """Steps in a row. Safe to call from many threads at once, as long as the steps are."""

    def __init__(self, steps: Sequence[Step], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._steps = tuple(steps)
        self._inputs = tuple(inputs)
        self._outputs = tuple(spec.name for spec in outputs)
        # Along which axis the rows of a value that is handed on are; None where it holds none.
        self._axes: dict[str, int | None] = {spec.name: spec.batch_axis for spec in inputs}
        for step in steps:
            self._axes |= {name: None if name in step.stage.whole else 0 for name in step.gives}
        self._later = [
            {name for later in self._steps[index + 1 :] for name in later.reads} for index in range(len(self._steps))
        ]
        self._left = [0] * len(self._steps)
        self._counting = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """The model's outputs by name: each row's from the stage that it left after."""
        held: Arrays = dict(inputs)
        answers: Arrays = {}
        rows: Rows | None = None  # which rows are still there; None where all are
        count = count_rows(self._inputs, inputs)
        left = [0] * len(self._steps)
        for index, step in enumerate(self._steps):
            found = dict(zip(step.gives, step.run({name: held[name] for name in step.reads}), strict=True))
            for name in self._outputs:
                if rows is None:
                    answers[name] = found[name]
                else:
                    answers[name][rows] = found[name]
            leaves = self.leaves(index, found, count, rows)
            left[index] = int(np.count_nonzero(leaves))
            if left[index] == count:
                break
            held = {name: array for name, array in {**held, **found}.items() if name in self._later[index]}
            if left[index]:
                stays = np.flatnonzero(~leaves)
                held = {name: self._take(name, array, stays) for name, array in held.items()}
                rows = stays if rows is None else rows[stays]
                count = len(stays)
        with self._counting:
            self._left = [before + now for before, now in zip(self._left, left, strict=True)]
        return answers

    def leaves(self, index: int, found: Arrays, count: int, rows: Rows | None) -> npt.NDArray[np.bool_]:
        """Which of the ``count`` rows that stage ``index`` was asked about leave after it, ``(count,)``."""
        decides = self._steps[index].stage.decides
        return found[decides].astype(np.bool_).reshape(count) if decides else np.ones(count, np.bool_)

    def describe(self) -> list[dict[str, Any]]:
        """Each stage as the manifest tells it, and how many rows have left after it so far."""
        with self._counting:
            left = list(self._left)
        return [
            {
                "graph": step.stage.graph,
                "at": step.stage.at or None,
                "confidence": step.stage.confidence or None,
                "threshold": step.stage.threshold,
                "expected_share": step.stage.share,
                "rows_left": count,
            }
            for step, count in zip(self._steps, left, strict=True)
        ]

    def _take(self, name: str, array: Array, rows: Rows) -> Array:
        axis = self._axes[name]
        return array if axis is None else np.ascontiguousarray(np.take(array, rows, axis=axis))
