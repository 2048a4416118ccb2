"""Lowering to ExecuTorch: answers as the module does, sizes that are planned for, and what XNNPACK left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tauten.errors import EngineError, MismatchError
from tauten.make.lower import _answers
from tauten.make.model.run import forward
from tauten.testing import tiny

from .lowered import engine_of, lower, prepare


def test_answers_as_the_module_does_for_other_lengths_and_batches(tmp_path: Path) -> None:
    task = tiny.encoder_task()
    model, _ = prepare(task)
    lowered = lower(task, engine="executorch")
    assert lowered.notes["largest_relative_difference"] < 1e-5
    assert lowered.notes["delegated"] > 10
    assert lowered.notes["not_delegated"]["aten::embedding.out"] == 2
    assert not lowered.weights
    engine = engine_of(lowered, tmp_path, "executorch")
    for inputs, _labels in task.calibrate:
        for rows in (1, 5, 16):
            few = {name: array[:rows, : 3 + rows % 4] for name, array in inputs.items()}
            expected, came = forward(model.module, model.inputs, model.outputs, few), engine(few)
            assert list(came) == list(expected)
            for name, array in expected.items():
                np.testing.assert_allclose(came[name], array, rtol=1e-4, atol=1e-5)
    longer = {name: np.ones((1, engine.describe()["largest"]["length"] + 1), np.int64) for name in ("ids", "mask")}
    with pytest.raises(EngineError, match="dimension 'length' is"):
        engine(longer)


def test_a_difference_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_answers, "TOLERANCE", -1.0)
    with pytest.raises(MismatchError, match=r"scores: the program differs from the module"):
        lower(tiny.two_inputs_task(), engine="executorch")
