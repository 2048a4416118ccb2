"""How much a channel matters: one file a criterion."""

from __future__ import annotations

from tauten.core.registry import Registry
from tauten.make.passes.prune.criteria.criterion import Criterion

CRITERIA: Registry[Criterion] = Registry("criterion", "tauten.make.passes.prune.criteria", besides=("criterion",))
