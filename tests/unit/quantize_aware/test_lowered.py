"""What was learned is what is deployed: grids and ranges in the engine's graph, and 4-bit weights two a byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.lower import LOWERINGS
from tauten.make.lower._quantize import saturating_products
from tauten.make.lower.lowering import Lowered
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.passes.quantize.quantization_aware import QuantizationAware
from tauten.testing.tiny import cnn_task
from tests.unit.lower.lowered import TARGET, engine_of

Learned = tuple[Model, Lowered]


@pytest.fixture(scope="module")
def learned() -> Learned:
    """A small CNN with 4-bit weights in its middle layer, and its graph with products alone in int8."""
    torch.manual_seed(0)
    task = cnn_task()
    model = to_model(task)
    context = Context(task, model.module)
    made = apply(QuantizationAware(bits=4, epochs=4, learning_rate=0.01), model, context)
    return made, LOWERINGS.get("onnx")(made, TARGET, context, {"placement": "products"})


def layers(model: Model) -> dict[str, QuantizedLayer]:
    return {name: part for name, part in model.module.named_modules() if isinstance(part, QuantizedLayer)}


def test_the_artifact_answers_as_the_module(learned: Learned, tmp_path: Path) -> None:
    made, lowered = learned
    pictures = np.random.default_rng(5).standard_normal((16, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = made.module(torch.from_numpy(pictures)).numpy()
    came = engine_of(lowered, tmp_path)({"image": pictures})["output"]
    noise = 10 * np.log10(np.square(expected).sum() / np.square(expected - came).sum())
    # Where float32 sums in another order, a number in a thousand rounds the other way. Where the processor's sums would
    # saturate, the layers of eight bits have seven.
    assert noise > (33 if saturating_products()[0] else 45)


def test_the_graph_has_the_learned_steps_of_inputs(learned: Learned) -> None:
    made, lowered = learned
    graph = onnx.load_from_string(lowered.graph).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer if not one.external_data}
    constants |= {name: np.asarray(array) for name, array in lowered.weights.items()}
    told = [float(constants[node.input[1]].item()) for node in graph.node if node.op_type == "QuantizeLinear"]
    for layer in layers(made).values():
        low, high = layer.input_range
        assert any(np.isclose(step, (high - low) / 255, rtol=1e-4) for step in told), (told, (high - low) / 255)


def test_codes_are_in_the_file_as_they_were_learned(learned: Learned) -> None:
    made, lowered = learned
    (middle,) = (layer for layer in layers(made).values() if layer.bits == 4)
    assert isinstance(middle.layer, nn.Conv2d)
    (name,) = lowered.four_bit
    assert np.array_equal(np.asarray(lowered.weights[name]), middle.codes.numpy())
