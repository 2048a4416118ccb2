"""What schemathesis is told beside the OpenAPI document, for requests that are meant to fit.

JSON Schema cannot say that ``data`` has as many numbers as ``shape`` says: where a dimension varies, they are given as
many. To it ``2.0`` is an integer: the server takes integers that are written as such. And a deadline of some
microseconds is rightly answered with 503: it is left out.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import GenerationMode

WIDTH = 3
"""Of the model ``varies``: its input is ``x (batch, 3)``."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Called with each request before it is sent."""
    body = case.body
    fits = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if not fits or not isinstance(body, dict) or "inputs" not in body:
        return
    parameters = body.get("parameters")
    if isinstance(parameters, dict):
        parameters.pop("timeout", None)
        if "priority" in parameters:
            parameters["priority"] = int(parameters["priority"])
    for tensor in body["inputs"]:
        if "INT" in tensor["datatype"]:
            tensor["data"] = whole(tensor["data"])
        if "/varies/" in case.operation.path:
            data = tensor["data"]
            numbers = data if not isinstance(data[0], list) else [number for row in data for number in row]
            rows = max(1, len(numbers) // WIDTH)
            tensor["shape"] = [rows, WIDTH]
            tensor["data"] = numbers[: rows * WIDTH]


def whole(data: Any) -> Any:
    return [whole(item) for item in data] if isinstance(data, list) else int(data)
