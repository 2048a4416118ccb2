"""Engines on a CUDA device: each answers as the module does on the processor, and runs where the target says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from tauten.core.target import Target
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.run.engines import load
from tauten.testing import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]


def needs(provider: str) -> pytest.MarkDecorator:
    there = provider in onnxruntime.get_available_providers()
    return pytest.mark.skipif(not there, reason=f"this ONNX Runtime has no {provider}: it comes with onnxruntime-gpu")


CASES: list[Any] = [
    pytest.param("inductor", {}, 1e-3, id="inductor"),
    pytest.param("onnx", {}, 1e-3, id="cuda", marks=needs("CUDAExecutionProvider")),
    pytest.param("onnx", {"provider": "tensorrt"}, 1e-3, id="tensorrt", marks=needs("TensorrtExecutionProvider")),
    pytest.param(
        "onnx", {"provider": "tensorrt", "fp16": True}, 2e-2, id="tensorrt-fp16",
        marks=needs("TensorrtExecutionProvider"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("engine", "settings", "tolerance"), CASES)
def test_answers_as_the_module_does(engine: str, settings: dict[str, Any], tolerance: float, tmp_path: Path) -> None:
    task = tiny.cnn_task()
    model = to_model(task)
    target = Target(name="gpu", engine=engine, device="cuda", batch=4)
    lowered = LOWERINGS.get(engine)(model, target, Context(task, model.module))
    artifact = to_artifact(lowered, tmp_path / "a", name="gpu", engine=engine, target=target)
    if settings:
        from tauten.artifact.write import write_artifact

        manifest = artifact.manifest.model_copy(update={"settings": settings})
        files = {name: (artifact.path / name).read_bytes() for name in manifest.files}
        artifact = write_artifact(tmp_path / "b", manifest, files)
    running = load(artifact)
    for rows in (1, 3, 9):
        inputs = {"image": task.calibrate[0][0]["image"][:rows]}
        expected = forward(model.module, model.inputs, model.outputs, inputs)["output"]
        first, again = running(inputs)["output"], running(inputs)["output"]
        np.testing.assert_allclose(first, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())
        np.testing.assert_allclose(first, again, rtol=1e-4, atol=1e-4)
    provider = running.describe()["provider"]
    expected_provider = {"inductor": "cuda"}.get(engine, "CUDAExecutionProvider")
    assert provider == ("TensorrtExecutionProvider" if settings else expected_provider)
