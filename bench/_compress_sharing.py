"""Weight sharing on MNIST: bytes and accuracy by bits and start, with and without learning; and how fast k-means is.

``python -m bench._compress_sharing``; needs TAUTEN_DATA or a network. The CNN of ``examples/mnist.py`` (98,554
parameters) is trained once, then shared by ``compress.share`` at 1 to 5 bits a weight. Each is written as an artifact
with the arithmetic codec, its weights are coded by every other codec too, and accuracy is that of the artifact in ONNX
Runtime on the test images, which nothing was chosen on: where values learn, epochs are chosen on the last 5,000
training images. A budget of bytes is what the same bits everywhere were estimated to take, divided over the layers. One
seed: rows tell which way things go, and differences of a tenth of a point are noise. Finished rows are kept in
``build/bench``; remove them to measure anew.

Seconds of k-means are of numbers from a normal distribution, 32 clusters, linear starts, sorting and assignment
included, in turn with scikit-learn's ``KMeans`` (Lloyd, the same start, one run) with one thread. Written to
``build/bench/compression-sharing.json``.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import tauten
from bench._fitted import CACHE, fitted
from examples.mnist import images_task
from tauten.codecs import CODECS
from tauten.make.passes.compress._kmeans import Line, error_of
from tauten.make.passes.compress._starts import STARTS, cluster
from tauten.run.measure.quality import find_metric, measure_quality

SEED = 0
BITS = (1, 2, 3, 4, 5)
EPOCHS = 1
CLUSTERS = 32
SIZES = (100_000, 1_000_000, 10_000_000)
PEER_SIZES = (100_000, 1_000_000)
"""Beyond, the peer takes minutes."""
REPEATS = 3


def main() -> None:
    figures = {"sharing": _sharing(), "kmeans": _kmeans()}
    path = CACHE / "compression-sharing.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"command": "python -m bench._compress_sharing", "seed": SEED, **figures}, indent=1))
    print(f"written: {path}")


def _sharing() -> dict[str, Any]:
    task = fitted(replace(images_task("mnist"), name="sharing-mnist"), SEED)
    ways: list[dict[str, Any]] = [{"start": start} for start in STARTS]
    ways += [{"start": "optimal", "importance": "fisher"}]
    ways += [{"start": start, "epochs": EPOCHS} for start in ("linear", "optimal")]
    rows = []
    for bits in BITS:
        of_bits = [_kept(task, {"bits": bits, **way}) for way in ways]
        rows += [*of_bits, _kept(task, {"bytes": of_bits[0]["estimated_bytes"]})]
    return {"float": _kept(task, {}), "rows": rows, "epochs": EPOCHS}


def _kept(task: tauten.Task, parameters: dict[str, Any]) -> dict[str, Any]:
    """A row, kept beside the trained network between runs."""
    path = CACHE / "compression-sharing-rows.json"
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    key = json.dumps(parameters, sort_keys=True)
    if key not in rows:
        rows[key] = _row(task, parameters)
        path.write_text(json.dumps(rows, indent=1))
    return rows[key]


def _row(task: tauten.Task, parameters: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    model = tauten.compress(task, "share", seed=SEED, **parameters) if parameters else None
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {**parameters, "seconds": round(seconds, 2), "coders": {}}
    if model is not None:
        told = model.history[-1].notes
        found |= {name: told[name] for name in ("estimated_bytes", "kept") if name in told}
    with tempfile.TemporaryDirectory() as folder:
        artifact = tauten.save(model or task, Path(folder) / "model", task=task, codec="arithmetic")
        weights = artifact.weights()
        for codec in CODECS.names():
            found["coders"][codec] = len(CODECS.get(codec).encode(weights))
        engine = tauten.load(Path(folder) / "model", threads=1)
        quality = measure_quality(engine, task.data("test"), find_metric(task.metric))
        found["accuracy_percent"] = quality.measure.value
    print(json.dumps(found), flush=True)
    return found


def _kmeans() -> list[dict[str, Any]]:
    found = []
    for size in SIZES:
        values = np.random.default_rng(SEED).standard_normal(size).astype(np.float32)
        ours, theirs, row = list[float](), list[float](), dict[str, Any]()
        for _ in range(REPEATS):
            ours.append(_ours(values, row))
            if size in PEER_SIZES:
                theirs.append(_theirs(values, row))
        row |= {"weights": size, "seconds": float(np.median(ours))}
        if theirs:
            row["scikit_learn_seconds"] = float(np.median(theirs))
            row["times_as_fast"] = float(np.median(np.array(theirs) / np.array(ours)))
        row["optimal_seconds"] = min(_ours(values, {}, "optimal") for _ in range(REPEATS))
        print(json.dumps(row), flush=True)
        found.append(row)
    return found


def _ours(values: Any, row: dict[str, Any], start: Any = "linear") -> float:
    before = time.perf_counter()
    found = cluster(Line(values), CLUSTERS, start, SEED)
    found.index(values)
    row["error"] = found.error
    return time.perf_counter() - before


def _theirs(values: Any, row: dict[str, Any]) -> float:
    from sklearn.cluster import KMeans

    first = np.linspace(values.min(), values.max(), CLUSTERS, dtype=np.float32)[:, None]
    with threadpool_limits(1):
        before = time.perf_counter()
        peer = KMeans(CLUSTERS, init=first, n_init=1, algorithm="lloyd").fit(values[:, None])
        spent = time.perf_counter() - before
    line = Line(values)
    row["scikit_learn_error"] = error_of(line, peer.cluster_centers_[:, 0].astype(np.float64) - line.centre)
    return spent


if __name__ == "__main__":
    main()
