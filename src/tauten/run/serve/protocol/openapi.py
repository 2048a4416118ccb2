"""What a server answers, as an OpenAPI 3.1 document made of the models that are there.

::

    openapi_document ─┬─ paths of the server
                      └─ paths of each model ── schemas.py: its requests and responses
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tauten.core.tensor import TensorSpec
from tauten.run.serve.protocol.datatypes import BINARY_ONLY
from tauten.run.serve.protocol.schemas import Schema, example_of, request_schema, response_schema
from tauten.run.serve.protocol.v2 import HEADER_LENGTH

JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}


class Described(NamedTuple):
    """One version of a model; ``chosen`` where it answers when none is named."""

    name: str
    version: str
    chosen: bool
    platform: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


def openapi_document(version: str, models: Sequence[Described], *, managed: bool) -> dict[str, Any]:
    """The document; ``managed`` where clients may load and unload models."""
    paths: dict[str, Any] = {**_of_server(managed=managed)}
    schemas = _shared_schemas()
    for model in models:
        key = _component(model, schemas)
        schemas[f"{key}.Request"] = request_schema(model.inputs, model.outputs)
        schemas[f"{key}.Response"] = response_schema(model.name, model.version, model.outputs)
        bases = [(f"/v2/models/{model.name}/versions/{model.version}", f"version {model.version}")]
        if model.chosen:
            bases.insert(0, (f"/v2/models/{model.name}", "the version that is served by default"))
        for base, which in bases:
            paths.update(_of_model(model, base, which, key))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tauten",
            "version": version,
            "description": "Inference by the Open Inference Protocol (V2) over HTTP.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "responses": _shared_responses()},
    }


def _of_server(*, managed: bool) -> dict[str, Any]:
    """The paths that every server has."""
    paths: dict[str, Any] = {
        "/v2": _get("What the server is", _json("ServerMetadata"), tag="server"),
        "/v2/health/live": _get("Whether the server is alive", _json("Live"), tag="server"),
        "/v2/health/ready": _get("Whether every model takes requests", _json("Ready"), "503", tag="server"),
        "/v2/models/stats": _get("What every model did", _json("Statistics"), tag="server"),
        "/v2/repository/index": {
            "post": {
                "tags": ["repository"],
                "summary": "Which models there are, and in what state",
                "requestBody": {
                    "required": False,
                    "content": {
                        JSON: {"schema": {"type": "object", "properties": {"ready": {"type": "boolean"}}}},
                    },
                },
                "responses": {"200": _json("Index"), "400": _ref("Refused")},
            }
        },
        "/metrics": _get("Figures in Prometheus' format", _text("text/plain"), tag="server"),
        "/openapi.json": _get("This document", _json("Document")),
        "/docs": _get("A page for people", _text("text/html")),
    }
    if managed:
        for action, what in (("load", "Load a model, or load it again"), ("unload", "Serve a model no more")):
            paths[f"/v2/repository/models/{{name}}/{action}"] = {"post": _change(what)}
    return paths


def _change(what: str) -> Schema:
    name = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$"}
    return {
        "tags": ["repository"],
        "summary": what,
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": name}],
        "responses": {"200": {"description": "Done."}, "400": _ref("Refused"), "404": _ref("NotThere")},
    }


def _of_model(model: Described, base: str, which: str, key: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{key}.Request"}
    tag = model.name
    binary_in = any(spec.dtype in BINARY_ONLY for spec in model.inputs)
    request: Schema = {_BINARY: {}} if binary_in else {JSON: {"schema": schema}}
    example = example_of(model.inputs, model.outputs)
    if example is not None:
        request[JSON]["example"] = example
    answer = {
        "description": f"The outputs. With raw tensors behind the JSON, {HEADER_LENGTH} is the length of the JSON.",
        "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{key}.Response"}}, _BINARY: {}},
    }
    infer = {
        "tags": [tag],
        "summary": f"Ask {model.name}, {which}",
        "description": (
            "Tensors may also follow the JSON as raw little-endian bytes (the binary tensor data extension), in the "
            f"order in which it lists them, each with the parameter binary_data_size; the header {HEADER_LENGTH} then "
            "gives the length of the JSON, and 0 says that there is none: the body is the one input."
        ),
        "requestBody": {"required": True, "content": request},
        "responses": {
            "200": answer,
            "400": _ref("Refused"),
            "413": _ref("TooLarge"),
            "429": _ref("TryLater"),
            "503": _ref("NotReady"),
        },
    }
    return {
        base: _get(f"What {model.name} is, {which}", _json("ModelMetadata"), tag=tag),
        f"{base}/ready": _get(f"Whether {model.name} takes requests, {which}", _json("Ready"), "503", tag=tag),
        f"{base}/config": _get(f"How {model.name} is served, {which}", _json("ModelConfig"), tag=tag),
        f"{base}/stats": _get(f"What {model.name} did, {which}", _json("Statistics"), tag=tag),
        f"{base}/infer": {"post": infer},
    }


def _get(summary: str, answer: Schema, *more: str, tag: str = "documentation") -> Schema:
    responses = {"200": answer, **{status: _ref("NotReady") for status in more}}
    return {"get": {"tags": [tag], "summary": summary, "responses": responses}}


def _json(name: str) -> Schema:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": "It.", "content": {JSON: {"schema": schema}}}


def _text(kind: str) -> Schema:
    return {"description": "It.", "content": {kind: {"schema": _TEXT}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/responses/{name}"}


def _shared_responses() -> Schema:
    again = {"Retry-After": {"required": True, "description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "Refused": {"description": "The request does not fit; the message says what was expected.", "content": error},
        "NotThere": {"description": "There is no such model.", "content": error},
        "TooLarge": {"description": "The body is too large.", "content": error},
        "TryLater": {"description": "Too many requests wait.", "content": error, "headers": again},
        "NotReady": {"description": "Not ready, or no answer in time.", "content": error, "headers": again},
    }


def _shared_schemas() -> Schema:
    names = {"type": "array", "items": _TEXT}
    tensors = {"type": "array", "items": _object(name=_TEXT, datatype=_TEXT, shape={"type": "array"})}
    settings = {"type": "array", "items": _object(name=_TEXT, data_type=_TEXT, dims={"type": "array"})}
    phase = _object(count=_COUNT, ns=_COUNT)
    phases = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    batches = _object(batch_size=_COUNT, compute_input=phase, compute_infer=phase, compute_output=phase)
    statistics = _object(
        name=_TEXT,
        version=_TEXT,
        last_inference=_COUNT,
        inference_count=_COUNT,
        execution_count=_COUNT,
        inference_stats=_object(**dict.fromkeys(phases, phase)),
        batch_stats={"type": "array", "items": batches},
    )
    entry = _object(name=_TEXT, state={"enum": ["READY", "LOADING", "UNAVAILABLE"]}, reason=_TEXT)
    entry["properties"]["version"] = _TEXT
    return {
        "Error": _object(error=_TEXT),
        "Document": _object(openapi=_TEXT, info={"type": "object"}, paths={"type": "object"}),
        "Live": _object(live={"const": True}),
        "Ready": _object(ready={"const": True}),
        "ServerMetadata": _object(name=_TEXT, version=_TEXT, extensions=names),
        "ModelMetadata": _object(name=_TEXT, versions=names, platform=_TEXT, inputs=tensors, outputs=tensors),
        "ModelConfig": _object(name=_TEXT, platform=_TEXT, max_batch_size=_COUNT, input=settings, output=settings),
        "Statistics": _object(model_stats={"type": "array", "items": statistics}),
        "Index": {"type": "array", "items": entry},
    }


def _object(**properties: Schema) -> Schema:
    """An object that has all of these, and maybe others."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _component(model: Described, taken: Schema) -> str:
    """A name for the model's schemas of the characters that such names may have, and of no other model's."""
    base = key = re.sub(r"[^A-Za-z0-9._-]", "-", f"{model.name}.{model.version}")
    number = 1
    while f"{key}.Request" in taken:
        number += 1
        key = f"{base}-{number}"
    return key
