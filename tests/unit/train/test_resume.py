"""A run that is interrupted in a recovery goes on in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import tauten
from tauten.make.search.evaluator import Sampling
from tauten.make.search.observe import Silent
from tauten.make.search.recipe import Recipe, pass_from_json
from tests.unit.optimize.task import task

CUT = Recipe(
    "cut",
    (
        pass_from_json({"pass": "prune.structured", "ratio": 0.5}),
        pass_from_json({"pass": "distill.recover", "epochs": 4}),
    ),
)


class Stopping(Silent):
    """Ends a run as Ctrl-C does, when it says so."""

    def __init__(self, at: str) -> None:
        self._at = at

    def step(self, text: str, share: float) -> None:
        if text.startswith(self._at):
            raise KeyboardInterrupt


def run(out: Path, at: str) -> tauten.Result:
    sampling = Sampling(seconds=0.05, starts=1)
    budget = tauten.Budget(max_drop=100)
    return tauten.optimize(task(), budget=budget, level=[CUT], out=out, sampling=sampling, observer=Stopping(at))


def test_a_run_that_was_interrupted_in_training_loses_an_epoch_at_most(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "epoch 4/4")
    assert list((tmp_path / ".state" / "training").glob("*.safetensors"))
    result = run(tmp_path, "never")
    (cut,) = result.candidates
    (recovery,) = [record for record in cut.history if record["name"] == "distill.recover"]
    assert recovery["notes"]["resumed"] == 3
    assert not (tmp_path / ".state" / "training").exists()
