"""``tritonclient.grpc`` asks the server at the address in the arguments. Run in the clients' environment."""

from __future__ import annotations

import sys

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

if __name__ == "__main__":
    with grpc.InferenceServerClient(sys.argv[1]) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m", "1")
        assert not client.is_model_ready("m", "3")
        assert list(client.get_model_metadata("m").versions) == ["1", "2"]
        assert client.get_model_config("m").config.max_batch_size == 32
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        tensor = grpc.InferInput("x", [2, 3], "FP32")
        tensor.set_data_from_numpy(x)
        for version, served in (("", "2"), ("1", "1")):
            result = client.infer("m", [tensor], model_version=version, request_id="7")
            assert (result.get_response().id, result.get_response().model_version) == ("7", served)
            np.testing.assert_array_equal(result.as_numpy("double"), x * 2)
        assert client.get_inference_statistics("m", "1").model_stats[0].inference_count >= 2
        status = "nothing"
        try:
            client.infer("nope", [tensor])
        except InferenceServerException as fault:
            status = str(fault.status())
        assert "NOT_FOUND" in status, status
        client.unload_model("digits")
        assert {one.name: one.state for one in client.get_model_repository_index().models}.get("digits") != "READY"
        client.load_model("digits")
        assert client.is_model_ready("digits")
    print("all as expected")
