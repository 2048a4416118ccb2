"""The gRPC client of ``kserve`` asks the server at the address in the arguments. Run in the clients' environment."""

from __future__ import annotations

import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


def request(name: str, array: np.ndarray, binary: bool) -> InferRequest:
    tensor = InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(name, [tensor], request_id="7")


async def main(target: str) -> None:
    client = InferenceGRPCClient(target)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("m")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for binary in (False, True):  # numbers in the message, and raw
        answer = await client.infer(request("m", x, binary))
        assert (answer.id, answer.model_name, answer.model_version) == ("7", "m", "2")
        outputs = {output.name: output.as_numpy() for output in answer.outputs}
        np.testing.assert_array_equal(outputs["double"].reshape(2, 3), x * 2)
        np.testing.assert_array_equal(outputs["total"], x.sum(axis=1))
    codes = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    for name, array, code in zip(("m", "nope"), (np.zeros((1, 4), np.float32), x), codes, strict=True):
        came = grpc.StatusCode.OK
        try:
            await client.infer(request(name, array, True))
        except grpc.RpcError as fault:
            came = fault.code()
        assert came == code, (name, came)
    await client.close()
    print("all as expected")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
