"""The seam between a model and an engine's graph file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tauten.artifact.manifest import Stage
from tauten.core.target import Target
from tauten.core.tensor import Array, TensorSpec
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context


@dataclass(frozen=True)
class Lowered:
    """A graph without its weights, and the weights by name.

    A model with early exits has a graph for each of its ``stages``: the first, and ``more`` by the name of the file.
    ``layers`` maps a weight's name to the module that owns it (``features.0``), where the two differ in spelling.
    ``notes`` go into the history.
    """

    graph: bytes
    graph_name: str
    weights: Mapping[str, Array]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[Stage, ...] = ()
    more: Mapping[str, bytes] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


class Lowering(Protocol):
    """Makes one engine's graph of a model, and holds the two against each other."""

    def __call__(self, model: Model, target: Target, context: Context) -> Lowered:
        """The graph; ``LoweringError`` where there can be none, ``MismatchError`` where it answers otherwise."""
        ...
