"""ExecuTorch with XNNPACK, on the CPU: the runtime of phones and small boards, through its Python bindings.

The graph is an ExecuTorch program (``model.pte``) with its weights inside; the weights file holds none. The program is
planned for at most so many rows: calls with more are cut and joined again. The bindings hold Python's lock while a
method runs, so engines in one process take turns; more of a machine is used by more threads, or by more processes.

What is trusted: the program's header, its sizes and every offset on the way to its kernels and delegates are checked,
other delegates than XNNPACK are refused, and the runtime verifies the program's structure. A program is data, not
machine code, but the runtime follows what its instructions say: take ``.pte`` files only from those you would take a
program from.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final, Self

import numpy as np

from tauten.artifact.read import Artifact
from tauten.core.rows import count_rows, join_rows, take_rows
from tauten.core.tensor import BATCH, Array, Arrays, TensorSpec
from tauten.errors import ArtifactError, EngineError, ExtraMissing
from tauten.run.engines._pte import METHOD, Survey, survey
from tauten.run.engines._threads import unmet
from tauten.run.engines.engine import Engine

try:
    import torch

    # Not ``executorch.runtime``: it imports the whole exporter with torchao, seconds of it, to give a warning.
    from executorch.extension.pybindings import _C as runtime
except ModuleNotFoundError as fault:
    raise ExtraMissing(f"engine 'executorch' ({fault.name} is not installed)", "edge") from fault

__all__ = ["ExecuTorch"]

_TURN: Final = threading.Lock()
"""Held while a method runs and while the threads, of which a process has one pool, are set."""

_ALIVE: Final[weakref.WeakSet[Program]] = weakref.WeakSet()
"""The programs of this process, which share its pool of threads."""

_DTYPES: Final = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool",
    27: "uint16", 28: "uint32", 29: "uint64",
}  # fmt: skip
"""What the numbers of PyTorch's ``ScalarType`` stand for."""


class Program:
    """A program in the runtime. Raises ``EngineError`` where the runtime refuses it.

    ``inputs`` and ``outputs`` are ``(dtype, sizes)`` of each, with the largest size of those that vary.
    """

    def __init__(self, data: bytes, threads: int) -> None:
        self._data = data  # the program reads its weights from these bytes as long as it lives
        with _TURN:
            _set_threads(threads)
            try:
                self._program = runtime._load_program_from_buffer(
                    data, program_verification=runtime.Verification.InternalConsistency
                )
                self._method = self._program.load_method(METHOD)
                _ALIVE.add(self)
            except RuntimeError as fault:
                raise EngineError(f"ExecuTorch: {fault}") from fault
        meta = self._method.method_meta()
        self.inputs = [_border(meta.input_tensor_meta(index)) for index in range(meta.num_inputs())]
        self.outputs = [_border(meta.output_tensor_meta(index)) for index in range(meta.num_outputs())]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """The outputs in order, in memory of their own. Raises ``EngineError``."""
        tensors = [torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in arrays]
        with _TURN:
            try:
                answers = self._method.call(tensors)
            except RuntimeError as fault:
                raise EngineError(f"ExecuTorch: {fault} (inputs {[array.shape for array in arrays]})") from fault
        return [answer.numpy() for answer in answers]


class ExecuTorch(Engine):
    """Runs one program, one call at a time. The one that is loaded first sets the threads of the process."""

    def __init__(self, artifact: Artifact, program: Program, found: Survey) -> None:
        super().__init__(artifact.manifest.inputs, artifact.manifest.outputs)
        self._path = artifact.path
        self._target = artifact.manifest.target
        self._program: Program | None = program
        self._found = found
        self._limits = _limits(artifact, program)

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """An engine over the artifact.

        Raises ``ArtifactError`` where the program is malformed or is not what the manifest declares, ``EngineError``
        where the runtime refuses it or the target is no processor.
        """
        target = artifact.manifest.target
        if target.device != "cpu":
            raise EngineError(
                f"{artifact.path}: the executorch engine runs on the CPU; target {target.name} asks for {target.device}"
            )
        data = artifact.graph()
        try:
            found = survey(data)
        except ArtifactError as fault:
            raise ArtifactError(f"{artifact.path}: {fault}") from None
        if artifact.weights():
            raise ArtifactError(f"{artifact.path}: an ExecuTorch program holds its weights; the artifact has more")
        try:
            return cls(artifact, Program(data, threads), found)
        except EngineError as fault:
            raise EngineError(f"{artifact.path}: {fault}") from fault

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        program = self._program
        if program is None:
            raise EngineError(f"{self._path}: the engine was closed")
        self._check_sizes(inputs)
        rows, most = count_rows(self.inputs, inputs), self._limits.get(BATCH)
        if not rows:
            raise EngineError(f"{self._path}: expected at least one row, got none")
        if most is None or rows <= most:
            return self._call(program, inputs)
        if any(spec.batch_axis is None for spec in self.outputs):
            raise EngineError(
                f"{self._path}: the program takes at most {most} rows a call, and an output has no rows to join: "
                f"lower it for a target with batch {rows} or more"
            )
        starts = range(0, rows, most)
        parts = [take_rows(self.inputs, inputs, range(start, min(start + most, rows))) for start in starts]
        return join_rows(self.outputs, [self._call(program, part) for part in parts])

    def _call(self, program: Program, inputs: Mapping[str, Array]) -> Arrays:
        try:
            answers = program([inputs[spec.name] for spec in self.inputs])
        except EngineError as fault:
            raise EngineError(f"{self._path}: {fault}") from fault
        return dict(zip((spec.name for spec in self.outputs), answers, strict=True))

    def _check_sizes(self, inputs: Mapping[str, Array]) -> None:
        for spec in self.inputs:
            for dim, size in spec.sizes(inputs[spec.name].shape).items():
                most = self._limits[dim]
                if dim != BATCH and size > most:
                    raise EngineError(
                        f"{self._path}: {spec.name}: dimension {dim!r} is {size}, the program takes {most}"
                    )

    def describe(self) -> dict[str, Any]:
        """Threads, the largest sizes, and what the program runs: operations of XNNPACK, and kernels outside of it.

        ``int8_share_of_products`` is the share of matrix products and convolutions that multiply whole numbers.
        """
        threads = runtime._threadpool_get_thread_count()
        fallbacks = unmet(
            self._target, threads,
            affinity="XNNPACK's threads cannot be bound to cores",
            spinning="XNNPACK's threads spin for a while, then sleep; that cannot be set",
        )  # fmt: skip
        return {
            "engine": "executorch",
            "version": version("executorch"),
            "provider": "xnnpack",
            "threads": threads,
            "largest": dict(self._limits),
            "calls_of_xnnpack": self._found.delegates,
            "operations": {
                "int8": dict(sorted(self._found.int8.items())),
                "int8_weights": dict(sorted(self._found.weights.items())),
                "other": dict(sorted(self._found.other.items())),
                "int8_share_of_products": self._found.int8_share,
            },
            "not_in_xnnpack": dict(sorted(self._found.kernels.items())),
            **({"fallbacks": fallbacks} if fallbacks else {}),
        }

    def close(self) -> None:
        self._program = None


def _set_threads(threads: int) -> None:
    """Make the process's pool one of ``threads``, where no program is there. Only with the turn.

    A program keeps the pool that it was loaded with; another one in its place would be memory that is gone.
    """
    with _without_notices():
        if not _ALIVE and runtime._threadpool_get_thread_count() != threads:
            runtime._unsafe_reset_threadpool(threads)


@contextmanager
def _without_notices() -> Iterator[None]:
    """Without what the runtime writes to standard error while it looks at the processor and makes threads.

    It has no switch for this, and says on any machine but a phone that files of phones are missing.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _border(info: Any) -> tuple[str, tuple[int, ...]]:
    return _DTYPES.get(info.dtype(), "?"), tuple(info.sizes())


def _limits(artifact: Artifact, program: Program) -> dict[str, int]:
    """The largest size of each named dimension; ``ArtifactError`` where manifest and program differ otherwise."""
    manifest = artifact.manifest
    found: dict[str, int] = {}
    for what, specs, came in (
        ("input", manifest.inputs, program.inputs), ("output", manifest.outputs, program.outputs)
    ):  # fmt: skip
        if len(came) != len(specs) or not all(_fits(spec, *one) for spec, one in zip(specs, came, strict=True)):
            expected = [f"{spec.name} {spec.dtype}{spec.shape_text}" for spec in specs]
            raise ArtifactError(f"{artifact.path}: the manifest declares {what}s {expected}, the program has {came}")
    for spec, (_, sizes) in zip(manifest.inputs, program.inputs, strict=True):
        for dim, size in zip(spec.shape, sizes, strict=True):
            if isinstance(dim, str):
                found[dim] = min(size, found.get(dim, size))
    return found


def _fits(spec: TensorSpec, dtype: str, sizes: tuple[int, ...]) -> bool:
    """Whether a value of the program is what the manifest declares; a named dimension may have any size."""
    same = all(isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, sizes, strict=False))
    return dtype == spec.dtype and len(sizes) == len(spec.shape) and same
