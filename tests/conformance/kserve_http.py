"""The client of ``kserve`` asks the server at the URL in the arguments. Run in the clients' environment."""

from __future__ import annotations

import asyncio
import sys

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(name: str, array: np.ndarray, binary: bool) -> InferRequest:
    tensor = InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(name, [tensor], request_id="7")


async def main(url: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "m")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for binary in (False, True):
        answer = await client.infer(url, request("m", x, binary), model_name="m")
        assert (answer.id, answer.model_name) == ("7", "m")
        assert answer.model_version in ("2", None)  # from a binary answer it does not read the version
        outputs = {output.name: output.as_numpy() for output in answer.outputs}
        np.testing.assert_array_equal(outputs["double"].reshape(2, 3), x * 2)
        np.testing.assert_array_equal(outputs["total"], x.sum(axis=1))
    for name, array, status in (("m", np.zeros((1, 4), np.float32), 400), ("nope", x, 404)):
        came = 200
        try:
            await client.infer(url, request(name, array, True), model_name=name)
        except httpx.HTTPStatusError as fault:
            came = fault.response.status_code
        assert came == status, (name, came)
    await client.close()
    print("all as expected")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
