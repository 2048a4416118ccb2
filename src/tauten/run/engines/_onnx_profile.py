"""What ONNX Runtime's own profile says of each operation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tauten.run.engines.engine import OperationTime

_WRAPPERS: Final = ("If", "Loop", "Scan")  # their time is that of the operations inside
_TYPES: Final = {"float": "float32", "double": "float64", "uint8": "int8"}


def read_profile(data: bytes, repeats: int, is_int8: Callable[[str], bool], prefix: str = "") -> list[OperationTime]:
    """The mean time of each operation over ``repeats`` calls, in the order they ran; the call before those is left out.

    ``data`` is the JSON that a session with profiling on has written; ``prefix`` goes before each name.
    """
    spent: Counter[str] = Counter()
    kinds: dict[str, tuple[str, str]] = {}
    for event in json.loads(data):
        kind = event.get("args", {}).get("op_name", "")
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time") or kind in _WRAPPERS:
            continue
        # Nodes of a lowered graph have no names of their own; their number tells them apart.
        label = event["name"].removesuffix("_kernel_time") or kind
        name = f"{prefix}{label}#{event['args'].get('node_index', '')}"
        if name not in kinds:
            kinds[name] = kind, "int8" if is_int8(kind) else _precision(event["args"])
        else:
            spent[name] += event["dur"]
    return [
        OperationTime(name=name, kind=kind, precision=precision, milliseconds=spent[name] / 1e3 / repeats)
        for name, (kind, precision) in kinds.items()
    ]


def _precision(arguments: dict[str, Any]) -> str:
    """The type of the first result: ``int8`` where a value is made or moved as 8-bit numbers."""
    results = arguments.get("output_type_shape") or [{}]
    kind = next(iter(results[0]), "")
    return _TYPES.get(kind, kind)
