"""Model to graph file: one file an engine."""

from __future__ import annotations

from tauten.core.registry import Registry
from tauten.make.lower.lowering import Lowering

LOWERINGS: Registry[Lowering] = Registry("lowering", "tauten.make.lower", besides=("lowering", "artifact"))
