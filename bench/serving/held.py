"""What the server bears: malformed requests, workers killed, slow clients, overload, reloads, hours of work.

``python -m bench.serving.held [SCENE] …`` runs the scenes at their full size and leaves what they count in
``build/bench/serving/held.json``; tests run the same scenes small. ``soak`` takes half an hour.

Each scene starts a server of its own with ``tauten serve`` and returns counts; what is not as promised raises.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any, Final

from bench.serving.generator import load
from bench.serving.malformed import MalformedClient
from bench.serving.models import FOLDER, Served, post, rows, served, v2_binary, write_requests
from bench.serving.process import Running, exchange, free_port

HELD: Final = FOLDER / "held.json"
NAME: Final = "held"
CLIENTS: Final = 16
_BUSY: Final = ("429", "503")
_OWN_FAULTS: Final = ("UNKNOWN", "INTERNAL", "DATA_LOSS", "DEADLINE_EXCEEDED", "ABORTED")
PATH: Final = f"/v2/models/{NAME}/infer"


@contextmanager
def serving(model: Served, *flags: str, cores: str | None = None) -> Iterator[Running]:
    """``tauten serve`` of ``model``."""
    port = free_port()
    beside = Path(sys.executable).with_name("tauten")
    command = [str(beside), "serve", str(model.artifact), "--name", NAME, "--port", str(port), *flags]
    every = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    with Running(command, {}, port, ready, FOLDER / "logs" / f"held-{port}.log", cores or every) as running:
        yield running


def ready(port: int) -> bool:
    try:
        return exchange(port, b"GET /v2/health/ready HTTP/1.1\r\nHost: t\r\n\r\n")[0] == 200
    except OSError:
        return False


def good_request(model: Served) -> bytes:
    """A request that is answered with 200."""
    body, length = v2_binary(rows(model.arrays())[0])
    return post(PATH, body, {"Inference-Header-Content-Length": str(length)})


def good_requests(model: Served) -> Path:
    """The load generator's file of one, named by what is in it: scenes of other models may run at the same time."""
    request = good_request(model)
    return write_requests(FOLDER / "requests" / f"held-{blake2b(request, digest_size=8).hexdigest()}.bin", [request])


def malformed(model: Served, count: int = 100_000, seed: int = 0) -> dict[str, Any]:
    """Heads, bodies, lengths, JSON and tensors that are not as they should be, ``count`` of them.

    Each is answered with a status of the client's fault (or 429, 503) or by closing, within ten seconds; afterwards the
    server lives, answers as before, and holds no more memory.
    """
    with serving(model) as running:
        good = good_request(model)
        clients = [MalformedClient(running.port, good, PATH, CLIENTS * seed + number) for number in range(CLIENTS)]
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(lambda client: client.run(count // 5 // CLIENTS), clients))  # what is made once is made
            before = running.own_mb()
            statuses = sum(threads.map(lambda client: client.run(count // CLIENTS), clients), Counter())
        after, hung = running.own_mb(), sum(client.hung for client in clients)
        bad = {status: number for status, number in statuses.items() if status >= 500 and status != 503}
        if bad or hung:
            raise AssertionError(f"{hung} requests hung, answers of the server's own fault: {bad}")
        status, _, _ = exchange(running.port, good_request(model))
        if status != 200 or not ready(running.port):
            raise AssertionError(f"a good request is answered {status} after the bad ones")
    return {
        "malformed_sent": statuses.total(),
        "malformed_statuses": {str(status): number for status, number in sorted(statuses.items())},
        "malformed_growth_percent": round(100 * (after / before - 1), 2),
        "crashes": 0,
    }


def malformed_grpc(model: Served, count: int = 20_000, seed: int = 0) -> dict[str, Any]:
    """The same over gRPC: messages, streams, methods and bytes that are not as they should be."""
    from bench.serving.malformed_grpc import MalformedGrpcClient

    port = free_port()
    ((name, samples),) = model.arrays().items()
    with serving(model, "--grpc-port", str(port)) as running:
        clients = [
            MalformedGrpcClient(port, NAME, name, samples[:1].shape, CLIENTS * seed + number)
            for number in range(CLIENTS)
        ]
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(lambda client: client.run(count // 5 // CLIENTS), clients))
            before = running.own_mb()
            statuses = sum(threads.map(lambda client: client.run(count // CLIENTS), clients), Counter())
        after, hung = running.own_mb(), sum(client.hung for client in clients)
        bad = {status: number for status, number in statuses.items() if status in _OWN_FAULTS}
        if bad or hung:
            raise AssertionError(f"{hung} requests hung, answers of the server's own fault: {bad}")
        status = clients[0].good()
        if status != "OK" or not ready(running.port):
            raise AssertionError(f"a good request is answered {status} after the bad ones")
        for client in clients:
            client.close()
    return {
        "malformed_grpc_sent": statuses.total(),
        "malformed_grpc_statuses": dict(sorted(statuses.items())),
        "malformed_grpc_growth_percent": round(100 * (after / before - 1), 2),
    }


def killed(model: Served, kills: int = 20, every_s: float = 3.0) -> dict[str, Any]:
    """Worker processes are killed under load: every request is answered, and the service comes back by itself."""
    requests = good_requests(model)
    with serving(model, "--workers", "2") as running:
        killer = _Killer(running, every_s)
        killer.start()
        told = load(running.port, requests, 8, kills * every_s + every_s / 2, 0.5, wait=True)
        killer.stop()
        status, _, _ = exchange(running.port, good_request(model))
    lost = sum(told["errors"].values())
    if not killer.count or lost or status != 200:
        raise AssertionError(f"killed {killer.count} workers: lost {told['errors']}, then {status}")
    return {
        "killed_workers": killer.count,
        "killed_answered": told["right"],
        "lost": lost,
        "killed_p99_ms": told["p99_ms"],
    }


class _Killer(Thread):
    """Kills one of a server's workers, which are its children, every so often."""

    def __init__(self, running: Running, every_s: float) -> None:
        super().__init__()
        self.count = 0
        self._running = running
        self._every_s = every_s
        self._ended = Event()

    def run(self) -> None:
        while not self._ended.wait(self._every_s):
            workers = self._running.pids()[1:]
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(Random().choice(workers), signal.SIGKILL)
                    self.count += 1

    def stop(self) -> None:
        self._ended.set()
        self.join()


def slow(model: Served, connections: int = 10_000, trickling: int = 500, seconds: float = 5.0) -> dict[str, Any]:
    """Idle connections, and some that send a byte now and then: others are served as if they were not there."""
    requests = good_requests(model)
    _allow_files(connections + 1000)
    with serving(model) as running:
        alone = load(running.port, requests, 4, seconds, 0.5, wait=True)
        held: list[socket.socket] = []
        try:
            for number in range(connections):
                one = socket.create_connection(("127.0.0.1", running.port), timeout=30)
                held.append(one)
                if number < trickling:
                    one.sendall(b"POST " + PATH.encode())
            told = load(running.port, requests, 4, seconds, 0.5, wait=True)
            for one in held[:trickling]:
                one.sendall(b" ")
            if not ready(running.port):
                raise AssertionError("the server is not ready beside slow clients")
        finally:
            for one in held:
                one.close()
    if told["errors"]:
        raise AssertionError(f"beside {connections} slow connections: {told['errors']}")
    return {
        "slow_connections": connections,
        "slow_rate_ratio": round(told["req_s"] / alone["req_s"], 3),
        "slow_p99_ms": told["p99_ms"],
    }


def overload(model: Served, connections: int = 1500, seconds: float = 3.0, rounds: int = 10) -> dict[str, Any]:
    """More clients than it can serve, each of which asks again as soon as it is answered: it does as much as ever.

    ``overload_goodput_ratio`` is the rate of right answers over that with 64 clients, which are enough to keep it busy,
    in the same round; the median of the rounds. An open loop would not tell: counted from when a request was due, after
    some seconds none is answered in time, whatever the server does. Afterwards 64 clients are served as before.
    """
    requests = good_requests(model)
    ratios, recovered, slowest_ms, refused = [], [], 0.0, 0
    with serving(model, cores="0") as running:
        for _ in range(rounds):
            before = load(running.port, requests, 64, seconds, 0.5)
            told = load(running.port, requests, connections, seconds, 1.0)
            after = load(running.port, requests, 64, seconds / 3, 1.0)
            others = {status: number for status, number in told["errors"].items() if status not in _BUSY}
            if others or before["errors"] or after["errors"]:
                raise AssertionError(f"overloaded: {others}; before and after: {before['errors']}, {after['errors']}")
            best = before["right"] / before["seconds"]
            ratios.append(told["right"] / told["seconds"] / best)
            recovered.append(after["right"] / after["seconds"] / best)
            slowest_ms = max(slowest_ms, told["p99_ms"])
            refused += sum(told["errors"].values())
    return {
        "overload_connections": connections,
        "overload_goodput_ratio": round(statistics.median(ratios), 3),
        "overload_goodput_ratio_spread": round(max(ratios) - min(ratios), 3),
        "overload_p99_ms": slowest_ms,
        "overload_refused": refused,
        "overload_recovered_ratio": round(statistics.median(recovered), 3),
    }


def soak(model: Served, seconds: float = 1800.0) -> dict[str, Any]:
    """Work for a long time: memory does not grow.

    ``soak_growth_percent`` is that of the server's memory from the first tenth's end to the end.
    """
    requests = good_requests(model)
    with serving(model) as running:
        samples = []
        for _ in range(10):
            told = load(running.port, requests, 16, seconds / 10, 0.2, wait=True)
            if told["errors"]:
                raise AssertionError(f"within {seconds / 10:g} seconds: {told['errors']}")
            exchange(running.port, b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
            samples.append(running.own_mb())
    return {
        "soak_seconds": seconds,
        "soak_growth_percent": round(100 * (samples[-1] / samples[0] - 1), 2),
        "soak_mb": [round(sample, 1) for sample in samples],
    }


def _allow_files(count: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise RuntimeError(f"needs {count} open files, the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


SCENES: Final[dict[str, Callable[[Served], dict[str, Any]]]] = {
    "malformed": malformed,
    "malformed_grpc": malformed_grpc,
    "killed": killed,
    "slow": slow,
    "overload": overload,
    "soak": soak,
}


def main() -> None:
    unknown = set(sys.argv[1:]) - SCENES.keys()
    if unknown:
        raise SystemExit(f"no such scene: {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    model = served("lenet")
    for name in sys.argv[1:] or SCENES:
        started = time.monotonic()
        counts = SCENES[name](model)
        kept: dict[str, Any] = json.loads(HELD.read_text()) if HELD.is_file() else {}
        HELD.write_text(json.dumps({**kept, **counts}, indent=1) + "\n")
        print(f"{name}: {json.dumps(counts)} in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
