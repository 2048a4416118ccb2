"""The program of a worker process: loads one artifact, and answers batches until the server closes the connection."""

from __future__ import annotations

import fcntl
import gc
import json
import mmap
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import EngineError, InputError, TautenError
from tauten.run.engines.engine import Engine
from tauten.run.serve.instances._process_memory import Place, lay_out, make_region, map_region, read_tensor
from tauten.run.serve.instances._process_wire import BatchMessage, Receiver, Reply, send
from tauten.run.serve.protocol.elements import BytesSpec, pack_elements


def main(channel: socket.socket, lifeline: int) -> int:
    """Load what the first message says, tell that it answers, and answer. Returns the exit code."""
    if not _die_with(lifeline):
        return 1
    receive = Receiver(channel)
    settings = json.loads(receive()[0] or b"{}")
    if not settings:
        return 1
    # Ctrl-C and SIGTERM may reach a whole group of processes: the server decides when its workers end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        engine = _load(settings)
    except Exception as fault:  # noqa: BLE001 - told to the server, which says it
        send(channel, json.dumps({"error": _describe(fault)}).encode())
        return 1
    specs = {"inputs": engine.inputs, "outputs": engine.outputs}
    ready: dict[str, Any] = {what: [spec.to_json() for spec in found] for what, found in specs.items()}
    ready["padding"] = None if engine.padding is None else engine.padding.to_json()
    send(channel, json.dumps(ready).encode())
    _Answering(engine, keeps=settings["handler"] is not None).serve(channel, receive)
    return 0


def _die_with(lifeline: int) -> bool:
    """Be killed when the server ends, however it ends, and even where user code holds the interpreter by then.

    ``lifeline`` is a pipe whose other end the server holds: the kernel signals that it was closed. (PR_SET_PDEATHSIG
    would signal the end of the thread that started this process.)
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    ended = select.poll()
    ended.register(lifeline, 0)
    return not ended.poll(0)


def _load(settings: Mapping[str, Any]) -> Engine:
    from tauten.artifact.read import read_artifact
    from tauten.run.engines import load
    from tauten.run.serve.dry_run import dry_run
    from tauten.run.serve.handler import with_handler

    held, text = settings["held"], settings["handler_text"]
    for descriptor in (*held.values(), *(() if text is None else (text,))):
        os.set_inheritable(descriptor, False)
    artifact = read_artifact(settings["artifact"], held or None)
    if artifact.checksums != settings["checksums"]:
        raise EngineError(f"{artifact.path}: not the artifact that the server read: load the model again")
    handler = None if text is None else Path(f"/proc/self/fd/{text}").read_bytes()
    engine = with_handler(load(artifact, threads=settings["threads"]), settings["handler"], handler)
    dry_run(engine)
    gc.freeze()  # what is there stays: to look through it again would cost a batch milliseconds
    return engine


def _describe(fault: BaseException) -> dict[str, str]:
    """An error as JSON. Those that were raised on purpose speak for themselves, others by their traceback."""
    kind = "input" if isinstance(fault, InputError) else "engine" if isinstance(fault, TautenError) else "other"
    trace = "" if kind == "input" else "".join(traceback.format_exception(fault))
    return {"kind": kind, "message": str(fault), "trace": trace}


class _Answering:
    """Runs batches one after the other; keeps the memory of each slot.

    ``keeps`` says that what runs may keep its inputs after its call, as a user's function may: it gets copies.
    """

    def __init__(self, engine: Engine, *, keeps: bool) -> None:
        self._engine = engine
        self._keeps = keeps
        self._inputs: dict[int, mmap.mmap] = {}
        self._outputs: dict[int, mmap.mmap] = {}

    def serve(self, channel: socket.socket, receive: Receiver) -> None:
        """Until the other side ends."""
        while True:
            data, descriptor = receive()
            if not data:
                return
            batch = BatchMessage.unpack(data)
            if descriptor is not None:
                self._inputs[batch.slot] = map_region(descriptor)
            reply, grown = self._run(batch)
            send(channel, reply.pack(), grown)

    def _run(self, batch: BatchMessage) -> tuple[Reply, int | None]:
        started_ns = perf_counter_ns()
        ended_ns = 0
        try:
            outputs = self._engine.run(self._read(batch))
            ended_ns = perf_counter_ns()
            places, grown = self._write(batch.slot, outputs)
        except Exception as fault:  # noqa: BLE001 - told to the server, which answers the requests
            return Reply(batch.number, False, started_ns, ended_ns or perf_counter_ns(), [], _describe(fault)), None
        return Reply(batch.number, grown is not None, started_ns, ended_ns, places), grown

    def _read(self, batch: BatchMessage) -> Arrays:
        region = self._inputs[batch.slot]
        memory = region[: batch.places[-1].offset + batch.places[-1].size] if self._keeps and batch.places else region
        return {
            spec.name: read_tensor(spec, memory, place)
            for spec, place in zip(self._engine.inputs, batch.places, strict=True)
        }

    def _write(self, slot: int, outputs: Mapping[str, Array]) -> tuple[list[Place], int | None]:
        """Where the outputs lie, and the descriptor of new memory where the old was too small."""
        tensors = [(_wire_form(spec, outputs), outputs[spec.name].shape) for spec in self._engine.outputs]
        places, end = lay_out([(data.nbytes, shape) for data, shape in tensors])
        region, grown = self._outputs.get(slot), None
        if region is None or len(region) < end:
            region, grown = make_region(end)
            self._outputs[slot] = region
        view = memoryview(region)
        for place, (data, _) in zip(places, tensors, strict=True):
            view[place.offset : place.offset + place.size] = data
        return places, grown


def _wire_form(spec: TensorSpec, outputs: Mapping[str, Array]) -> memoryview:
    """An output as bytes. Raises ``EngineError`` where it is missing or of another type than declared."""
    if spec.name not in outputs:
        raise EngineError(f"expected output {spec.name!r}, got {sorted(outputs)}")
    array = outputs[spec.name]
    if isinstance(spec, BytesSpec):
        return memoryview(pack_elements(array.reshape(-1).tolist()))
    if array.dtype != np.dtype(spec.dtype):
        raise EngineError(f"{spec.name}: expected dtype {spec.dtype}, got {array.dtype.name}")
    if not array.nbytes:
        return memoryview(b"")
    return np.ascontiguousarray(array).reshape(-1).data.cast("B")


def run() -> int:
    """The arguments are the descriptors of the socket and of the lifeline."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        lifeline = int(sys.argv[2])
        for descriptor in (channel.fileno(), lifeline):
            os.set_inheritable(descriptor, False)  # what a user's function starts must not keep them open
        try:
            return main(channel, lifeline)
        except OSError:
            return 1  # the server has ended
