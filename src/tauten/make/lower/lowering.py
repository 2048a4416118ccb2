"""The seam between a model and an engine's graph file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final

from tauten.artifact.manifest import Stage
from tauten.core.target import Target
from tauten.core.tensor import Array, TensorSpec
from tauten.errors import RecipeError
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context

Options = Mapping[str, str]
"""How an engine's graph shall be made, by name, such as ``{"placement": "products"}``."""

DEFAULTS: Final[Options] = MappingProxyType({})


@dataclass(frozen=True)
class Lowered:
    """A graph without its weights, and the weights by name.

    A model with early exits has a graph for each of its ``stages``: the first, and ``more`` by the name of the file.
    ``layers`` maps a weight's name to the module that owns it (``features.0``), where the two differ in spelling.
    ``four_bit`` names int8 weights whose values all lie in -8 to 7: two of them share a byte of the file.
    ``settings`` tell the engine how to run this graph; ``notes`` go into the history.
    """

    graph: bytes
    graph_name: str
    weights: Mapping[str, Array]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[Stage, ...] = ()
    more: Mapping[str, bytes] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    four_bit: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Lowering(ABC):
    """Makes one engine's graph of a model, and holds the two against each other.

    ``options`` are the ways in which the graph can be made: the values that each may have, the default first.
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @abstractmethod
    def __call__(self, model: Model, target: Target, context: Context, options: Options = DEFAULTS) -> Lowered:
        """The graph; ``LoweringError`` where there can be none, ``MismatchError`` where it answers otherwise."""

    def choices(self, target: Target, quantized: bool) -> tuple[Options, ...]:
        """The options that are worth measuring for a model that is quantized or not; the default comes first."""
        return (DEFAULTS,)

    def chosen(self, options: Options) -> dict[str, str]:
        """All options with their values; ``RecipeError`` for an unknown one, or a value that it may not have."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise RecipeError(f"options: expected some of {sorted(self.options)}, got {unknown}")
        for name, value in options.items():
            if value not in self.options[name]:
                raise RecipeError(f"options: {name}: expected one of {', '.join(self.options[name])}, got {value!r}")
        return {name: options.get(name, values[0]) for name, values in self.options.items()}
