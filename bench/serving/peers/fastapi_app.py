"""FastAPI on uvicorn with uvloop and httptools, the body taken as it is: no model of it that pydantic would check."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request, Response
from served_model import PORT, ServedModel

model = ServedModel()
app = FastAPI()


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/infer")
async def infer(request: Request) -> Response:
    body = await request.body()
    length = request.headers.get("inference-header-content-length")
    if length is None:
        return Response(model.answer_json(body), media_type="application/json")
    answer, head = model.answer_binary(body, int(length))
    headers = {"inference-header-content-length": str(head)}
    return Response(answer, media_type="application/octet-stream", headers=headers)


if __name__ == "__main__":
    uvicorn.run(app, port=PORT, loop="uvloop", http="httptools", log_level="warning", access_log=False)
