"""A model whose answers do not depend on what its mask closes, and requests for it, of any length."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import EngineError
from tauten.run.engines._padding import Padding
from tauten.run.serve.call import Call
from tauten.run.serve.protocol.layout import fit
from tests.unit.serve.tiny import WAIT_S, InMemory

INPUTS = (
    TensorSpec(name="ids", shape=("batch", "length"), dtype="int64"),
    TensorSpec(name="pairs", shape=("batch", "length", 2, "length"), dtype="int16"),
    TensorSpec(name="mask", shape=("batch", "length"), dtype="float32"),
    TensorSpec(name="weights", shape=("batch", "width")),
)
OUTPUTS = (TensorSpec(name="sum", shape=("batch",), dtype="float64"),)


class Masked(InMemory):
    """``sum`` of what is open, in whole numbers, so that answers are equal or wrong; less than 0 where nothing is.

    ``seen`` are rows and columns of each call, ``strange`` counts numbers in closed columns that nobody sent: those
    below 1, which an embedding might not have. ``fails`` makes a call of these rows and columns fail.
    """

    padding = Padding(mask="mask", multiple=8)

    def __init__(self, fails: Callable[[int, int], bool] = lambda rows, columns: False) -> None:
        super().__init__(INPUTS, OUTPUTS)
        self.seen: list[tuple[int, int]] = []
        self.strange = 0
        self.fails = fails
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        ids, pairs, mask, weights = (np.asarray(inputs[spec.name], np.float64) for spec in INPUTS)
        rows, columns = mask.shape
        self.entered.release()
        if not self.gate.wait(WAIT_S):
            raise EngineError("nobody opened the gate")
        self.seen.append((rows, columns))
        self.strange += int((ids < 1).sum() + (pairs < 1).sum())
        if self.fails(rows, columns):
            raise EngineError("as the test wants it")
        opened = (mask != 0).astype(float)
        single = (ids * opened * np.arange(1, columns + 1)).sum(axis=1)
        double = np.einsum("rikj,ri,rj->r", pairs, opened, opened)
        answer = single + double + weights.sum(axis=1)
        return {"sum": np.where(opened.any(axis=1), answer, -columns)}


def inputs_of(lengths: Sequence[int], columns: int, *, front: int = 0, width: int = 3, seed: int = 0) -> Arrays:
    """A request: a row for each of ``lengths``, which is open from ``front`` up to there (0 opens nothing)."""
    draw = np.random.default_rng(seed)
    rows = len(lengths)
    places = np.arange(columns)
    ends = np.array(lengths)[:, np.newaxis]
    return {
        "ids": draw.integers(1, 100, (rows, columns)),
        "pairs": draw.integers(1, 100, (rows, columns, 2, columns), np.int16),
        "mask": ((places < ends) & (places >= np.minimum(front, ends - 1))).astype(np.float32),
        "weights": draw.integers(1, 100, (rows, width)).astype(np.float32),
    }


def call_of(arrays: Arrays, answered: Callable[[Call], None] = lambda call: None) -> Call:
    """A call as the protocol makes it."""
    ordered = [arrays[spec.name] for spec in INPUTS]
    shapes = tuple(array.shape for array in ordered)
    rows, group = fit(INPUTS, shapes)
    return Call([array.data for array in ordered], shapes, rows, group, answered)
