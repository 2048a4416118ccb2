"""Whether calls can do without padding: found by measurement, refused where an answer would change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import LoweringError
from tauten.make.lower._padding import find_padding
from tauten.make.model.task import Task
from tauten.make.passes.quantize.post_training import PostTraining
from tauten.run.engines._padding import Padding
from tauten.testing import tiny

from .lowered import engine_of, lower

IDS = TensorSpec(name="ids", shape=("batch", "length"), dtype="int64")
MASK = TensorSpec(name="mask", shape=("batch", "length"), dtype="int64")
OUT = (TensorSpec(name="out", shape=("batch",)),)
LENGTHS = (3, 9, 5, 12, 2, 7)


def sample(*lengths: int, columns: int = 14) -> Arrays:
    draw = np.random.default_rng(0)
    mask = (np.arange(columns) < np.array(lengths)[:, np.newaxis]).astype(np.int64)
    return {"ids": draw.integers(1, 50, (len(lengths), columns)), "mask": mask}


def mean(arrays: Arrays) -> Arrays:
    """Of what is open: padding makes no difference."""
    ids, mask = arrays["ids"].astype(np.float64), arrays["mask"]
    return {"out": ((ids * mask).sum(1) / mask.sum(1)).astype(np.float32)}


def found(run: Callable[[Arrays], Arrays], arrays: Arrays | None = None) -> tuple[Padding | None, str]:
    return find_padding((IDS, MASK), OUT, arrays or sample(*LENGTHS), run)


def test_a_mean_of_what_is_open_needs_no_padding() -> None:
    assert found(mean) == (Padding(mask="mask"), "")


@pytest.mark.parametrize(
    ("what", "run"),
    [
        ("reads what is closed", lambda arrays: {"out": arrays["ids"].mean(1).astype(np.float32)}),
        ("reads the last column", lambda arrays: {"out": arrays["ids"][:, -1].astype(np.float32)}),
        ("counts the columns", lambda arrays: {"out": mean(arrays)["out"] / np.float32(arrays["ids"].shape[1])}),
        (
            "sees a little of what is closed",
            lambda arrays: {"out": mean(arrays)["out"] + np.float32(1e-3) * arrays["ids"].sum(1).astype(np.float32)},
        ),
    ],
)
def test_a_model_that_does_otherwise_keeps_it(what: str, run: Callable[[Arrays], Arrays]) -> None:
    padding, why = found(run)
    assert padding is None, what
    assert why.startswith("mask: out differs by")


def test_a_model_that_takes_no_more_columns_keeps_it() -> None:
    def run(arrays: Arrays) -> Arrays:
        if arrays["ids"].shape[1] > 14:
            raise LoweringError("at most 14 positions")
        return mean(arrays)

    assert found(run, sample(12, 13))[1] == (
        "mask: with 8 more columns that the mask closes it does not run: at most 14 positions"
    )


def test_an_input_of_zeros_and_ones_that_closes_nothing_is_no_mask() -> None:
    """Segments of a pair of texts: they are 0 in the padding too, and in the whole of a single text."""
    arrays = sample(*LENGTHS)
    kinds = np.where(np.arange(14) >= 1, arrays["mask"], 0)
    specs = (IDS, MASK, TensorSpec(name="kind", shape=("batch", "length"), dtype="int64"))
    padding, why = find_padding(specs[::-1], OUT, {**arrays, "kind": kinds}, mean)
    assert (padding, why) == (Padding(mask="mask"), "")
    assert find_padding((IDS, specs[2]), OUT, {"ids": arrays["ids"], "kind": kinds * 0}, mean) == (None, "")


def test_outputs_as_long_as_inputs_keep_it() -> None:
    tokens = (TensorSpec(name="out", shape=("batch", "length")),)
    assert find_padding((IDS, MASK), tokens, sample(*LENGTHS), mean) == (None, "mask: out is as long as the inputs")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_padded_sentence_is_answered_as_it_is_without(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine if engine == "openvino" else "onnxruntime")
    task = tiny.encoder_task()
    lowered = lower(task, PostTraining(), engine=engine)
    assert lowered.settings["padding"] == {"mask": "mask", "multiple": 8}
    assert lowered.notes["padding"] == lowered.settings["padding"]
    run = engine_of(lowered, tmp_path, engine)
    assert run.describe()["padding"] == lowered.settings["padding"]
    draw = np.random.default_rng(0)
    ids, lengths = draw.integers(0, 100, (3, 30)), np.array([[5], [11], [2]])
    mask = (np.arange(30) < lengths).astype(np.int64)
    short = run({"ids": ids[:, :16], "mask": mask[:, :16]})
    padded = run({"ids": ids, "mask": mask})
    for name, wanted in short.items():
        np.testing.assert_array_equal(padded[name], wanted)
    # All columns are computed where one of them is open at the end.
    whole = run({"ids": ids, "mask": np.ones_like(mask)})
    assert not all(np.allclose(whole[name], answer) for name, answer in padded.items())


class Mean(nn.Module):
    """A mean over every position, whether a mask closes it or not."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.out((self.table(ids) * (mask.unsqueeze(-1) + 1)).mean(1))


def test_a_model_that_reads_padding_is_told_of() -> None:
    torch.manual_seed(0)
    task = Task(model=Mean(), inputs=(IDS, MASK), calibrate=[(sample(*LENGTHS), None)], metric="sqnr")
    lowered = lower(task)
    assert "padding" not in lowered.settings
    assert lowered.notes["padding"].startswith("stays: mask: ")
