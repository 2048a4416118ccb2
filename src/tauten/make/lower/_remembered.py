"""What was worked out for a model last, for those who lower it again in another way.

A race, or a search over placements, lowers one model many times. Exporting it, walking the calibration data through its
graph and asking the module for its answers take most of that time and come out the same each time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

from torch import nn

from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task

T = TypeVar("T")


class _Last:
    """What is known of one module on one task; asked for another, it forgets. Nothing outlives the module."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._module: weakref.ref[nn.Module] | None = None
        self._task: weakref.ref[Task] | None = None
        self._scope: tuple[Any, ...] = ()
        self._known: dict[Hashable, Any] = {}

    def get(self, model: Model, context: Context, what: Hashable, make: Callable[[], T]) -> T:
        """``make()``, or what that gave when it was last asked for ``what`` of this very module and task."""
        with self._lock:
            known = self._of(model, context)
            if what in known:
                found: T = known[what]
                return found
        made = make()
        with self._lock:
            self._of(model, context)[what] = made
        return made

    def _of(self, model: Model, context: Context) -> dict[Hashable, Any]:
        scope = (model.inputs, model.outputs, context.seed)
        module, task = self._module and self._module(), self._task and self._task()
        if module is not model.module or task is not context.task or self._scope != scope:
            known: dict[Hashable, Any] = {}
            # The dictionary, not this object: when the module goes, a later one may already be known here.
            self._module = weakref.ref(model.module, lambda _: known.clear())
            # Neither is kept from going: a task may hold the module, and all of its data.
            self._task = weakref.ref(context.task)
            self._scope, self._known = scope, known
        return self._known


_LAST: Final = _Last()


def remembered(model: Model, context: Context, what: Hashable, make: Callable[[], T]) -> T:
    """``make()``, once for each ``what`` as long as it is asked of one module and task.

    The module must be left as it is meanwhile, which a ``Model`` promises. What ``make`` raises is not remembered.
    """
    return _LAST.get(model, context, what, make)
