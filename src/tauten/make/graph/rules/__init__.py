"""What each ATen operation does to channels: one file a family, one function an operation or several alike.

To add an operation, write a function ``(trace, call) -> Value`` (or a tuple of them, where the operation returns
several tensors) under ``@rule("name")`` with the operation's ATen name, overload and in-place ``_`` left out, in the
file of its family or in a new one: every file of this folder is read.

A rule must be sure: whatever of its operands' axes it cannot pass on exactly, it freezes with ``call.where``.
"""

from __future__ import annotations

import importlib
import pkgutil

from tauten.make.graph.rules._table import RULES, Rule

for _item in pkgutil.iter_modules(__path__):
    if not _item.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_item.name}")

__all__ = ["RULES", "Rule"]
