"""PyTorch's translations to ONNX, read once a process.

``torch.onnx.export`` builds its table of translations anew at each call, for which it parses the source of some five
hundred functions. In a run that exports one small candidate after another that is a third of the time of each.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

_LOCK: Final = threading.RLock()


@contextlib.contextmanager
def translations_kept() -> Iterator[None]:
    """Within, ``torch.onnx.export`` takes the table that its first call made; one thread at a time.

    The table has no public door. Where another PyTorch keeps it elsewhere, nothing changes: exports are slower.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        whole = ONNXRegistry.__dict__["from_torchlib"]
    except (ImportError, AttributeError, KeyError):
        yield
        return
    with _LOCK:
        ONNXRegistry.from_torchlib = classmethod(_copied(whole))  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            ONNXRegistry.from_torchlib = whole  # type: ignore[method-assign]


@cache
def _copied(whole: Any) -> Any:
    """What makes a table as ``whole`` does, a class method, but once for the same arguments."""
    made = cache(whole.__func__)

    def from_torchlib(cls: type, *arguments: Any, **options: Any) -> Any:
        table = copy.copy(made(cls, *arguments, **options))
        # An export may add translations of its own to its table.
        table.functions = {operation: list(found) for operation, found in table.functions.items()}
        return table

    return from_torchlib
