"""``tritonclient.http`` asks the server at the URL in the arguments. Run in the clients' environment."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

NAMES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
DATATYPES = {name: name.upper() for name in NAMES} | {"float16": "FP16", "float32": "FP32", "float64": "FP64"}


def inputs_of(arrays: dict[str, np.ndarray], binary: bool) -> list[http.InferInput]:
    found = []
    for name, array in arrays.items():
        tensor = http.InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        tensor.set_data_from_numpy(array, binary_data=binary or array.dtype == np.float16)
        found.append(tensor)
    return found


def refused(says: str, ask: Callable[[], object]) -> None:
    told = "nothing"
    try:
        ask()
    except InferenceServerException as fault:
        told = str(fault)
    assert says in told, told


def metadata(client: http.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("m", "3")
    assert client.get_server_metadata()["name"] == "tauten"
    told = client.get_model_metadata("m")
    assert told["versions"] == ["1", "2"]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    config = client.get_model_config("m")
    assert (config["name"], config["max_batch_size"]) == ("m", 32)
    assert client.get_inference_statistics("m")["model_stats"][0]["name"] == "m"
    told = client.get_inference_statistics()["model_stats"]
    assert {one["name"] for one in told} == {"m", "every", "reversed", "digits"}


def every_datatype(client: http.InferenceServerClient, binary: bool) -> None:
    draw = np.random.default_rng(1)
    arrays = {name: draw.integers(0, 2, (3, 2)).astype(name) for name in DATATYPES}
    outputs = [http.InferRequestedOutput(f"out_{name}", binary_data=binary or name == "float16") for name in DATATYPES]
    result = client.infer("every", inputs_of(arrays, binary), outputs=outputs, request_id="7")
    assert result.get_response()["id"] == "7"
    for name, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{name}"), array, strict=True)


def elements_of_bytes(client: http.InferenceServerClient) -> None:
    pictures = np.empty((3, 2), object)
    pictures[:] = [[b"ab\0", b""], [b"\xff\xfe", b"x" * 5000], [b"1", b"22"]]
    given = http.InferInput("picture", [3, 2], "BYTES")
    given.set_data_from_numpy(pictures)
    for _ in range(2):  # the second time the request's head is known
        back = client.infer("reversed", [given]).as_numpy("back")
        assert back.tolist() == [[element[::-1] for element in row] for row in pictures]


def versions_and_outputs(client: http.InferenceServerClient) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for version, served in (("", "2"), ("1", "1"), ("2", "2")):
        result = client.infer("m", inputs_of({"x": x}, True), model_version=version)
        assert result.get_response()["model_version"] == served
        np.testing.assert_array_equal(result.as_numpy("double"), x * 2)
        np.testing.assert_array_equal(result.as_numpy("total"), x.sum(axis=1))
    compressed = client.async_infer("m", inputs_of({"x": x}, True)).get_result()
    np.testing.assert_array_equal(compressed.as_numpy("double"), x * 2)


def errors(client: http.InferenceServerClient) -> None:
    x = np.zeros((1, 4), np.float32)
    refused("[400] x: expected shape (batch, 3), got (1, 4)", lambda: client.infer("m", inputs_of({"x": x}, True)))
    refused("[404] no model named 'nope'", lambda: client.infer("nope", inputs_of({"x": x}, True)))
    refused("[404] model 'm' has no version '9'", lambda: client.infer("m", inputs_of({"x": x}, True), "9"))


def repository(client: http.InferenceServerClient) -> None:
    def there() -> dict[str, str]:
        return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}

    assert there() == dict.fromkeys(("m", "every", "reversed", "digits"), "READY")
    client.unload_model("digits")
    assert there()["digits"] == "UNAVAILABLE"
    assert not client.is_model_ready("digits")
    client.load_model("digits")
    assert client.is_model_ready("digits")
    refused("no model named 'nope'", lambda: client.load_model("nope"))


if __name__ == "__main__":
    with http.InferenceServerClient(sys.argv[1].removeprefix("http://")) as asks:
        metadata(asks)
        every_datatype(asks, binary=True)
        every_datatype(asks, binary=False)
        elements_of_bytes(asks)
        versions_and_outputs(asks)
        errors(asks)
        repository(asks)
    print("all as expected")
