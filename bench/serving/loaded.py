"""Servers that are up, and RAW: each is measured for a turn when it is told to."""

from __future__ import annotations

import json
import resource
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from bench.serving.environments import python
from bench.serving.generator import load
from bench.serving.models import FOLDER, Served, nothing, rows, served, write_requests
from bench.serving.plan import BATCHES, RAW, Point
from bench.serving.process import CLIENT_CORE, Running, exchange, free_port, processor_seconds
from bench.serving.servers import PEERS, SERVERS
from tauten.core.tensor import Array, Arrays

Figures = dict[str, Any]
_RAW_SHARE = 0.5
"""Of a turn's seconds, for each of RAW's batches."""


class Loaded:
    """The server ``name`` with the model of ``point``, started at once and checked for the right answer."""

    def __init__(self, name: str, point: Point) -> None:
        self._name = name
        self._server = server = SERVERS[name]
        self._model = model_of(point)
        self._samples = rows(self._model.arrays())
        self._requests: dict[Point, Path] = {}
        expected = None if point.size else _expected(self._model, self._samples[0])
        request = server.request(point.mode, self._samples[0])

        def answers(port: int) -> bool:
            status, headers, body = exchange(port, request)
            if status == 200 and expected is not None:
                got = server.answer(point.mode, headers, body)
                if not np.allclose(got.ravel(), expected.ravel(), rtol=1e-3, atol=1e-4):
                    raise RuntimeError(f"{name} answers {got[:4]}, where the model says {expected.ravel()[:4]}")
            return status == 200

        port = free_port()
        command = server.command(python(server.environment), self._model, port)
        log = FOLDER / "logs" / f"{name}{self.variant_for(name, point)}-{self._model.name}.log"
        self._running = Running(command, server.variables(self._model, port, point), port, answers, log, server.cores)
        self._start = {"ready_s": self._running.ready_s, "pss_mb": self._running.pss_mb()}

    @staticmethod
    def variant_for(name: str, point: Point) -> str:
        """What the server must be set to for that point; as many are started as there are."""
        return SERVERS[name].variant(point)

    def slot(self, point: Point, seconds: float, warmup: float, seed: int) -> list[Figures]:
        """One turn: what the load generator found, and how much processor time went elsewhere meanwhile."""
        running = self._running
        pids = running.pids()
        machine, own, family = processor_seconds(), _children_s(), _used_s(pids)
        shares = str(CLIENT_CORE) in self._server.cores
        figures = load(
            running.port, self._file(point), point.connections, seconds, warmup, point.rate, seed, pids, wait=shares
        )
        after = processor_seconds()
        others = after["busy"] - machine["busy"] - (_children_s() - own) - (_used_s(pids) - family)
        if point.slow and figures["mean_ms"] and not figures["errors"]:
            # The time holds a few bursts of answers, and the edges cut one: the rate is told without edges by what
            # was under way over the mean latency (Little, 1961).
            figures["req_s"] = point.connections / figures["mean_ms"] * 1000
        figures |= {"others_s": round(others, 3), "stolen_s": round(after["stolen"] - machine["stolen"], 3)}
        return [{**_named(point), **figures, **self._start, "pss_loaded_mb": running.pss_mb()}]

    def _file(self, point: Point) -> Path:
        if point not in self._requests:
            path = FOLDER / "requests" / f"{self._name}-{point}.bin"
            requests = [self._server.request(point.mode, row) for row in self._samples]
            self._requests[point] = write_requests(path, requests)
        return self._requests[point]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.stop()


class Raw:
    """ONNX Runtime in a loop, in a process on the server's core."""

    variant = ""

    def __init__(self, point: Point) -> None:
        model = model_of(point)
        loop = [str(python("granian")), str(PEERS / "raw_loop.py"), str(model.samples.absolute())]
        self._process = subprocess.Popen(
            ["taskset", "-c", "0", *loop],
            env={"BENCH_ONNX": str(model.onnx.absolute()), "PYTHONPATH": str(PEERS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def slot(self, point: Point, seconds: float, warmup: float, seed: int) -> list[Figures]:
        """One turn: each batch for a part of the time."""
        del seed
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        found = []
        for batch in BATCHES:
            print(batch, min(warmup, 0.1), seconds * _RAW_SHARE, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("RAW's process ended")
            found.append({**_named(Point(point.model, RAW, f"b{batch}")), **json.loads(line)})
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def model_of(point: Point) -> Served:
    """What ``point`` is about, made where it is not there."""
    return nothing(point.model, point.size) if point.size else served(point.model)


def _named(point: Point) -> Figures:
    return {
        "point": str(point),
        "model": point.model,
        "mode": point.mode,
        "load": point.load,
        "size": point.size,
    }


def _expected(model: Served, row: Arrays) -> Array:
    import onnxruntime

    answer: Array = onnxruntime.InferenceSession(str(model.onnx)).run(None, row)[0]
    return answer


def _children_s() -> float:
    """Processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _used_s(pids: Sequence[int]) -> float:
    total = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / 100
    return total
