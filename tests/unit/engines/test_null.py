"""The engine that answers zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tauten.core.tensor import TensorSpec
from tauten.run.engines import load
from tauten.testing.artifacts import tiny_artifact


def test_named_dimensions_come_from_the_inputs_and_are_one_where_no_input_has_them(tmp_path: Path) -> None:
    artifact = tiny_artifact(
        tmp_path / "a",
        inputs=(TensorSpec(name="ids", shape=("batch", "length"), dtype="int64"),),
        outputs=(
            TensorSpec(name="states", shape=("batch", "length", 3), dtype="float16"),
            TensorSpec(name="boxes", shape=("batch", "boxes", 4)),
        ),
    )
    answers = load(artifact)({"ids": np.ones((2, 7), np.int64)})
    assert {name: (array.dtype.name, array.shape) for name, array in answers.items()} == {
        "states": ("float16", (2, 7, 3)),
        "boxes": ("float32", (2, 1, 4)),
    }
    assert not any(array.any() for array in answers.values())
