"""PyTorch's compiler: operations fused, turned into C++ (or into CUDA graphs) and compiled where they run.

An artifact holds the same document of operations as the eager engine's, never compiled code: nothing from outside runs
as code. It is compiled on this machine when the engine is loaded, which takes seconds and needs a C++ compiler. What
was compiled is shared by the engines of a process that run the same artifact, as long as one of them is open.

Code is made for fixed shapes: with an open batch, PyTorch 2.13 cuts the range at channel counts, compiles again beyond,
and fails on some int8 convolutions. So a batch is filled up to the next power of two by repeating its last row, and the
answers are cut: 1, 2, 4, … up to the target's batch, the first and the last compiled when the engine is loaded, the
others when they first come. Bigger calls are cut and joined; beyond ``MAX_SHAPES`` shapes operations run one by one.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

import numpy as np
import torch
from torch import fx

from tauten.artifact.read import Artifact
from tauten.core.rows import count_rows, has_batch, join_rows, take_rows
from tauten.core.tensor import Array, Arrays
from tauten.errors import ArtifactError, EngineError
from tauten.run.engines._operations import rebuild, to_tensor
from tauten.run.engines._threads import OPENMP, UNBOUND, unmet
from tauten.run.engines.engine import Engine

__all__ = ["Inductor"]

MAX_SHAPES: Final = 32
"""How many shapes an artifact is compiled for at most in one process."""

_TEXT: Final = re.compile(r"[A-Za-z0-9_ ,.>-]{0,64}")
"""What a text among an operation's arguments may be: the compiler writes it into source code."""

_VIEWS: Final = ("aten.as_strided", "aten.set_", "aten.empty_strided")
"""Operations that say where memory lies: eager PyTorch checks them when they run, compiled code does not."""

_PRODUCTS: Final = re.compile(r"aten\.(conv\w*|linear|matmul|mm|bmm|addmm|baddbmm|scaled_dot_product_attention)\.")
_FUSED: Final = {
    "qconv_weight_prepack_matcher_count": "convolution",
    "qlinear_weight_prepack_matcher_count": "linear",
}
"""The compiler's counts of operations that it put on integer arithmetic, and what those are."""

_COMPILING: Final = threading.Lock()
_SHARED: weakref.WeakValueDictionary[tuple[Any, ...], Compiled] = weakref.WeakValueDictionary()


class Compiled:
    """A document's operations, compiled for each set of shapes that they are called with."""

    def __init__(self, module: fx.GraphModule, device: str, threads: int, products: Counter[str]) -> None:
        self._plain = module
        self._device = device
        self._threads = threads
        self._made: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self.products = products
        self.int8: Counter[str] = Counter()
        self.one_by_one = 0

    @property
    def shapes(self) -> list[list[list[int]]]:
        """The shapes of the inputs that there is code for."""
        return [[list(shape) for shape in shapes] for shapes in self._made]

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """The outputs in order, in memory of their own."""
        with torch.inference_mode():
            tensors = [to_tensor(np.ascontiguousarray(array)).to(self._device) for array in arrays]
            shapes = tuple(tuple(tensor.shape) for tensor in tensors)
            run = self._plain if any(0 in shape for shape in shapes) else self._made.get(shapes)
            if run is None:
                run = self._compile(shapes, tensors)
            if self._device != "cpu":
                # The memory of a CUDA graph is written again by the next call.
                with _COMPILING:
                    return [answer.cpu().numpy().copy() for answer in run(*tensors)]
            return [np.array(answer.numpy()) for answer in run(*tensors)]

    def _compile(self, shapes: tuple[Any, ...], tensors: list[torch.Tensor]) -> Callable[..., Any]:
        with _COMPILING:
            if shapes in self._made:
                return self._made[shapes]
            if len(self._made) >= MAX_SHAPES:
                self.one_by_one += 1
                return self._plain
            # A graph of its own, with the same weights: the compiler bounds how often it compiles one function.
            module = fx.GraphModule(self._plain, self._plain.graph)
            # Shapes and types are checked here. The compiler's own checks would also hold the process's threads to what
            # it was compiled for, and compile again, without these settings, where another engine has set others.
            options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
            if self._device == "cuda":
                options["triton.cudagraphs"] = True
            with _settings(self._threads):
                before = _fused()
                run: Callable[..., Any] = torch.compile(module, dynamic=False, fullgraph=True, options=options)
                run(*tensors)
                found = _fused() - before
            if not self._made:
                self.int8 = found
            self._made[shapes] = run
            return run


class Inductor(Engine):
    """Runs compiled code. It computes with the threads that it was compiled for."""

    def __init__(self, artifact: Artifact, compiled: Compiled, threads: int) -> None:
        super().__init__(artifact.manifest.inputs, artifact.manifest.outputs)
        self._path = artifact.path
        self._compiled: Compiled | None = compiled
        self._threads = threads
        self._target = artifact.manifest.target
        self._device = self._target.device
        self._most = self._target.batch
        self._joins = has_batch(self.inputs) and all(spec.batch_axis is not None for spec in self.outputs)

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """An engine over the artifact, compiled for one row and for the target's batch.

        Raises ``ArtifactError`` where the document is malformed or calls what it must not, ``EngineError`` where there
        is no C++ compiler, no device as the target wants it, or where the compiler fails.
        """
        target = artifact.manifest.target
        if target.device == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"{artifact.path}: target {target.name} asks for a CUDA device; PyTorch finds none")
        if target.device == "cpu":
            _need_compiler(artifact)
        # PyTorch's own operations between the compiled ones: a process has one number of threads for them.
        torch.set_num_threads(threads)
        engine = cls(artifact, _shared(artifact, target.device, threads), threads)
        engine._warm()
        return engine

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        compiled = self._compiled
        if compiled is None:
            raise EngineError(f"{self._path}: the engine was closed")
        rows = count_rows(self.inputs, inputs)
        if not self._joins or not rows:
            return self._call(compiled, inputs)
        if rows > self._most:
            starts = range(0, rows, self._most)
            parts = [take_rows(self.inputs, inputs, range(start, min(start + self._most, rows))) for start in starts]
            return join_rows(self.outputs, [self.run(part) for part in parts])
        size = min(1 << (rows - 1).bit_length(), self._most)
        if size == rows:
            return self._call(compiled, inputs)
        filled = take_rows(self.inputs, inputs, [*range(rows), *[rows - 1] * (size - rows)])
        return take_rows(self.outputs, self._call(compiled, filled), range(rows))

    def _call(self, compiled: Compiled, inputs: Mapping[str, Array]) -> Arrays:
        try:
            answers = compiled([inputs[spec.name] for spec in self.inputs])
        except Exception as fault:  # the compiler and its code raise RuntimeError, AssertionError and many others
            text = str(fault).strip()[:500]
            raise EngineError(f"{self._path}: PyTorch: {type(fault).__name__}: {text}") from fault
        return dict(zip((spec.name for spec in self.outputs), answers, strict=True))

    def _warm(self) -> None:
        """Compile for the smallest and the largest batch, where all other dimensions are fixed."""
        others = {dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str)} - {"batch"}
        if others:
            return
        for rows in sorted({1, self._most if self._joins else 1}):
            self.run({spec.name: np.zeros(spec.concrete(rows), spec.dtype) for spec in self.inputs})

    def describe(self) -> dict[str, Any]:
        """Threads, the shapes there is code for, and the products, by whether they multiply whole numbers.

        What is in int8 is counted by the compiler when it makes the code, not read from the document.
        """
        compiled = self._compiled
        if compiled is None:
            raise EngineError(f"{self._path}: the engine was closed")
        total = sum(compiled.products.values())
        fallbacks = unmet(self._target, self._threads, affinity=UNBOUND, spinning=OPENMP)
        return {
            "engine": "inductor",
            "version": torch.__version__,
            "provider": self._device,
            "threads": self._threads,
            "freezing": self._device == "cpu",
            "cuda_graphs": self._device == "cuda",
            "compiled_shapes": compiled.shapes,
            "calls_not_compiled": compiled.one_by_one,
            "operations": {
                "int8": dict(sorted(compiled.int8.items())),
                "products": dict(sorted(compiled.products.items())),
                "int8_share_of_products": round(sum(compiled.int8.values()) / total, 4) if total else 0.0,
            },
            **({"fallbacks": fallbacks} if fallbacks else {}),
        }

    def close(self) -> None:
        self._compiled = None


def _shared(artifact: Artifact, device: str, threads: int) -> Compiled:
    """What an open engine of this process has compiled of the same files, or a new one."""
    files = sorted((name, artifact.checksums[name]) for name in artifact.manifest.files)
    key = (tuple(files), device, threads)
    found = _SHARED.get(key)
    if found is not None:
        return found
    names = [spec.name for spec in artifact.manifest.inputs]
    graph, weights = artifact.graph(), artifact.weights()
    try:
        module = rebuild(graph, weights, names, len(artifact.manifest.outputs), device)
        products = _survey(graph)
    except ArtifactError as fault:
        raise ArtifactError(f"{artifact.path}: {fault}") from None
    found = Compiled(module, device, threads, products)
    return _SHARED.setdefault(key, found)


def _survey(graph: bytes) -> Counter[str]:
    """The products that a document computes; ``ArtifactError`` where it holds what must not be compiled."""
    products: Counter[str] = Counter()
    for node in json.loads(graph)["nodes"]:
        target = node["target"]
        if target.startswith(_VIEWS):
            raise ArtifactError(f"graph: operation {target!r} is not allowed in a graph that is compiled")
        for text in _texts([node["args"], list(node.get("kwargs", {}).values())]):
            if not _TEXT.fullmatch(text):
                raise ArtifactError(f"graph: the text {text[:80]!r} is not allowed in a graph that is compiled")
        if found := _PRODUCTS.match(target):
            products[found[1]] += 1
    return products


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _need_compiler(artifact: Artifact) -> None:
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise EngineError(
            f"{artifact.path}: the inductor engine compiles C++ and found no compiler: install g++ or clang++, or "
            "name one in the environment variable CXX"
        ) from None


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """The compiler's settings while it works.

    Weights are constants that it may fold and pack, without which int8 is slower than float. It compiles in this
    process, and keeps no pickled graphs on the disk for a later one to read. It warns of deprecated calls that it makes
    itself; what goes wrong it raises.
    """
    import torch._functorch.config
    import torch._inductor.config

    with (
        warnings.catch_warnings(),
        torch._inductor.config.patch(
            {"freezing": True, "compile_threads": 1, "fx_graph_cache": False, "cpp.threads": threads}
        ),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield


def _fused() -> Counter[str]:
    from torch._dynamo.utils import counters

    return Counter({what: counters["inductor"][name] for name, what in _FUSED.items() if counters["inductor"][name]})
