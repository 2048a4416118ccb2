"""What ONNX Runtime's own profile says of each operation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

from tauten.run.engines._onnx_names import Named
from tauten.run.engines.engine import OperationTime

_WRAPPERS: Final = ("If", "Loop", "Scan")  # their time is that of the operations inside
_END: Final = "_kernel_time"
_TYPES: Final = {"float": "float32", "double": "float64", "uint8": "int8"}


def read_profile(
    data: bytes, repeats: int, is_int8: Callable[[str], bool], named: Named, weights: Collection[str], prefix: str = ""
) -> list[OperationTime]:
    """The mean time of each operation over ``repeats`` calls, in the order they ran; the call before those is left out.

    ``data`` is the JSON that a session over the ``named`` graph has written with profiling on; ``weights`` are the
    names of all weights. ``prefix`` goes before each name.
    """
    spent: Counter[str] = Counter()
    kinds: dict[str, tuple[str, str, str]] = {}
    events = [
        (event, event["args"].get("op_name", ""), event["name"].removesuffix(_END))
        for event in json.loads(data)
        if event.get("cat") == "Node" and event["name"].endswith(_END)
    ]
    read = named.weights({label: kind for _, kind, label in events}, weights)
    for event, kind, label in events:
        if kind in _WRAPPERS:
            continue
        # The name is of our making, and one operation may have become several; their number tells them apart.
        name = f"{prefix}{kind}#{event['args'].get('node_index', '')}"
        if name not in kinds:
            kinds[name] = kind, "int8" if is_int8(kind) else _precision(event["args"]), read.get(label, "")
        else:
            spent[name] += event["dur"]
    return [
        OperationTime(
            name=name, kind=kind, precision=precision, milliseconds=spent[name] / 1e3 / repeats, weight=weight
        )
        for name, (kind, precision, weight) in kinds.items()
    ]


def _precision(arguments: dict[str, Any]) -> str:
    """The type of the first result: ``int8`` where a value is made or moved as 8-bit numbers."""
    results = arguments.get("output_type_shape") or [{}]
    kind = next(iter(results[0]), "")
    return _TYPES.get(kind, kind)
