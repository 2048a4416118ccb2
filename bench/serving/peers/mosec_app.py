"""mosec: raw bytes in and out, its Rust front making the batches."""

from __future__ import annotations

import os

import numpy as np
from mosec import Server, Worker
from served_model import BATCH, ServedModel


class Inference(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = ServedModel()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: np.ndarray) -> bytes:
        return data.tobytes()

    def forward(self, data: list[bytes]) -> list[np.ndarray]:
        return list(self.model.run(self.model.from_raw(data)))


if __name__ == "__main__":
    server = Server()
    # A millisecond is the least wait it can be told.
    server.append_worker(Inference, max_batch_size=BATCH, max_wait_time=int(os.environ.get("BENCH_WAIT_MS", "1")))
    server.run()
