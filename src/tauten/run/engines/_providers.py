"""Which of ONNX Runtime's execution providers run an artifact: the processor, CUDA, or TensorRT with CUDA behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tauten.artifact.read import Artifact
from tauten.errors import ArtifactError, EngineError

Provider = tuple[str, dict[str, str]]

_NAMES: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_BY_DEVICE: Final = {"cpu": ("cpu",), "cuda": ("cuda", "tensorrt")}


def choose_providers(artifact: Artifact, available: Sequence[str]) -> list[Provider]:
    """The providers with their options, the one that is asked for first.

    The manifest's ``settings`` may name one of the device's (``{"provider": "tensorrt"}``) and allow TensorRT to
    compute in half precision (``{"fp16": true}``). TensorRT keeps nothing on the disk: what it would find there, nobody
    has checked. Operations that it does not take go to CUDA. Raises ``ArtifactError`` for settings that mean nothing,
    ``EngineError`` where this ONNX Runtime lacks the provider; it would fall back to the processor without a word.
    """
    manifest = artifact.manifest
    allowed = _BY_DEVICE[manifest.target.device]
    name: Any = manifest.settings.get("provider", allowed[0])
    half: Any = manifest.settings.get("fp16", False)
    if name not in allowed:
        raise ArtifactError(
            f"{artifact.path}: settings: provider: expected one of {', '.join(allowed)} for a target on "
            f"{manifest.target.device}, got {str(name)[:80]!r}"
        )
    if not isinstance(half, bool) or (half and name != "tensorrt"):
        raise ArtifactError(f"{artifact.path}: settings: fp16: expected true with provider tensorrt, got {half!r}")
    chosen: list[Provider] = [(_NAMES[name], {})]
    if name == "tensorrt":
        options = {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0", "trt_fp16_enable": str(int(half))}
        chosen = [(_NAMES[name], options), (_NAMES["cuda"], {})]
    missing = [provider for provider, _ in chosen if provider not in available]
    if missing:
        raise EngineError(
            f"{artifact.path}: its target {manifest.target.name} asks for {missing[0]}; this ONNX Runtime has "
            f"{list(available)}: install onnxruntime-gpu, or choose a target on the CPU"
        )
    return chosen
