"""What every peer's application shares: the ONNX Runtime session, and a body's way to arrays and back.

Runs in the peers' own environments: it imports NumPy, ONNX Runtime and orjson, and nothing of Tauten. ``BENCH_ONNX`` is
the model's file, ``BENCH_PORT`` where to listen. Nothing is checked that a bare application would not check.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import orjson

PORT = int(os.environ.get("BENCH_PORT", "0"))
BATCH = int(os.environ.get("BENCH_BATCH", "32"))
"""The largest batch, for those that make batches."""
DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}


class ServedModel:
    """One session, one thread, as Tauten sets it: all optimizations, sequential, no spinning."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"])
        self.session = session
        self.inputs = [(one.name, DTYPES[one.type], tuple(one.shape[1:])) for one in session.get_inputs()]
        self.output = session.get_outputs()[0].name
        self.row_bytes = sum(dtype.itemsize * int(np.prod(shape)) for _, dtype, shape in self.inputs)

    def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run(None, arrays)[0]

    def from_raw(self, bodies: list[bytes]) -> dict[str, np.ndarray]:
        """The inputs of a batch whose rows are the tensors' bytes, one tensor after the other."""
        if len(self.inputs) == 1:
            name, dtype, shape = self.inputs[0]
            return {name: np.frombuffer(b"".join(bodies), dtype).reshape(-1, *shape)}
        arrays, at = {}, 0
        for name, dtype, shape in self.inputs:
            size = dtype.itemsize * int(np.prod(shape))
            joined = b"".join([body[at : at + size] for body in bodies])
            arrays[name] = np.frombuffer(joined, dtype).reshape(-1, *shape)
            at += size
        return arrays

    def answer_binary(self, body: bytes, header_length: int) -> tuple[bytes, int]:
        """The V2 protocol's binary form: the answer's body, and the length of its JSON."""
        asked = orjson.loads(body[:header_length])
        arrays, at = {}, header_length
        for given in asked["inputs"]:
            dtype = next(dtype for name, dtype, _ in self.inputs if name == given["name"])
            size = given["parameters"]["binary_data_size"]
            arrays[given["name"]] = np.frombuffer(body, dtype, size // dtype.itemsize, at).reshape(given["shape"])
            at += size
        answer = self.run(arrays)
        told = {
            "name": self.output,
            "shape": answer.shape,
            "datatype": "FP32",
            "parameters": {"binary_data_size": answer.nbytes},
        }
        head = orjson.dumps({"model_name": "m", "model_version": "1", "outputs": [told]})
        return head + answer.tobytes(), len(head)

    def answer_json(self, body: bytes) -> bytes:
        """The V2 protocol's JSON form."""
        asked = orjson.loads(body)
        arrays = {}
        for given in asked["inputs"]:
            dtype = next(dtype for name, dtype, _ in self.inputs if name == given["name"])
            arrays[given["name"]] = np.array(given["data"], dtype).reshape(given["shape"])
        answer = self.run(arrays)
        told = {"name": self.output, "shape": answer.shape, "datatype": "FP32", "data": answer.ravel()}
        document = {"model_name": "m", "model_version": "1", "outputs": [told]}
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
