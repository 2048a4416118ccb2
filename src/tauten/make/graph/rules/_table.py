"""The one table of rules, keyed by ATen operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tauten.errors import PluginError
from tauten.make.graph.value import Value

if TYPE_CHECKING:
    from tauten.make.graph.trace import Call, Trace

Rule = Callable[["Trace", "Call"], "Value | tuple[Value, ...]"]

F = TypeVar("F", bound=Rule)

RULES: dict[str, Rule] = {}


def rule(*operations: str) -> Callable[[F], F]:
    """Enter a function for these operations; ``PluginError`` where one has a rule already."""

    def enter(function: F) -> F:
        for operation in operations:
            if operation in RULES:
                raise PluginError(f"aten.{operation} has two pruning rules")
            RULES[operation] = function
        return function

    return enter
