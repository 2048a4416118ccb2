"""Measures the plan: round by round, server by server, point by point; what is finished is kept and not done again."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.serving.environments import python
from bench.serving.generator import load
from bench.serving.models import FOLDER, Served, nothing, rows, served, write_requests
from bench.serving.plan import RAW, SLOWER, WARMUP_S, Point, Visit, foretold_s, order
from bench.serving.process import CLIENT_CORE, Running, exchange, free_port, processor_seconds
from bench.serving.servers import PEERS, SERVERS, Server
from tauten.core.tensor import Array

Record = dict[str, Any]
SETTLE_S = 0.2
"""Between a server's start and its first load, and between two loads."""


class Store:
    """What has been measured, a JSON object a line; the first line holds the settings that all lines share."""

    def __init__(self, path: Path, settings: dict[str, float]) -> None:
        self.path = path
        self.records: list[Record] = []
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings) + "\n", "utf-8")
            return
        first, *lines = path.read_text("utf-8").splitlines()
        if json.loads(first) != settings:
            raise SystemExit(f"{path} was measured with {first}, not with {json.dumps(settings)}: begin with --fresh")
        self.records = [json.loads(line) for line in lines]

    def add(self, record: Record) -> None:
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def has(self, index: int, server: str, point: Point) -> bool:
        key = (index, server, str(point))
        return any((one["round"], one["server"], one["point"]) == key for one in self.records)

    def forget(self, plan: Sequence[Visit]) -> None:
        """What ``plan`` measures is to be measured anew."""
        again = {(visit.server, str(point)) for visit in plan for point in visit.points}
        self.records = [one for one in self.records if (one["server"], one["point"]) not in again]
        first = self.path.read_text("utf-8").splitlines()[0]
        self.path.write_text("\n".join([first, *map(json.dumps, self.records)]) + "\n", "utf-8")


def measure(plan: Sequence[Visit], rounds: int, seconds: float, store: Store) -> dict[str, str]:
    """Fill ``store``; what went wrong, by server."""
    faults: dict[str, str] = {}
    total = foretold_s(plan, rounds, seconds)
    began, foretold_done = time.monotonic(), 0.0
    for index in range(rounds):
        for visit in order(plan, index):
            points = [point for point in turned(visit.points, index) if not store.has(index, visit.server, point)]
            if points:
                spent = (time.monotonic() - began) / 60
                print(f"[round {index + 1} of {rounds}; {spent:.1f} min, {foretold_done / total:.0%}] ", end="")
                print(visit.server, visit.model, flush=True)
                try:
                    for record in _visit(visit.server, points, index, seconds):
                        store.add(record)
                        print(f"    {told(record)}", flush=True)
                except (RuntimeError, OSError, subprocess.SubprocessError) as fault:
                    faults[visit.server] = str(fault)
                    print(f"    failed: {fault}", flush=True)
            foretold_done += foretold_s([visit], 1, seconds)
    return faults


def turned(points: Sequence[Point], index: int) -> list[Point]:
    """Each round another point is the first."""
    at = index % len(points)
    return [*points[at:], *points[:at]]


def model_of(point: Point) -> Served:
    """What ``point`` is about, made where it is not there."""
    return nothing(point.model, point.size) if point.size else served(point.model)


def _visit(name: str, points: Sequence[Point], index: int, seconds: float) -> list[Record]:
    if name == RAW:
        return [_raw(point, index, seconds) for point in points]
    server, model = SERVERS[name], model_of(points[0])
    port = free_port()
    samples = rows(model.arrays())
    expected = None if points[0].size else _expected(model, samples[0])

    def answers(port: int) -> bool:
        status, headers, body = exchange(port, server.request(points[0].mode, samples[0]))
        if status == 200 and expected is not None:
            got = server.answer(points[0].mode, headers, body)
            if not np.allclose(got.ravel(), expected.ravel(), rtol=1e-3, atol=1e-4):
                raise RuntimeError(f"{name} answers {got[:4]}… where the model says {expected.ravel()[:4]}…")
        return status == 200

    command = server.command(python(server.environment), model, port)
    log = FOLDER / "logs" / f"{name}-{model.name}.log"
    found = []
    with Running(command, server.variables(model, port, points[0]), port, answers, log, server.cores) as running:
        ready = {"ready_s": running.ready_s, "pss_mb": running.pss_mb()}
        for point in points:
            requests = write_requests(
                FOLDER / "requests" / f"{name}-{point}.bin", [server.request(point.mode, row) for row in samples]
            )
            time.sleep(SETTLE_S)
            figures = _loaded(running, server, point, requests, seconds, seed=index)
            found.append({**_key(name, point, index), **figures, **ready, "pss_loaded_mb": running.pss_mb()})
    return found


def _loaded(running: Running, server: Server, point: Point, requests: Path, seconds: float, seed: int) -> Record:
    """One run of the load generator, and how much processor time went elsewhere meanwhile."""
    pids = running.pids()
    machine, own, family = processor_seconds(), _children_s(), _used_s(pids)
    shares = str(CLIENT_CORE) in server.cores
    seconds *= SLOWER if point.slow else 1
    figures = load(running.port, requests, point.connections, seconds, WARMUP_S, point.rate, seed, pids, wait=shares)
    if point.slow and figures["mean_ms"] and not figures["errors"]:
        # The time holds a few bursts of answers, and the edges cut one: the rate is told without edges by what was
        # under way over the mean latency (Little, 1961).
        figures["req_s"] = point.connections / figures["mean_ms"] * 1000
    after = processor_seconds()
    others = after["busy"] - machine["busy"] - (_children_s() - own) - (_used_s(pids) - family)
    return {**figures, "others_s": round(others, 3), "stolen_s": round(after["stolen"] - machine["stolen"], 3)}


def _raw(point: Point, index: int, seconds: float) -> Record:
    model = model_of(point)
    command = ["taskset", "-c", "0", str(python("granian")), str(PEERS / "raw_loop.py"), str(model.samples.absolute())]
    seconds *= SLOWER if point.slow else 1
    command += [str(point.batch), str(min(1.0, seconds)), str(seconds)]
    variables = {"BENCH_ONNX": str(model.onnx.absolute()), "PYTHONPATH": str(PEERS)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-800:])
    return {**_key(RAW, point, index), **json.loads(done.stdout)}


def _key(server: str, point: Point, index: int) -> Record:
    return {
        "round": index,
        "server": server,
        "point": str(point),
        "model": point.model,
        "mode": point.mode,
        "load": point.load,
        "size": point.size,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _expected(model: Served, row: dict[str, Array]) -> Array:
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


def told(record: Record) -> str:
    """One line."""
    used = record["cpu_s"] / max(record["requests"], 1) * 1e6
    line = f"{record['point']:<28} {record['req_s']:>9,.0f} req/s   p50 {record['p50_ms']:.3f}"
    line += f"   p99 {record['p99_ms']:.3f} ms   {used:.0f} us of processor"
    if record.get("others_s", 0) > 0.1 * record["seconds"]:
        line += f"   disturbed: {record['others_s']:.1f} s went elsewhere"
    if record["errors"]:
        line += f"   ERRORS {record['errors']}"
    return line
