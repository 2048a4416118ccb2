"""The OpenAPI document, and the page that shows it. Whether the server does what it says: ``tests/conformance``."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from tauten.core.tensor import TensorSpec
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.elements import BytesSpec
from tauten.run.serve.protocol.openapi import Described, openapi_document
from tauten.run.serve.protocol.schemas import example_of, request_schema
from tauten.run.serve.server import Server
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.tiny import Double, Running, Same, ask, serving, tensor

X = TensorSpec(name="x", shape=("batch", 2))
FIXED = TensorSpec(name="x", shape=(2, 2), dtype="int8")
Y = TensorSpec(name="y", shape=("batch",))
HALF = TensorSpec(name="h", shape=(1,), dtype="float16")


def fits(request: dict[str, Any], inputs: list[TensorSpec], outputs: list[TensorSpec]) -> bool:
    schema = request_schema(inputs, outputs)
    Draft202012Validator.check_schema(schema)
    return bool(Draft202012Validator(schema).is_valid(request))


def of(*tensors: dict[str, Any], **more: object) -> dict[str, Any]:
    return {"inputs": list(tensors), **more}


@pytest.mark.parametrize(
    ("request_", "good"),
    [
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3, -128])), True),
        (of(tensor("x", "INT8", [2, 2], [[1, 2], [3, 127]])), True),
        (of(tensor("x", "INT8", [2, 2], [[1, 2], [3, 128]])), False),
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3])), False),
        (of(tensor("x", "INT8", [2, 2], [[1, 2, 3], [4]])), False),
        (of(tensor("x", "INT8", [4], [1, 2, 3, 4])), False),
        (of(tensor("x", "INT16", [2, 2], [1, 2, 3, 4])), False),
        (of(tensor("z", "INT8", [2, 2], [1, 2, 3, 4])), False),
        (of(), False),
        (of(*[tensor("x", "INT8", [2, 2], [1, 2, 3, 4])] * 2), False),
        (of({**tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), "parameters": {"binary_data_size": 4}}), False),
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), outputs=[{"name": "y"}]), True),
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), outputs=[{"name": "z"}]), False),
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), outputs=[{"name": "y"}, {"name": "y"}]), False),
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), parameters={"timeout": -1}), False),
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), parameters={"classification": 1}), False),
        (of(tensor("x", "INT8", [2, 2], [1, 2, 3, 4]), parameters={"anything": 1}, id="7"), True),
    ],
)
def test_a_request_fits_the_schema_when_it_can_be_answered(request_: dict[str, Any], good: bool) -> None:
    assert fits(request_, [FIXED], [Y]) is good


def test_inputs_come_in_any_order_and_each_once() -> None:
    one, two = tensor("x", "FP32", [1, 2], [0.5, 1]), tensor("y", "FP32", [1], [1])
    assert fits(of(one, two), [X, Y], [Y])
    assert fits(of(two, one), [X, Y], [Y])
    assert not fits(of(one, one), [X, Y], [Y])
    assert not fits(of(one), [X, Y], [Y])


def test_numbers_that_round_to_the_largest_one_fit() -> None:
    most = float(np.finfo(np.float32).max)
    for number, good in ((most, True), (np.nextafter(most, np.inf), True), (most * 1.0001, False), (-most, True)):
        with np.errstate(over="ignore"):
            assert np.isfinite(np.float32(number)) == good
        assert fits(of(tensor("y", "FP32", [1], [number])), [Y], [Y]) is good


def test_what_json_cannot_say_must_be_asked_for_as_bytes() -> None:
    request = of(tensor("y", "FP32", [1], [1]))
    assert not fits(request, [Y], [HALF])
    assert fits({**request, "parameters": {"binary_data_output": True}}, [Y], [HALF])
    assert example_of([HALF], [Y]) is None
    document = openapi_document("0", [Described("m", "1", True, "p", [HALF], [Y])], managed=False)
    assert list(document["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"]) == [
        "application/octet-stream"
    ]


def test_texts_are_strings() -> None:
    text = BytesSpec(name="t", shape=("batch",))
    assert fits(of(tensor("t", "BYTES", [1], ["a"])), [text], [text])
    assert not fits(of(tensor("t", "BYTES", [1], [1])), [text], [text])


@pytest.mark.parametrize("inputs", [[X], [FIXED], [X, Y], [BytesSpec(name="t", shape=(3,))]])
def test_examples_fit(inputs: list[TensorSpec]) -> None:
    example = example_of(inputs, [Y])
    assert example is not None
    assert fits(example, inputs, [Y])


def test_a_long_example_is_left_out() -> None:
    assert example_of([TensorSpec(name="x", shape=("batch", 3, 224, 224))], [Y]) is None


def test_names_of_models_do_not_meet() -> None:
    models = [Described(name, "1", True, "p", [X], [Y]) for name in ("a+b", "a-b")]
    schemas = openapi_document("0", models, managed=False)["components"]["schemas"]
    assert {"a-b.1.Request", "a-b.1-2.Request"} <= set(schemas)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in schemas)


@pytest.fixture(scope="module")
def server() -> Any:
    models = [ServedModel("m", Double()), ServedModel("m", Double(), version="2"), ServedModel("s", Same([FIXED]))]
    with serving(Server(models, ServeSettings(port=0, instances=1))) as running:
        yield running


def test_every_path_and_example_is_answered(server: Running) -> None:
    reply = ask(server.port, "GET", "/openapi.json")
    assert reply.headers["content-type"] == "application/json"
    document = reply.json()
    assert document["openapi"] == "3.1.0"
    assert "/v2/models/m/versions/1/infer" in document["paths"]
    assert not any("{name}" in path for path in document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            assert ask(server.port, method.upper(), path, content.get("example")).status == 200, path


def test_references_lead_somewhere(server: Running) -> None:
    document = ask(server.port, "GET", "/openapi.json").json()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                found = document
                for key in value["$ref"].removeprefix("#/").split("/"):
                    found = found[key]
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look(document)


def test_the_document_follows_the_models(server: Running) -> None:
    async def add() -> None:
        model = ServedModel("added", Double())
        server.server._start_model(model)
        server.server._repository.put("added", [model])

    import asyncio

    assert "/v2/models/added" not in ask(server.port, "GET", "/openapi.json").json()["paths"]
    asyncio.run_coroutine_threadsafe(add(), server.loop).result(20)
    assert "/v2/models/added" in ask(server.port, "GET", "/openapi.json").json()["paths"]


def test_the_page_needs_nothing_from_elsewhere(server: Running) -> None:
    reply = ask(server.port, "GET", "/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    page = reply.body.decode()
    assert "/openapi.json" in page
    assert not re.search(r"https?://|//\w+\.\w+/|innerHTML", page)
