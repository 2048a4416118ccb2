"""RAW: ONNX Runtime in a loop, without a server: what a batch of so many rows could be answered at.

Reads samples (.npz), a batch, seconds of warm-up and of measuring; writes one JSON object.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from served_model import ServedModel


def main() -> None:
    path, batch, warmup, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    model = ServedModel()
    with np.load(path) as stored:
        samples = {name: stored[name] for name in stored.files}
    count = len(next(iter(samples.values()))) // batch
    inputs = [{name: array[at * batch : (at + 1) * batch] for name, array in samples.items()} for at in range(count)]
    times: list[int] = []
    began = time.perf_counter_ns()
    measure_from, end = began + int(warmup * 1e9), began + int((warmup + seconds) * 1e9)
    now, index, used = began, 0, 0.0
    while now < end or len(times) < 3:
        model.run(inputs[index % count])
        index += 1
        before, now = now, time.perf_counter_ns()
        if before >= measure_from:
            if not times:
                first, used = before, time.process_time()
            times.append(now - before)
    used = time.process_time() - used
    rows = len(times) * batch
    told = {
        "requests": rows,
        "req_s": rows / ((now - first) / 1e9),
        "seconds": (now - first) / 1e9,
        "p50_ms": float(np.quantile(times, 0.5)) / 1e6,
        "p99_ms": float(np.quantile(times, 0.99)) / 1e6,
        "cpu_s": used,
        "errors": {},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
