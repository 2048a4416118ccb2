"""Which providers an ONNX artifact runs on, and what becomes of settings that mean nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tauten.artifact.read import Artifact
from tauten.core.target import Target
from tauten.errors import ArtifactError, EngineError
from tauten.run.engines._providers import choose_providers
from tauten.testing.artifacts import tiny_artifact

EVERY = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def artifact_of(folder: Path, device: str, settings: dict[str, Any]) -> Artifact:
    target = Target.from_json({"name": "test", "device": device})
    return tiny_artifact(folder / "a", engine="onnx", target=target, settings=settings)


@pytest.mark.parametrize(
    ("device", "settings", "expected"),
    [
        ("cpu", {}, EVERY[2:]),
        ("cpu", {"provider": "cpu"}, EVERY[2:]),
        ("cuda", {}, EVERY[1:2]),
        ("cuda", {"provider": "tensorrt"}, EVERY[:2]),
    ],
)
def test_the_device_and_the_settings_choose(device: str, settings: Any, expected: list[str], tmp_path: Path) -> None:
    chosen = choose_providers(artifact_of(tmp_path, device, settings), EVERY)
    assert [name for name, _ in chosen] == expected


def test_tensorrt_keeps_nothing_and_computes_in_half_precision_where_allowed(tmp_path: Path) -> None:
    for half in (False, True):
        settings = {"provider": "tensorrt", "fp16": half}
        (_, options), _ = choose_providers(artifact_of(tmp_path, "cuda", settings), EVERY)
        assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "0"
        assert options["trt_fp16_enable"] == str(int(half))


@pytest.mark.parametrize(
    ("device", "settings"),
    [
        ("cpu", {"provider": "cuda"}),
        ("cpu", {"provider": ["cpu"]}),
        ("cuda", {"provider": "cpu"}),
        ("cuda", {"provider": "MIGraphXExecutionProvider"}),
        ("cuda", {"fp16": True}),
        ("cuda", {"provider": "tensorrt", "fp16": "yes"}),
    ],
)
def test_settings_that_mean_nothing_are_refused(device: str, settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="settings"):
        choose_providers(artifact_of(tmp_path, device, settings), EVERY)


def test_a_provider_that_is_not_there_is_no_reason_to_fall_back(tmp_path: Path) -> None:
    for settings in ({}, {"provider": "tensorrt"}):
        with pytest.raises(EngineError, match="install onnxruntime-gpu"):
            choose_providers(artifact_of(tmp_path, "cuda", settings), EVERY[2:])
