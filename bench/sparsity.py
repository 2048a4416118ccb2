"""What zeros and missing blocks cost and save: digits, the same training for each way, one thread of ONNX Runtime.

Nine of ten weights are set to zero at once and recovered, or step by step in as many epochs; two of every four by the
pattern of sparse matrix units; and the two blocks that can go are taken out. Accuracy is of the test samples, by seed.
Bytes and latency are of the written float32 artifact against the untouched model's, measured in turn, for seed 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import tauten
from bench._results import spread, write
from tauten.cli.task import load_task
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.run import forward
from tauten.run.measure.session import measure_together

SEEDS = [0, 1, 2]
EPOCHS = 8
RATIO = 0.9

Way = Callable[[tauten.Task, int], Model]


def main() -> None:
    accuracy: dict[str, list[float]] = {}
    costs: dict[str, dict[str, float]] = {}
    for seed in SEEDS:
        task = load_task("examples/digits.py:task").fit(seed)
        made = {"untouched": to_model(task), **{name: way(task, seed) for name, way in WAYS.items()}}
        for name, model in made.items():
            accuracy.setdefault(name, []).append(_accuracy(model, task))
            print(name, seed, round(accuracy[name][-1], 2), flush=True)
        if seed == SEEDS[0]:
            costs = _costs(made, task)
    figures = {name: {"accuracy": spread(values), **costs[name]} for name, values in accuracy.items()}
    write("sparsity", "python -m bench.sparsity", SEEDS, {"epochs": EPOCHS, "ratio": RATIO, "ways": figures})


def _at_once(**parameters: Any) -> Way:
    def way(task: tauten.Task, seed: int) -> Model:
        cut = tauten.prune(task, "magnitude", seed=seed, **parameters)
        return tauten.recover(cut, task=task, seed=seed, epochs=EPOCHS)

    return way


def _gradually(**parameters: Any) -> Way:
    return lambda task, seed: tauten.prune(task, "gradual", seed=seed, epochs=EPOCHS, **parameters)


def _shorter(task: tauten.Task, seed: int) -> Model:
    cut = tauten.prune(task, "depth", seed=seed, blocks=2)
    return tauten.recover(cut, task=task, seed=seed, epochs=EPOCHS)


WAYS: dict[str, Way] = {
    "magnitude, layer": _at_once(ratio=RATIO),
    "magnitude, global": _at_once(ratio=RATIO, scope="global"),
    "magnitude, lamp": _at_once(ratio=RATIO, scope="lamp"),
    "gradual, layer": _gradually(ratio=RATIO),
    "gradual, global": _gradually(ratio=RATIO, scope="global"),
    "magnitude, 2:4": _at_once(pattern="2:4"),
    "depth, 2 blocks": _shorter,
}


def _accuracy(model: Model, task: tauten.Task) -> float:
    """Percent of the test samples."""
    right = [
        next(iter(forward(model.module, model.inputs, model.outputs, inputs).values())).argmax(axis=1) == labels
        for inputs, labels in task.data("test")
    ]
    return float(100 * np.concatenate(right).mean())


def _costs(made: dict[str, Model], task: tauten.Task) -> dict[str, dict[str, float]]:
    """Bytes and median latency at batch 1, over those of the untouched model."""
    sample = next(iter(task.data("test")))[0]
    with TemporaryDirectory() as folder:
        paths = {name: Path(folder) / str(index) for index, name in enumerate(made)}
        sizes = {name: tauten.save(model, paths[name], task=task).size_bytes for name, model in made.items()}
        timings = measure_together(paths, sample, threads=1, batches=(), seconds=5.0)
    base = np.array(timings["untouched"].rounds_p50_ms)
    return {
        name: {
            "bytes_ratio": sizes[name] / sizes["untouched"],
            "latency_ratio": float(np.median(np.array(timings[name].rounds_p50_ms) / base)),
        }
        for name in made
    }


def table(figures: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | accuracy | bytes | latency |", "|---|---|---|---|"]
    for name, row in figures["ways"].items():
        seen = row["accuracy"]
        told = f"{seen['median']:.1f} % ({seen['low']:.1f} to {seen['high']:.1f})"
        lines.append(f"| {name} | {told} | {row['bytes_ratio']:.2f} | {row['latency_ratio']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
