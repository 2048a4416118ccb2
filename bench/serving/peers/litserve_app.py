"""LitServe with batching: the tensors' bytes as base64 in JSON, which it parses faster than numbers."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Any

import litserve
import numpy as np
from served_model import BATCH, PORT, ServedModel


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = ServedModel()

    def decode_request(self, request: dict[str, str]) -> bytes:
        return b64decode(request["data"])

    def batch(self, inputs: list[bytes]) -> dict[str, np.ndarray]:
        return self.model.from_raw(inputs)

    def predict(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self.model.run(inputs)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"data": b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=BATCH, batch_timeout=0.001), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(port=PORT, host="127.0.0.1", num_api_servers=1, generate_client_file=False, log_level="warning")
