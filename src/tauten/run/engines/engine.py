"""The seam between an artifact and what computes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tauten.artifact.read import Artifact
from tauten.core.tensor import Array, Arrays, TensorSpec, check_arrays
from tauten.run.engines._fits import make_fits

if TYPE_CHECKING:
    from tauten.run.engines._padding import Padding


@dataclass(frozen=True)
class OperationTime:
    """What one operation took, on average over some calls.

    ``name`` is the backend's own, ``kind`` the operation's (``Convolution``). ``precision`` is what it computes in:
    ``int8``, ``int4``, ``float32``, ``float16``, ``bfloat16`` or another type's name; empty where that is not known.
    ``weight`` names the artifact's weight that it multiplies with; empty where there is none or the backend hides it.
    """

    name: str
    kind: str
    precision: str
    milliseconds: float
    weight: str = ""


class Engine(ABC):
    """Runs one artifact on arrays. Safe to call from many threads at once.

    An engine implements ``load`` and ``run``; callers use ``__call__``, which checks the inputs first.
    """

    padding: Padding | None = None
    """What its answers do not depend on, where it is known: columns that a mask closes, behind the last open one."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._fits = make_fits(self.inputs)

    @classmethod
    @abstractmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """An engine with ``artifact`` in it; ``EngineError`` where it cannot be."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs by name, for inputs that were checked. Raises ``EngineError``."""

    def __call__(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs by name, as NumPy arrays.

        Raises ``InputError`` where names, dtypes or shapes do not fit, ``EngineError`` where running fails.
        """
        if not self._fits(inputs):
            check_arrays(self.inputs, inputs)
        return self.run(inputs)

    def describe(self) -> dict[str, Any]:
        """What really runs, as JSON: engine, version, provider, threads, and what else the engine knows."""
        return {}

    def profile(self, inputs: Mapping[str, Array], repeats: int = 10) -> tuple[OperationTime, ...]:
        """What each operation takes on ``inputs``, in the order they run; nothing where the backend cannot tell.

        A measurement of its own, apart from serving. Raises ``EngineError`` where it fails.
        """
        return ()

    def close(self) -> None:
        """Give back what the engine holds. It cannot be called after."""
