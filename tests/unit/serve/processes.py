"""Worker processes for tests: a model without a backend, and a handler that misbehaves on request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tauten.artifact.read import read_artifact
from tauten.core.tensor import Array
from tauten.run.serve.call import Batch, Call
from tauten.run.serve.instances._process_child import Child, ProcessSettings
from tauten.run.serve.instances.process import ProcessInstance
from tauten.run.serve.server import loop_factory
from tests.unit.serve.artifacts import null_artifact

WAIT_S = 60

HANDLER = """
import os, time
import numpy as np
from tauten.core.tensor import TensorSpec

outputs = [TensorSpec(name="sum", shape=("batch",)), TensorSpec(name="pid", shape=("batch",), dtype="int64")]

def before(inputs):
    for first in inputs["x"][:, 0]:
        if first == -1: os._exit(7)
        if first == -2: time.sleep(1000)
        if first == -3:
            while True: pass
        if first == -4: raise ValueError("minus four")
        if first == -5: raise KeyError("secret")
        if first == -6: raise SystemExit(3)
        if first < -100: time.sleep(float(-first) / 10_000)
    return inputs

def after(outputs, inputs):
    x = inputs["x"]
    return {"sum": x.sum(1), "pid": np.full(len(x), os.getpid())}
"""


def settings_for(folder: Path, handler: str | None = HANDLER, **fields: Any) -> ProcessSettings:
    """What makes a process whose model answers zeros: ``x (batch, 3)`` in, ``y (batch,)`` or the handler's out."""
    path = folder / "nothing"
    if not path.exists():
        null_artifact(path)
    file = None
    if handler is not None:
        file = folder / "prep.py"
        file.write_text(handler, "utf-8")
    checksums = read_artifact(path).checksums
    return ProcessSettings(artifact=str(path), checksums=checksums, threads=1, handler=file and str(file), **fields)


def in_loop(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test in the event loop that the server uses."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(asyncio.wait_for(main(), WAIT_S))


@contextmanager
def instance(settings: ProcessSettings, answer_s: float = WAIT_S) -> Iterator[ProcessInstance]:
    """One that is up, in the running loop."""
    child = Child(settings)
    specs = child.wait_ready(WAIT_S)
    made = ProcessInstance(child, specs, settings, answer_s=answer_s)
    try:
        yield made
    finally:
        made.close()


def call_for(*arrays: Array) -> Call:
    """A call with these inputs."""
    return Call(
        [array.tobytes() for array in arrays],
        [array.shape for array in arrays],
        len(arrays[0]),
        None,
        lambda call: None,
    )


def submit(to: ProcessInstance, *calls: Call) -> asyncio.Future[Exception | None]:
    """Run calls as one batch; the future's result is the fault."""
    done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    batch = Batch(calls, sum(call.rows for call in calls), "test")
    to.run(batch, lambda instance, batch, fault: done.set_result(fault))
    return done


async def ask(to: ProcessInstance, *arrays: Array) -> list[Array]:
    """Outputs for these inputs; raises the fault."""
    call = call_for(*arrays)
    fault = await submit(to, call)
    if fault is not None:
        raise fault
    assert call.result is not None
    return list(call.result)


async def until(holds: Callable[[], object]) -> None:
    """Wait for something to hold that another process brings about."""
    while not holds():
        await asyncio.sleep(0.005)


def rows(*firsts: float) -> Array:
    """Rows that begin with these numbers, and go on with 1 and 2."""
    return np.array([[first, 1, 2] for first in firsts], np.float32)
