"""Quality right after a cut, before any training: half of each layer's channels gone, by every criterion and repair."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import torch

import tauten
from bench import _resnet
from bench._results import RESULTS, spread, write
from tauten.cli.task import load_task
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.passes.prune.criteria import CRITERIA
from tauten.make.passes.prune.structured import Structured

RATIO = 0.5
REPAIRS = ("none", "batch_norm", "least_squares")
SEEDS = [0, 1, 2]
"""Of criteria that draw; the others are told for the first one."""
DRAWING = ("random",)


def main() -> None:
    """All networks, or those named: the figures of others stay as they were measured before."""
    path = RESULTS / "repair.json"
    names = sys.argv[1:] or list(NETWORKS)
    figures = {name: _look(name, NETWORKS[name]()) for name in names}
    if sys.argv[1:] and path.is_file():
        figures = {**json.loads(path.read_text("utf-8"))["figures"], **figures}
    write("repair", "python -m bench.repair", SEEDS[:1], figures)


def _digits() -> tauten.Task:
    return load_task("examples/digits.py:task").fit(0)


def _fashion() -> tauten.Task:
    """As the pruning benchmarks have it; the test images are not looked at."""
    return dataclasses.replace(_resnet.task("fashion-mnist", 0), test=None)


NETWORKS = {"digits": _digits, "fashion_mnist": _fashion}


def _look(name: str, task: tauten.Task) -> dict[str, Any]:
    model = to_model(task)
    found: dict[str, Any] = {"original": _accuracy(model, task), "criteria": {}}
    for criterion in CRITERIA.names():
        seeds = SEEDS if criterion in DRAWING else SEEDS[:1]
        row = {repair: spread([_cut(model, task, criterion, repair, seed) for seed in seeds]) for repair in REPAIRS}
        print(name, criterion, {repair: round(row[repair]["median"], 2) for repair in REPAIRS}, flush=True)
        found["criteria"][criterion] = row
    return found


def _cut(model: Model, task: tauten.Task, criterion: str, repair: str, seed: int) -> float:
    step = Structured.from_parameters({"ratio": RATIO, "scope": "layer", "criterion": criterion, "repair": repair})
    return _accuracy(apply(step, model, Context(task, model.module, seed)), task)


def _accuracy(model: Model, task: tauten.Task) -> float:
    """Percent of the validation samples."""
    right = [
        next(iter(forward(model.module, model.inputs, model.outputs, inputs).values())).argmax(axis=1) == labels
        for inputs, labels in task.data("validate")
    ]
    return float(100 * np.concatenate(right).mean())


def table(figures: dict[str, Any]) -> str:
    """Markdown: a table a network."""
    parts = []
    for name, found in figures.items():
        parts.append(f"{name.replace('_', '-')}, {found['original']:.1f} % before the cut:\n")
        parts.append("| criterion | no repair | `batch_norm` | `least_squares` |\n|---|---|---|---|")
        rows = sorted(found["criteria"].items(), key=lambda row: -row[1]["least_squares"]["median"])
        for criterion, row in rows:
            cells = " | ".join(_cell(row[repair]) for repair in REPAIRS)
            parts.append(f"| `{criterion}` | {cells} |")
        parts.append("")
    return "\n".join(parts).rstrip()


def _cell(figure: dict[str, Any]) -> str:
    between = f" ({figure['low']:.1f} to {figure['high']:.1f})" if figure["repeats"] > 1 else ""
    return f"{figure['median']:.1f} %{between}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
