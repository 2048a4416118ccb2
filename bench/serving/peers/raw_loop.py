"""RAW: ONNX Runtime in a loop, without a server: what a batch of so many rows could be answered at.

Given a file of samples (.npz); reads a line ``BATCH WARMUP_S SECONDS`` from standard input and answers it with a JSON
object, until the input ends.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from served_model import ServedModel


def main() -> None:
    model = ServedModel()
    with np.load(sys.argv[1]) as stored:
        samples = {name: stored[name] for name in stored.files}
    for line in sys.stdin:
        batch, warmup, seconds = line.split()
        print(json.dumps(timed(model, samples, int(batch), float(warmup), float(seconds))), flush=True)


def timed(
    model: ServedModel, samples: dict[str, np.ndarray], batch: int, warmup: float, seconds: float
) -> dict[str, object]:
    """Whole calls, as many as begin within the time, three at least."""
    count = len(next(iter(samples.values()))) // batch
    inputs = [{name: array[at * batch : (at + 1) * batch] for name, array in samples.items()} for at in range(count)]
    index, until = 0, time.perf_counter_ns() + int(warmup * 1e9)
    while index == 0 or time.perf_counter_ns() < until:
        model.run(inputs[index % count])
        index += 1
    times: list[int] = []
    used = time.process_time()
    began = now = time.perf_counter_ns()
    while now < began + seconds * 1e9 or len(times) < 3:
        model.run(inputs[index % count])
        index += 1
        before, now = now, time.perf_counter_ns()
        times.append(now - before)
    return {
        "requests": len(times) * batch,
        "req_s": len(times) * batch / ((now - began) / 1e9),
        "seconds": (now - began) / 1e9,
        "p50_ms": float(np.quantile(times, 0.5)) / 1e6,
        "p99_ms": float(np.quantile(times, 0.99)) / 1e6,
        "cpu_s": time.process_time() - used,
        "errors": {},
    }


if __name__ == "__main__":
    main()
