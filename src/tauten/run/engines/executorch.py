"""ExecuTorch with XNNPACK, on the CPU: the runtime of phones and small boards, through its Python bindings.

The graph is an ExecuTorch program (``model.pte``) with its weights inside; the weights file holds none. The program is
planned for at most so many rows: calls with more are cut and joined again. Some models run with sizes that are fixed
alone. Their program has a method for each of a few batch sizes, which the manifest's settings name; any batch is cut
into such, the last one filled up. The bindings hold Python's lock while a method runs, so engines in one process take
turns; more of a machine is used by more threads, or by more processes.

What is trusted: the program's header, its sizes and every offset on the way to its kernels and delegates are checked,
other delegates than XNNPACK are refused, and the runtime verifies the program's structure. A program is data, not
machine code, but the runtime follows what its instructions say: take ``.pte`` files only from those you would take a
program from.
"""

from __future__ import annotations

import io
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from itertools import pairwise
from typing import Annotated, Any, Final, Self

import numpy as np
from pydantic import Field, field_validator

from tauten.artifact.read import Artifact
from tauten.core.rows import count_rows, join_rows, take_rows
from tauten.core.tensor import BATCH, Array, Arrays, TensorSpec
from tauten.core.value import Value
from tauten.errors import ArtifactError, ConfigError, EngineError, ExtraMissing
from tauten.run.engines._fixed import run_fixed
from tauten.run.engines._pte import METHOD, Survey, method_for, survey
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


class Settings(Value):
    """How an artifact asks to be run: where ``batches`` names sizes, the program has a method each, and no other."""

    batches: Annotated[tuple[Annotated[int, Field(ge=1, le=2**20)], ...], Field(max_length=8)] = ()

    @field_validator("batches")
    @classmethod
    def _rise(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if any(one >= other for one, other in pairwise(batches)):
            raise ValueError(f"expected batch sizes that rise, got {list(batches)}")
        return batches

    @property
    def methods(self) -> tuple[str, ...]:
        """What the program's methods are called."""
        return tuple(method_for(rows) for rows in self.batches) or (METHOD,)


Border = list[tuple[str, tuple[int, ...]]]
"""``(dtype, sizes)`` of each input or output, with the largest size of those that vary."""


class Program:
    """A program in the runtime. Raises ``EngineError`` where the runtime refuses it.

    ``borders`` are the inputs and the outputs of each method. The first one is made ready at once, the others when they
    are first called, for each takes memory of its own.
    """

    def __init__(self, data: bytes, threads: int, methods: Sequence[str] = (METHOD,)) -> None:
        self._data = data  # the program reads its weights from these bytes as long as it lives
        self._ready: dict[str, Any] = {}
        with _TURN:
            _set_threads(threads)
            try:
                self._program = runtime._load_program_from_buffer(
                    data, program_verification=runtime.Verification.InternalConsistency
                )
                self._ready[methods[0]] = self._program.load_method(methods[0])
                self.borders = {name: _borders(self._program.method_meta(name)) for name in methods}
                _ALIVE.add(self)
            except RuntimeError as fault:
                raise EngineError(f"ExecuTorch: {fault}") from fault

    def __call__(self, arrays: Sequence[Array], method: str = METHOD) -> list[Array]:
        """The outputs in order, in memory of their own. Raises ``EngineError``."""
        tensors = [torch.from_numpy(np.require(array, requirements=("C", "W"))) for array in arrays]
        with _TURN:
            try:
                if method not in self._ready:
                    self._ready[method] = self._program.load_method(method)
                answers = self._ready[method].call(tensors)
            except RuntimeError as fault:
                raise EngineError(f"ExecuTorch: {fault} (inputs {[array.shape for array in arrays]})") from fault
        return [answer.numpy() for answer in answers]


class ExecuTorch(Engine):
    """Runs one program, one call at a time. The one that is loaded first sets the threads of the process."""

    def __init__(self, artifact: Artifact, program: Program, settings: Settings, found: Survey) -> None:
        super().__init__(artifact.manifest.inputs, artifact.manifest.outputs)
        self._path = artifact.path
        self._target = artifact.manifest.target
        self._program: Program | None = program
        self._batches = settings.batches
        self._found = found
        self._limits = _limits(artifact, program, settings)

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """An engine over the artifact.

        Raises ``ArtifactError`` where the program or the settings are malformed or are not what the manifest declares,
        ``EngineError`` where the runtime refuses it or the target is no processor.
        """
        target = artifact.manifest.target
        if target.device != "cpu":
            raise EngineError(
                f"{artifact.path}: the executorch engine runs on the CPU; target {target.name} asks for {target.device}"
            )
        data = artifact.graph()
        try:
            settings = Settings.from_json(artifact.manifest.settings)
            found = survey(data, settings.methods)
        except (ArtifactError, ConfigError) as fault:
            raise ArtifactError(f"{artifact.path}: {fault}") from None
        if artifact.weights():
            raise ArtifactError(f"{artifact.path}: an ExecuTorch program holds its weights; the artifact has more")
        try:
            return cls(artifact, Program(data, threads, settings.methods), settings, found)
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
        if self._batches:
            return run_fixed(
                lambda size, arrays: self._call(program, arrays, method_for(size)),
                self._batches, (self.inputs, inputs), self.outputs,
            )  # fmt: skip
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

    def _call(self, program: Program, inputs: Mapping[str, Array], method: str = METHOD) -> Arrays:
        try:
            answers = program([inputs[spec.name] for spec in self.inputs], method)
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
        """Threads, sizes, and what the program runs: operations of XNNPACK, and kernels outside of it.

        ``largest`` are the sizes that dimensions may have, ``batches`` the only ones that are computed where batches
        are cut and filled up.

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
            **({"batches": list(self._batches)} if self._batches else {}),
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
    with without_words():
        if not _ALIVE and runtime._threadpool_get_thread_count() != threads:
            runtime._unsafe_reset_threadpool(threads)


@contextmanager
def without_words() -> Iterator[None]:
    """Without what the runtime writes to standard error, for which it has no switch.

    While it looks at the processor and makes threads, it says on any machine but a phone that files of phones are
    missing; where a call fails, it says so before the exception does.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        # The bindings write to what Python calls standard error, which a notebook puts elsewhere.
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _borders(meta: Any) -> tuple[Border, Border]:
    """The inputs and the outputs of a method."""
    inputs = [meta.input_tensor_meta(index) for index in range(meta.num_inputs())]
    outputs = [meta.output_tensor_meta(index) for index in range(meta.num_outputs())]
    first, second = (
        [(_DTYPES.get(one.dtype(), "?"), tuple(one.sizes())) for one in some] for some in (inputs, outputs)
    )
    return first, second


def _limits(artifact: Artifact, program: Program, settings: Settings) -> dict[str, int]:
    """The largest size of each named dimension; ``ArtifactError`` where manifest and program differ otherwise."""
    manifest = artifact.manifest
    if settings.batches:
        rowless = [spec.name for spec in manifest.outputs if spec.batch_axis is None]
        if rowless or all(spec.batch_axis is None for spec in manifest.inputs):
            raise ArtifactError(
                f"{artifact.path}: the settings name batches of {list(settings.batches)} rows, but "
                f"{', '.join(rowless) or 'no input'} {'does not count' if rowless else 'counts'} rows"
            )
    found: dict[str, int] = {}
    for method, rows in zip(settings.methods, settings.batches or (None,), strict=True):
        inputs, outputs = program.borders[method]
        for what, specs, came in (("input", manifest.inputs, inputs), ("output", manifest.outputs, outputs)):
            if len(came) != len(specs) or not all(
                _fits(spec, *one, rows) for spec, one in zip(specs, came, strict=True)
            ):
                expected = [f"{spec.name} {spec.dtype}{spec.shape_text}" for spec in specs]
                raise ArtifactError(
                    f"{artifact.path}: the manifest declares {what}s {expected}, the program has {came} in {method!r}"
                )
        for spec, (_, sizes) in zip(manifest.inputs, inputs, strict=True):
            for dim, size in zip(spec.shape, sizes, strict=True):
                if isinstance(dim, str):
                    found[dim] = min(size, found.get(dim, size))
    if settings.batches:
        found[BATCH] = settings.batches[-1]
    return found


def _fits(spec: TensorSpec, dtype: str, sizes: tuple[int, ...], rows: int | None) -> bool:
    """Whether a value of the program is what the manifest declares, in a method for ``rows`` rows where it is for one.

    A named dimension may have any size.
    """
    declared = [rows or dim if dim == BATCH else dim for dim in spec.shape]
    same = all(isinstance(dim, str) or dim == size for dim, size in zip(declared, sizes, strict=False))
    return dtype == spec.dtype and len(sizes) == len(spec.shape) and same
