"""An independent client of the same protocol agrees with the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tauten.core.tensor import TensorSpec
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES
from tests.unit.serve.tiny import Double, Running, Same, running

http: Any = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")

SPECS = [TensorSpec(name=dtype, shape=("batch", 2), dtype=dtype) for dtype in DATATYPES]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(Double(), Same(SPECS)) as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def inputs_of(arrays: dict[str, np.ndarray], binary: bool) -> list[Any]:
    found = []
    for name, array in arrays.items():
        tensor = http.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        found.append(tensor)
    return found


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("m", "2")
    assert client.get_server_metadata()["name"] == "tauten"
    assert client.get_model_metadata("m")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert client.get_model_config("m")["name"] == "m"
    assert client.get_inference_statistics("m")["model_stats"][0]["name"] == "m"


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype(client: Any, binary: bool) -> None:
    draw = np.random.default_rng(1)
    names = [spec.name for spec in SPECS]
    arrays = {name: draw.integers(0, 2, (3, 2)).astype(name) for name in names}
    inputs = [
        one for name, array in arrays.items() for one in inputs_of({name: array}, binary=binary or name in BINARY_ONLY)
    ]
    outputs = [http.InferRequestedOutput(f"out_{name}", binary_data=binary or name in BINARY_ONLY) for name in names]
    result = client.infer("n", inputs, outputs=outputs, request_id="7")
    assert result.get_response()["id"] == "7"
    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), array, strict=True)


def test_all_outputs_where_none_is_named(client: Any) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = client.infer("m", inputs_of({"x": x}, binary=True))
    np.testing.assert_array_equal(result.as_numpy("double"), x * 2)
    np.testing.assert_array_equal(result.as_numpy("total"), x.sum(axis=1))


def test_errors_carry_status_and_message(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    x = np.zeros((1, 4), np.float32)
    with pytest.raises(InferenceServerException, match=r"\[400\] x: expected shape \(batch, 3\), got \(1, 4\)"):
        client.infer("m", inputs_of({"x": x}, binary=True))
    with pytest.raises(InferenceServerException, match=r"\[404\] no model named 'nope'"):
        client.infer("nope", inputs_of({"x": x}, binary=True))
