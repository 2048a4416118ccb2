"""How near quantized models stay to their originals, where weights are real and nobody has labels.

``python -m bench.fidelity``; for MiniLM see ``examples/minilm.py``. Two models: the sentence encoder with its published
weights, on sentences that no calibration saw; and the small vision transformer of ``bench/_vit.py``, trained on scanned
digits (kept in ``build/bench``), on its test scans. Each recipe is applied once and written for each engine with that
engine's default options; what is judged are the answers of the written file in its engine, one thread, against those
of the untouched module in PyTorch: of sentences the neighbours among all that are judged, of digits the class. Times
are not told here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tauten
from bench import _vit
from bench._fitted import fitted
from bench._results import write
from tauten.artifact.read import Artifact
from tauten.core.rows import count_rows
from tauten.core.target import Target
from tauten.core.tensor import Arrays
from tauten.errors import TautenError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.search.recipe import pass_from_json
from tauten.run.engines import load
from tauten.run.measure.quality import find_metric

ENGINES = ("onnx", "openvino")
RECIPES: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "float16 weights": {"pass": "quantize.weight_only", "bits": 16, "rounding": "nearest"},
    "int8 static": {"pass": "quantize.post_training"},
    "int8 static, smooth 0.85": {"pass": "quantize.post_training", "smooth": 0.85},
    "int8 dynamic": {"pass": "quantize.dynamic"},
    "int8 weights": {"pass": "quantize.weight_only", "bits": 8, "rounding": "nearest"},
    "int4 weights, gptq": {"pass": "quantize.weight_only", "bits": 4, "rounding": "gptq"},
}
METRICS = {
    "sqnr": "SQNR, dB", "cosine": "cosine, %", "neighbours": "neighbours' ranks, %", "agreement": "same class, %",
}  # fmt: skip
BATCH = 16


def main() -> None:
    torch.set_num_threads(1)
    figures = {"minilm": _judge(_minilm()), "vit": _judge(fitted(_vit.task(), 0), classes=True)}
    write("fidelity", "python -m bench.fidelity", [0], figures)


def table(figures: dict[str, Any]) -> str:
    """Markdown: a table a model, a row a recipe and engine."""
    parts = []
    for name, title in (("minilm", "MiniLM, sentences"), ("vit", "a small vision transformer, digits")):
        found = figures[name]
        told = [key for key in METRICS if any(key in row for row in found["rows"])]
        lines = [
            f"| {title}, {found['samples']} samples | engine | bytes | {' | '.join(METRICS[key] for key in told)} |"
        ]
        lines.append("|---" * (3 + len(told)) + "|")
        for row in found["rows"]:
            values = " | ".join(_number(row.get(key)) for key in told)
            size = f"{row['bytes']:,}" if "bytes" in row else "refused"
            lines.append(f"| {row['recipe']} | {row['engine']} | {size} | {values} |")
        parts.append("\n".join(lines))
        refused = [f"{row['recipe']} on {row['engine']}: {row['refused']}" for row in found["rows"] if "refused" in row]
        parts += [f"Refused: {'; '.join(refused)}."] if refused else []
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _minilm() -> tauten.Task:
    from examples import minilm

    return minilm.task()


def _judge(task: tauten.Task, *, classes: bool = False) -> dict[str, Any]:
    """Each recipe on each engine: the file's bytes, and how near its answers on the test data are to the original's."""
    untouched = to_model(task)
    context = Context(task, untouched.module)
    batches = [inputs for inputs, _ in task.data("test")]
    right = _joined([forward(untouched.module, untouched.inputs, untouched.outputs, batch) for batch in batches])
    metrics = [name for name in METRICS if name != ("neighbours" if classes else "agreement")]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe, step in RECIPES.items():
            try:
                model = untouched if step is None else apply(pass_from_json(step), untouched, context)
            except TautenError as fault:
                rows += [{"recipe": recipe, "engine": engine, "refused": str(fault)} for engine in ENGINES]
                continue
            for engine in ENGINES:
                try:
                    artifact = _written(model, context, engine, Path(folder) / f"{len(rows)}")
                    answers = _answers(artifact, batches)
                    close = {name: float(np.mean(find_metric(name)(answers, right))) for name in metrics}
                    rows.append({"recipe": recipe, "engine": engine, "bytes": artifact.size_bytes, **close})
                except TautenError as fault:
                    rows.append({"recipe": recipe, "engine": engine, "refused": str(fault)})
                print(rows[-1], flush=True)
    return {"samples": sum(count_rows(task.inputs, batch) for batch in batches), "rows": rows}


def _written(model: Model, context: Context, engine: str, path: Path) -> Artifact:
    target = Target(name="bench", engine=engine, batch=BATCH)
    lowered = LOWERINGS.get(engine)(model, target, context)
    return to_artifact(lowered, path, name=context.task.name, engine=engine, target=target)


def _answers(artifact: Artifact, batches: list[Arrays]) -> Arrays:
    engine = load(artifact, threads=1)
    answers = _joined([engine(batch) for batch in batches])
    engine.close()
    return answers


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


if __name__ == "__main__":
    main()
