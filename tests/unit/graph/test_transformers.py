"""Models of ``transformers``: each is pruned and answers as the masked original, and ONNX Runtime runs what is left."""

from __future__ import annotations

import re

import pytest

from tauten.core.target import Target
from tauten.make.lower import LOWERINGS
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.testing.zoo import TEXT, VISION, ZooModel
from tauten.testing.zoo.cut import cut

pytest.importorskip("transformers")

ALWAYS = ("resnet", "vit", "bert", "gpt2")
"""A network of each kind; the rest are slow, and what the graph learned of them is held by nets of a few layers."""
EXPECTED = re.compile("model output|rows are looked up by number")
"""All that is refused: what the user reads, and words that are told apart by their numbers."""


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=entry.name, marks=[] if entry.name in ALWAYS else pytest.mark.slow)
        for entry in (*VISION, *TEXT)
    ],
)
def test_pruned_and_verified(entry: ZooModel) -> None:
    found = cut(entry, ratios=(0.3, 0.5))
    assert found.groups == found.found
    assert found.difference <= 1e-4
    assert [why for why in found.refused.values() if not EXPECTED.search(why)] == []
    before, after = found.parameters
    assert after < 0.45 * before
    batch = [entry.example(batch=4)]
    task = Task(model=found.small, inputs=entry.inputs, calibrate=batch, validate=[], metric=lambda *_: 0.0)
    # Holds the graph against the module, in ONNX Runtime, at several batch sizes.
    LOWERINGS.get("onnx")(to_model(task), Target(name="test"), Context(task, found.small))
