"""Weights in 4 bits and activations in 8, learned, on MNIST and Fashion-MNIST: what is lost, and what the file weighs.

``python -m bench.qat``; needs TAUTEN_DATA or a network. The CNN of ``examples/mnist.py`` is trained once a data set and
seed, then by ``quantize.quantization_aware`` with its first and last layer in 8 bits. Beside it stands the same network
in float and in int8 (``quantize.post_training``). All three are written as artifacts and run by ONNX Runtime; their
accuracy is that of the artifacts on the test images, which nothing was chosen on: epochs are chosen on the last 5,000
training images, where rounding without training to the same bits is judged too. Trained networks and finished seeds are
kept in ``build/bench``; remove them to train anew. ``--train`` stops before anything is measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import tauten
from bench._fitted import CACHE, fitted
from bench._results import spread, write
from examples.mnist import images_task
from tauten.make.datasets import Name
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import QUANTIZED, Model, QuantizationPlan
from tauten.make.model.pass_ import Context
from tauten.make.model.weights import load_module, save_module
from tauten.make.passes.quantize.quantization_aware import QuantizationAware
from tauten.run.measure.quality import drop, find_metric, measure_quality

SEEDS = [0, 1, 2]
EPOCHS: dict[Name, int] = {"mnist": 5, "fashion-mnist": 8}
"""Of the network in float; it has stopped to gain by then."""
STEP = QuantizationAware(bits=4, epochs=1, weight=0.5, precision="bfloat16", cache_mib=0)
FIGURES: dict[Name, str] = {"mnist": "mnist", "fashion-mnist": "harder"}


def main() -> None:
    if "--train" in sys.argv:  # what takes long, in an order that has something of everything early
        for seed in SEEDS:
            for name in EPOCHS:
                _learned(_task(name, seed), seed)
        return
    figures: dict[str, Any] = {"bits": {"weights": STEP.bits, "edges": STEP.edges, "activations": 8}}
    for name, what in FIGURES.items():
        found = [_kept(name, seed) for seed in SEEDS]
        won = [seed["validation_percent_learned"] >= seed["validation_percent_rounded"] for seed in found]
        figures[f"{what}_trained_kept"] = sum(won)
        for key in found[0]:
            of_key = spread([seed[key] for seed in found])
            figures[f"{what}_{key}"] = of_key.pop("median")
            figures[f"{what}_{key}_spread"] = of_key
    write("qat", "python -m bench.qat", SEEDS, figures)


def table(figures: dict[str, Any]) -> str:
    """Markdown: a row a data set."""
    lines = ["| | float | int8 | 4-bit weights | points lost | bytes: float, int8, 4-bit | training won, of seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, what in FIGURES.items():
        percent = [f"{figures[f'{what}_{kind}_percent']:.2f} %" for kind in ("float", "int8", "int4")]
        sizes = ", ".join(f"{figures[f'{what}_{kind}_bytes']:,.0f}" for kind in ("float", "int8", "int4"))
        around = figures[f"{what}_drop_points_spread"]
        lost = f"{figures[f'{what}_drop_points']:.2f} ({around['low']:.2f} to {around['high']:.2f})"
        lines.append(f"| {name} | {' | '.join(percent)} | {lost} | {sizes} | {figures[f'{what}_trained_kept']} |")
    return "\n".join(lines)


def _task(name: Name, seed: int) -> tauten.Task:
    """The trained network with its data."""
    whole = replace(images_task(name), name=f"qat-{name}", epochs=EPOCHS[name])
    return fitted(whole, seed)


def _kept(name: Name, seed: int) -> dict[str, float]:
    """A seed's figures, kept beside the trained networks between runs."""
    path = CACHE / f"qat-{name}-{seed}.json"
    if not path.is_file():
        path.write_text(json.dumps(_seed(name, seed)))
    found: dict[str, float] = json.loads(path.read_text("utf-8"))
    return found


def _seed(name: Name, seed: int) -> dict[str, float]:
    """Accuracy in percent on the test images, and bytes, of what is deployed."""
    task = _task(name, seed)
    learned, notes = _learned(task, seed)
    models = {
        "float": to_model(task),
        "int8": tauten.quantize(task, seed=seed),
        "int4": learned,
    }
    metric = find_metric(task.metric)
    qualities, found = {}, dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for kind, model in models.items():
            artifact = tauten.save(model, Path(folder) / kind, task=task, seed=seed)
            engine = tauten.load(Path(folder) / kind, threads=1)
            qualities[kind] = measure_quality(engine, task.data("test"), metric)
            found[f"{kind}_percent"] = qualities[kind].measure.value
            found[f"{kind}_bytes"] = artifact.size_bytes
    found["drop_points"] = drop(qualities["float"], qualities["int4"], metric.better).value
    found["int8_drop_points"] = drop(qualities["float"], qualities["int8"], metric.better).value
    found["validation_percent_rounded"] = notes["scores"]["post_training"]
    found["validation_percent_learned"] = notes["scores"]["trained"]
    print(f"{name}, seed {seed}: {json.dumps(found)}", flush=True)
    return found


def _learned(task: tauten.Task, seed: int) -> tuple[Model, dict[str, Any]]:
    """The network with learned steps, and the notes of the pass; from the cache where it was trained before."""
    model = to_model(task)
    path = CACHE / f"{task.name}-{seed}-int{STEP.bits}-{STEP.epochs}.safetensors"
    beside = path.with_suffix(".json")
    if not beside.is_file():
        started = time.perf_counter()
        made = apply(STEP, model, Context(task, model.module, seed, checkpoints=CACHE / "checkpoints"))
        notes = dict(made.history[-1].notes)
        print(f"{task.name}, seed {seed}: {time.perf_counter() - started:.0f} s: {notes['scores']}", flush=True)
        save_module(made, path)
        beside.write_text(json.dumps(notes))
    told = json.loads(beside.read_text("utf-8"))
    plan = QuantizationPlan.from_json(told["plan"])
    return model.but(module=load_module(path, task), quantization=plan, facts=frozenset({QUANTIZED})), told


if __name__ == "__main__":
    main()
