"""Which recipe to try next: one file a strategy."""

from __future__ import annotations

from tauten.core.registry import Registry
from tauten.make.search.strategies._strategy import Strategy

STRATEGIES: Registry[type[Strategy]] = Registry("strategy", "tauten.make.search.strategies")
