"""What schemathesis is told beside the OpenAPI document.

A JSON Schema cannot say that ``data`` has as many numbers as ``shape`` says: where a dimension varies, requests that
are meant to fit are given a shape, and as many numbers. And a deadline of some microseconds is rightly answered with
503: it is left out.
"""

from __future__ import annotations

import math
from typing import Any

import schemathesis


def _fit(tensor: dict[str, Any]) -> None:
    if not isinstance(tensor.get("shape"), list) or not isinstance(tensor.get("data"), list):
        return
    shape, data = tensor["shape"], tensor["data"]
    while data and isinstance(data[0], list):
        data = [number for row in data for number in row]
    rows = 1 + len(data) % 3
    tensor["shape"] = [rows, *SHAPES[tensor["name"]][1:]]
    wanted = math.prod(tensor["shape"])
    tensor["data"] = (data * wanted)[:wanted]
    del shape


SHAPES = {"x": (-1, 3)}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    return body
