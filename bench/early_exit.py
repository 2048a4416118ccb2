"""Early exits on Fashion-MNIST: mean latency over real pictures, with and without, in float and in int8.

The network of the pruning benchmarks, and the same network after ``dynamic.early_exit``, both written as artifacts and
run by ONNX Runtime with one thread. Every picture goes through all artifacts in turn, alone; its latency is the median
of its repeats, and the mean is taken over pictures, for with early exits latency depends on what comes. Quality is that
of the artifacts on the test pictures, which nothing was chosen on. Needs TAUTEN_DATA or a network. Finished seeds are
kept in ``build/bench``; remove that folder to measure anew.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tauten
from bench._resnet import CACHE, task
from bench._results import spread, write
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.passes.dynamic.early_exit import EarlyExit
from tauten.run.engines.engine import Engine
from tauten.run.measure.quality import drop, find_metric, measure_quality

SEEDS = [0, 1, 2]
PICTURES = 1_000
REPEATS = 5
EXITS = 3
EPOCHS = 3


def main() -> None:
    found = [_kept(seed) for seed in SEEDS]
    figures = {key: spread([seed[key] for seed in found]) for key in found[0] if key != "exits"}
    flat = {key: figure["median"] for key, figure in figures.items()}
    apart = {
        f"{key}_spread": {name: figure[name] for name in ("low", "high", "repeats")} for key, figure in figures.items()
    }
    write(
        "early_exit", "python -m bench.early_exit", SEEDS, {**flat, **apart, "exits": [seed["exits"] for seed in found]}
    )


def table(figures: dict[str, Any]) -> str:
    """Markdown: a row for float, one for int8."""
    places = [exit["at"] for exit in figures["exits"][0]]
    lines = [f"| | mean latency, times lower | points lost on the test set | leave after {', '.join(places)} |"]
    lines.append("|---|---|---|---|")
    for name, label in (("", "float"), ("int8_", "int8")):
        shares = [f"{100 * figures[f'{name}share_{place}']:.0f} %" for place in range(len(places))]
        cells = [
            _ranged(figures, f"{name}mean_latency_ratio"),
            _ranged(figures, f"{name}drop_points"),
            ", ".join(shares),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ranged(figures: dict[str, Any], key: str) -> str:
    around = figures[f"{key}_spread"]
    return f"{figures[key]:.2f} ({around['low']:.2f} to {around['high']:.2f})"


def _kept(seed: int) -> dict[str, Any]:
    """A seed's figures, kept beside the trained networks between runs."""
    path = CACHE / f"early-exit-{seed}.json"
    if not path.is_file():
        found = _seed(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def _seed(seed: int) -> dict[str, Any]:
    job = task("fashion-mnist", seed)
    untouched = to_model(job)
    started = time.perf_counter()
    step = EarlyExit(exits=EXITS, epochs=EPOCHS, precision="bfloat16")
    early = apply(step, untouched, Context(job, untouched.module, seed))
    notes = early.history[-1].notes
    print(f"seed {seed}: exits in {time.perf_counter() - started:.0f} s: {json.dumps(notes)}", flush=True)
    models = {"without": untouched, "with": early}
    models |= {f"int8_{name}": tauten.quantize(model, task=job) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            tauten.save(model, Path(folder) / name, task=job)
        engines = {name: tauten.load(Path(folder) / name, threads=1) for name in models}
        pictures = np.concatenate([inputs["image"] for inputs, _ in job.data("test")])
        means = _mean_ms(engines, pictures[:PICTURES])
        metric = find_metric(job.metric)
        found: dict[str, Any] = {"exits": notes["exits"]}
        quality = {name: measure_quality(engine, job.data("test"), metric) for name, engine in engines.items()}
        for kind in ("", "int8_"):
            before, after = f"{kind}without", f"{kind}with"
            found[f"{kind}mean_latency_ratio"] = means[before] / means[after]
            found[f"{kind}drop_points"] = drop(quality[before], quality[after], metric.better).value
            found[f"{kind}mean_ms_without"], found[f"{kind}mean_ms_with"] = means[before], means[after]
            found[f"{kind}quality_without"] = quality[before].measure.value
            found[f"{kind}quality_with"] = quality[after].measure.value
            fresh = tauten.load(Path(folder) / after, threads=1)
            for inputs, _ in job.data("test"):
                fresh(inputs)
            left = [stage["rows_left"] for stage in fresh.describe()["stages"]]
            found[f"{kind}share_early"] = 1 - left[-1] / sum(left)
            found |= {f"{kind}share_{place}": count / sum(left) for place, count in enumerate(left)}
    print(f"seed {seed}: {json.dumps(found)}", flush=True)
    return found


def _mean_ms(engines: Mapping[str, Engine], pictures: Any) -> dict[str, float]:
    """The mean over pictures of the median latency of each, in milliseconds; all artifacts in turn on each picture."""
    taken = {name: np.empty((len(pictures), REPEATS)) for name in engines}
    names = list(engines)
    for warm in pictures[:50]:
        for engine in engines.values():
            engine({"image": warm[None]})
    for repeat in range(REPEATS):
        for place, picture in enumerate(pictures):
            inputs = {"image": picture[None]}
            for turn in range(len(names)):
                name = names[(place + repeat + turn) % len(names)]
                before = time.perf_counter_ns()
                engines[name](inputs)
                taken[name][place, repeat] = (time.perf_counter_ns() - before) / 1e6
    return {name: float(np.median(values, axis=1).mean()) for name, values in taken.items()}


if __name__ == "__main__":
    main()
