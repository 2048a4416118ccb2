"""The handmade networks of the zoo: cut in half, held against the masked original, and lowered again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tauten.core.target import Target
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.run.engines import load
from tauten.testing.zoo import HANDMADE, ZooModel
from tauten.testing.zoo.cut import Cut, cut

BY_NAME = {entry.name: entry for entry in HANDMADE}
# What is not pruned besides what makes the outputs, and by which operation.
REFUSED = {"hard_coded": ("conv2", "aten.view"), "tied_words": ("words", "aten.embedding")}
LOWERED = ("lstm_tagger", "group_norm_resnet")
LOWERED_TOO = ("shufflenet_v2", "style_transfer", "autoencoder")


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_cut_and_lowered(name: str, tmp_path: Path) -> None:
    entry = BY_NAME[name]
    found = cut(entry)
    assert found.difference <= 1e-4
    before, after = found.parameters
    assert after < 0.65 * before
    told = {layer: why for layer, why in found.refused.items() if why != "model output"}
    layer, operation = REFUSED.get(name, ("", ""))
    assert list(told) == ([layer] if layer else [])
    assert operation in told.get(layer, "")
    if name in LOWERED:
        _assert_lowered(entry, found, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOWERED_TOO)
def test_others_are_lowered_too(name: str, tmp_path: Path) -> None:
    _assert_lowered(BY_NAME[name], cut(BY_NAME[name]), tmp_path)


def _assert_lowered(entry: ZooModel, found: Cut, folder: Path) -> None:
    """The smaller module as an ONNX graph answers as it does, in another batch."""
    target, example = Target(name="here"), entry.example(batch=4)
    task = Task(model=found.small, inputs=entry.inputs, calibrate=[example], metric=lambda *_: 0.0, validate=[])
    model = to_model(task)
    lowered = LOWERINGS.get("onnx")(model, target, Context(task, model.module))
    engine = load(to_artifact(lowered, folder / "artifact", name="zoo", engine="onnx", target=target))
    inputs = entry.example(batch=7, seed=3)
    expected = forward(found.small, entry.inputs, (), inputs)
    for output, array in engine(inputs).items():
        np.testing.assert_allclose(array, expected[output], rtol=1e-3, atol=1e-4)
