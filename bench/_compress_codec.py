"""The arithmetic coder's speed and size, from 0.1 to 100 million weights, beside zlib-9, zstd-22 and entropy.

``python -m bench._compress_codec [MILLIONS]`` writes ``build/bench/compression-codec.json``; MILLIONS ends the sizes
early. One processor; a size's matrices are drawn afresh: a sparse one (4 % of the weights left, rows and columns of
unlike density, as rate-aware training leaves them) and a dense one (Gaussian, rows and columns of unlike scale, a step
of 0.6 of a row's deviation, as rounding a sentence encoder gives). Speed is in MB of float32 weights a second. Methods
take turns, and each figure is the median of its turns; the processor's seconds count, not those on the wall.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from bench._measured import measured_now
from tauten.codecs._mixing import decode_matrix, encode_matrix

MILLIONS = (0.1, 0.3, 1, 3, 10, 30, 100)
OTHERS_UP_TO = 10
"""zstd at level 22 takes minutes beyond."""
WIDTH = 1024
ROWS = 4096
OUT = Path("build/bench/compression-codec.json")


def main() -> None:
    one_processor()
    most = float(sys.argv[1]) if len(sys.argv) > 1 else MILLIONS[-1]
    rows = []
    for millions in (size for size in MILLIONS if size <= most):
        for kind, drawn in (("sparse", sparse), ("dense", dense)):
            rows.append({"kind": kind, "millions": millions, **measured(drawn(millions), millions)})
            print(json.dumps(rows[-1]), flush=True)
    found = {
        "encode_mb_s": min(row["encode_mb_s"] for row in rows if row["kind"] == "dense"),
        "decode_mb_s": min(row["decode_mb_s"] for row in rows if row["kind"] == "dense"),
        "growth": {kind: growth([row for row in rows if row["kind"] == kind]) for kind in ("sparse", "dense")},
        "rows": rows,
        "measured": measured_now(),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: found[name] for name in ("encode_mb_s", "decode_mb_s", "growth")}))


def one_processor() -> None:
    """Hold this process to one processor, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def sparse(millions: float) -> np.ndarray:
    """Integers (rows, 1024), 4 % of them not zero, most of those ±1 and ±2."""
    random = np.random.default_rng(round(millions * 10))
    scale = random.lognormal(0, 1.0, WIDTH)

    def part(rows: int) -> np.ndarray:
        weight = random.lognormal(0, 1.0, (rows, 1)) * scale
        kept = random.random((rows, WIDTH), np.float32) < np.minimum(0.04 * weight / weight.mean(), 0.9)
        found: np.ndarray = kept * random.geometric(0.55, kept.shape) * random.choice((-1, 1), kept.shape)
        return found

    return _drawn(millions, part)


def dense(millions: float) -> np.ndarray:
    """Integers (rows, 1024), Gaussian with a deviation of about 1.7."""
    random = np.random.default_rng(round(millions * 10) + 1)
    scale = random.lognormal(0, 0.2, WIDTH).astype(np.float32)

    def part(rows: int) -> np.ndarray:
        values = random.standard_normal((rows, WIDTH), np.float32) * scale
        step = np.float32(0.6) * values.std(1, keepdims=True) * random.lognormal(0, 0.2, (rows, 1)).astype(np.float32)
        found: np.ndarray = np.rint(values / step)
        return found

    return _drawn(millions, part)


def _drawn(millions: float, part: Callable[[int], np.ndarray]) -> np.ndarray:
    """A matrix drawn a few rows at a time, so that what it is drawn with is never as large as it is."""
    found = np.empty((round(millions * 1e6 / WIDTH), WIDTH), np.int32)
    for start in range(0, len(found), ROWS):
        found[start : start + ROWS] = part(len(found[start : start + ROWS]))
    return found


def entropy_bytes(q: np.ndarray) -> int:
    """What the numbers would take at least, were each drawn by itself."""
    least = int(q.min())
    counts = sum(
        np.bincount(q[start : start + ROWS].ravel() - least, minlength=int(q.max()) - least + 1)
        for start in range(0, len(q), ROWS)
    )
    share = counts[counts > 0] / q.size
    return int(-(share * np.log2(share)).sum() * q.size / 8)


def measured(q: np.ndarray, millions: float) -> dict[str, Any]:
    """Speeds, and bytes by coder."""
    megabytes = 4 * q.size / 1e6
    turns = 5 if millions < 3 else 3 if millions < 30 else 1
    coded = encode_matrix(q)
    if not np.array_equal(decode_matrix(coded, *q.shape), q):
        raise SystemExit("the coder lost a matrix")
    narrow = q.astype(np.int8).tobytes()
    jobs: dict[str, Callable[[], object]] = {
        "encode": lambda: encode_matrix(q),
        "decode": lambda: decode_matrix(coded, *q.shape),
    }
    found: dict[str, Any] = {
        "weights": q.size,
        "bytes": len(coded),
        "bits_a_weight": 8 * len(coded) / q.size,
        "entropy_bytes": entropy_bytes(q),
    }
    if millions <= OTHERS_UP_TO:
        zstd = zstandard.ZstdCompressor(level=22)
        packed = zstd.compress(narrow)
        found |= {"zstd22_bytes": len(packed), "zlib9_bytes": len(zlib.compress(narrow, 9))}
        jobs["zstd22_decode"] = lambda: zstandard.ZstdDecompressor().decompress(packed)
        if millions <= 1:
            jobs["zstd22_encode"] = lambda: zstd.compress(narrow)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(turns):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            seconds[name].append(time.process_time() - started)
    return found | {f"{name}_mb_s": megabytes / statistics.median(taken) for name, taken in seconds.items()}


def growth(rows: list[dict[str, Any]]) -> float:
    """The power of the size with which decoding's seconds grow; 1 is linear."""
    if len(rows) < 2:
        return 1.0
    first, last = rows[0], rows[-1]
    taken = [row["weights"] / row["decode_mb_s"] for row in (first, last)]
    return math.log(taken[1] / taken[0]) / math.log(last["weights"] / first["weights"])


if __name__ == "__main__":
    main()
