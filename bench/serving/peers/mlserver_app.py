"""MLServer with a runtime of its own and adaptive batching, in one process.

Its REST interface takes no binary tensors, so the tensors' bytes travel as base64 in one BYTES element, which it parses
faster than numbers.
"""

from __future__ import annotations

from base64 import b64decode, b64encode

import uvloop
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, ResponseOutput
from served_model import BATCH, PORT, ServedModel


class Runtime(MLModel):
    async def load(self) -> bool:
        self.model = ServedModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given: RequestInput = payload.inputs[0]
        answer = self.model.run(self.model.from_raw([b64decode(one) for one in given.data.root]))
        rows = [b64encode(row.tobytes()).decode() for row in answer]
        told = ResponseOutput(name=self.model.output, shape=[len(rows)], datatype="BYTES", data=rows)
        return InferenceResponse(model_name=self.name, outputs=[told])


async def main() -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=PORT,
        grpc_port=PORT + 1,
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        load_models_at_startup=False,
    )
    model = ModelSettings(name="m", implementation=Runtime, max_batch_size=BATCH, max_batch_time=0.001)
    await MLServer(settings).start([model])


if __name__ == "__main__":
    uvloop.run(main())
