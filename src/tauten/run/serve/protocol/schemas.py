"""The JSON Schema of a model's requests and responses, as exact as that language can be.

Names, types, ranges of numbers and shapes are all in it. Where every dimension is fixed, a request that fits the schema
is one that is answered; where one varies, the numbers must also be as many as the shape says, which it cannot express.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tauten.core.tensor import TensorSpec
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES, datatype_of
from tauten.run.serve.protocol.elements import BYTES
from tauten.run.serve.protocol.layout import MOST_MICROSECONDS, MOST_PRIORITY
from tauten.run.serve.protocol.v2 import MAX_DIM, UNSUPPORTED

Schema = dict[str, Any]

_LARGEST_EXAMPLE: Final = 1024
_JSON_TYPES: Final = {
    name: "boolean" if name == "bool" else "number" if "float" in name else "integer" for name in DATATYPES
} | {BYTES: "string"}
_TEXT: Final = {"type": "string"}
_DIMS: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_COUNT: Final = {"type": "integer", "minimum": 0}


def request_schema(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Schema:
    """What a JSON request for inference must be."""
    names = [spec.name for spec in outputs]
    needs_binary = any(spec.dtype in BINARY_ONLY for spec in outputs)
    parameters = _parameters(
        {
            "binary_data_output": {"const": True} if needs_binary else {"type": "boolean", "default": False},
            "priority": {"type": "integer", "minimum": 0, "maximum": MOST_PRIORITY, "description": "Lower goes first."},
            "timeout": {
                "type": "integer",
                "minimum": 0,
                "maximum": MOST_MICROSECONDS,
                "description": "Microseconds after which nobody wants the answer; 0 for no such time.",
            },
        },
        required=("binary_data_output",) if needs_binary else (),
    )
    schema: Schema = {
        "type": "object",
        "required": ["inputs", "parameters"] if needs_binary else ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"], "description": "Comes back with the answer."},
            "inputs": _each_once([_input_schema(spec) for spec in inputs], [spec.name for spec in inputs], len(inputs)),
            "outputs": {
                **_each_once([_output_request(names, binary_only=needs_binary)], names, 0),
                "type": ["array", "null"],
                "description": "Which are wanted; all where none is named.",
            },
            "parameters": parameters,
        },
    }
    example = example_of(inputs, outputs)
    if example is not None:
        schema["examples"] = [example]
    return schema


def example_of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, Any] | None:
    """A request of one row of zeros; ``None`` where that would be long, or is no JSON."""
    if any(spec.dtype in BINARY_ONLY for spec in inputs):
        return None
    shapes = [spec.concrete() for spec in inputs]
    if sum(math.prod(shape) for shape in shapes) > _LARGEST_EXAMPLE:
        return None
    tensors = [
        {
            "name": spec.name,
            "datatype": datatype_of(spec.dtype),
            "shape": list(shape),
            "data": [_zero(spec.dtype)] * math.prod(shape),
        }
        for spec, shape in zip(inputs, shapes, strict=True)
    ]
    example: dict[str, Any] = {"inputs": tensors}
    if any(spec.dtype in BINARY_ONLY for spec in outputs):
        example["parameters"] = {"binary_data_output": True}
    return example


def _input_schema(spec: TensorSpec) -> Schema:
    return {
        "type": "object",
        "title": spec.name,
        "description": f"{spec.name} {spec.shape_text}",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": datatype_of(spec.dtype)},
            "shape": _shape_schema(spec),
            "data": _data_schema(spec),
            "parameters": _parameters({"binary_data_size": False}),
        },
    }


def _shape_schema(spec: TensorSpec) -> Schema:
    dims = [{"type": "integer", "minimum": 1, "maximum": MAX_DIM} if isinstance(dim, str) else {"const": dim}
            for dim in spec.shape]  # fmt: skip
    if all("const" in dim for dim in dims):
        return {"const": [dim["const"] for dim in dims]}
    return {"type": "array", "minItems": len(dims), "maxItems": len(dims), "prefixItems": dims}


def _data_schema(spec: TensorSpec) -> Schema:
    """Elements nested like the shape, or flat and row by row."""
    item = _item_schema(spec.dtype)
    fixed = [None if isinstance(dim, str) else dim for dim in spec.shape]
    least = math.prod(dim for dim in fixed if dim is not None)
    flat: Schema = {"type": "array", "items": item, "minItems": least}
    if None not in fixed:
        flat["maxItems"] = least
    if not fixed:
        return {"anyOf": [item, flat]}
    nested = item
    for dim in reversed(fixed):
        nested = {"type": "array", "items": nested, "minItems": 1 if dim is None else dim}
        if dim is not None:
            nested["maxItems"] = dim
    return flat if len(fixed) == 1 else {"anyOf": [flat, nested]}


def _item_schema(dtype: str) -> Schema:
    if dtype == BYTES:
        return dict(_TEXT)
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype == "float64":
        return {"type": "number"}
    if "float" in dtype:
        # What is beyond the largest number by less than half a unit in its last place is still rounded to it.
        limits = np.finfo(dtype)
        bound = (2.0 - 2.0 ** -(limits.nmant + 1)) * 2.0 ** (limits.maxexp - 1)
        return {"type": "number", "exclusiveMinimum": -bound, "exclusiveMaximum": bound}
    whole = np.iinfo(dtype)
    return {"type": "integer", "minimum": int(whole.min), "maximum": int(whole.max)}


def _zero(dtype: str) -> object:
    return "" if dtype == BYTES else False if dtype == "bool" else 0.0 if "float" in dtype else 0


def _parameters(known: Schema, required: Sequence[str] = ()) -> Schema:
    """An object of parameters. Others than those in it are let pass, but for what belongs to extensions not here."""
    schema: Schema = {
        "type": "object" if required else ["object", "null"],
        "properties": {**known, **dict.fromkeys(UNSUPPORTED, False)},
    }
    if required:
        schema["required"] = list(required)
    return schema


def _output_request(names: Sequence[str], *, binary_only: bool) -> Schema:
    as_bytes = {"const": True} if binary_only else {"type": "boolean"}
    return {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": list(names)}, "parameters": _parameters({"binary_data": as_bytes})},
    }


def _each_once(entries: Sequence[Schema], names: Sequence[str], least: int) -> Schema:
    """A list of such entries in any order, of each name at most one."""
    schema: Schema = {
        "type": "array",
        "minItems": least,
        "maxItems": len(names),
        "items": entries[0] if len(entries) == 1 else {"anyOf": list(entries)},
    }
    if len(names) > 1:
        schema["allOf"] = [
            {
                "contains": {"properties": {"name": {"const": name}}, "required": ["name"]},
                "minContains": min(1, least),
                "maxContains": 1,
            }
            for name in names
        ]
    return schema


def response_schema(name: str, version: str, outputs: Sequence[TensorSpec]) -> Schema:
    """What the JSON of an answer is."""
    tensors = [
        {
            "type": "object",
            "title": spec.name,
            "description": f"{spec.name} {spec.shape_text}",
            "required": ["name", "datatype", "shape"],
            "properties": {
                "name": {"const": spec.name},
                "datatype": {"const": datatype_of(spec.dtype)},
                "shape": {**_DIMS, "minItems": len(spec.shape), "maxItems": len(spec.shape)},
                "data": {"type": "array", "items": {"type": _JSON_TYPES[spec.dtype]}},
                "parameters": {"type": "object", "properties": {"binary_data_size": _COUNT}},
            },
        }
        for spec in outputs
    ]
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": name},
            "model_version": {"const": version},
            "id": _TEXT,
            "outputs": {"type": "array", "items": tensors[0] if len(tensors) == 1 else {"anyOf": tensors}},
        },
    }
