"""MiniLM's real weights in few bytes, without training: bytes of the written file against the cosine of its answers.

``python -m bench._compress_minilm``; needs what ``examples/minilm.py`` needs. The sentence encoder (22.7 million
parameters) is rounded by ``compress.rate_distortion`` to several shares of its float32 bytes and written with the codec
``arithmetic``; each file is decoded in a fresh process and run there by ONNX Runtime. Curvature is measured on
``CALIBRATION`` unlabelled sentences that are in neither other split. Of the shares with a mean cosine of at least
``GOAL`` with the original's answers on ``validate``, the smallest is chosen; ``test`` is looked at for it alone.

Beside it, on ``test``, on which nothing of them is chosen: float16, dynamic int8 as it is and packed by zstandard 22,
and a uniform step a row, so many standard deviations of the row, with a dead zone of two thirds of a step, by the same
codec. Bytes are those of the weights' file, shares are of the float32 artifact's.

``everyday`` is the mean cosine of those sentences that are not from documentation, as calibration is. ``neighbour`` is
how often a sentence's nearest other is the same as by the original's embeddings. What is done is kept beside
``build/bench/compression-minilm.json``: remove ``build/bench/minilm`` to begin anew.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import tauten
from bench._fitted import CACHE
from bench._measured import measured_now
from examples import minilm

SEED = 0
CALIBRATION = 512
SHARES = (0.12,)
UNIFORM = (0.4, 0.5)
GOAL = 0.99
COMMAND = "python -m bench._compress_minilm"
WORK = CACHE / "minilm"


def main() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    task = calibrated(minilm.task(), CALIBRATION)
    plain = _row("float32", task, lambda: None, "plain")
    ours = [
        _row(f"rate_distortion-{share:g}", task, lambda share=share: _rounded(task, share), "arithmetic")
        for share in SHARES
    ]
    others = [
        _row("float16", task, lambda: tauten.quantize(task, "weight_only", bits=16), "plain"),
        _row("int8-dynamic", task, lambda: tauten.quantize(task, "dynamic"), "plain"),
    ]
    others.append({**others[-1], "way": "int8-dynamic and zstd-22", "bytes": others[-1]["zstd_22_bytes"]})
    others += [
        _row(f"uniform-{step:g}", task, lambda step=step: _uniform(task, step), "arithmetic") for step in UNIFORM
    ]
    for row in (plain, *ours, *others):
        row["share_of_fp32"] = row["bytes"] / plain["bytes"]
    good = [row for row in ours if _judge(row, "validate")["mean_cosine"] >= GOAL]
    best = min(good, key=lambda row: row["bytes"]) if good else max(ours, key=lambda row: row["bytes"])
    figures = {
        "way": best["way"],
        "share_of_fp32": best["share_of_fp32"],
        "bytes": best["bytes"],
        **_judge(best, "test"),
        "validate": _judge(best, "validate"),
        "goal_mean_cosine": GOAL,
        "calibration_sentences": CALIBRATION,
        "load_ms": best["load_ms"],
        "fp32_load_ms": plain["load_ms"],
        "operating_points": [{**row, "validate": _judge(row, "validate")} for row in ours],
        "beside": [{**row, "test": _judge(row, "test")} for row in others],
        "measured": measured_now(),
    }
    path = CACHE / "compression-minilm.json"
    path.write_text(json.dumps({"command": COMMAND, "seed": SEED, "minilm": figures}, indent=1))
    print(json.dumps({key: value for key, value in figures.items() if key not in ("operating_points", "beside")}))
    print(f"written: {path}")


def calibrated(task: tauten.Task, count: int) -> tauten.Task:
    """The task with ``count`` sentences to calibrate on: its own, and others of the same documentation."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm.folder() / "tokenizer.json"))
    tokenizer.enable_truncation(minilm.LONGEST)
    tokenizer.enable_padding()
    taken = minilm.sentences()
    others: dict[str, None] = {}
    for name in minilm.MODULES.split():
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(Path(spec.origin).read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                others.update(dict.fromkeys(minilm.split(ast.get_docstring(node) or "")))
    draw = random.Random(SEED)
    free = [one for one in others if one not in set(taken)]
    chosen = [*taken[: minilm.CALIBRATE], *draw.sample(free, count - minilm.CALIBRATE)]
    batches = minilm.batches(tokenizer, sorted(chosen, key=len))
    draw.shuffle(batches)
    return replace(task, calibrate=batches)


def _row(way: str, task: tauten.Task, make: Callable[[], Any], codec: str) -> dict[str, Any]:
    """The written artifact's figures; made once and kept."""
    folder, told = WORK / way, WORK / f"{way}.json"
    if told.is_file():
        found: dict[str, Any] = json.loads(told.read_text())
        return found
    started = time.process_time()
    model = make()
    seconds = time.process_time() - started
    artifact = tauten.save(model or task, folder, task=task, codec=codec)
    weights = artifact.path / artifact.manifest.weights
    row: dict[str, Any] = {
        "way": way,
        "codec": codec,
        "bytes": weights.stat().st_size,
        "cpu_seconds": round(seconds, 1),
        **_in_a_fresh_process(way),
    }
    if codec == "plain":
        row["zstd_22_bytes"] = len(zstandard.ZstdCompressor(level=22).compress(weights.read_bytes()))
    told.write_text(json.dumps(row))
    print(json.dumps(row), flush=True)
    return row


def _rounded(task: tauten.Task, share: float) -> tauten.Model:
    return tauten.compress(task, "rate_distortion", share=share, samples=CALIBRATION, seed=SEED)


def _uniform(task: tauten.Task, step: float) -> tauten.Model:
    """Every matrix on multiples of so many standard deviations of a row; what is below two thirds of one is zero."""
    import torch

    from tauten.make.model.build import to_model
    from tauten.make.passes.compress._steps import short_step

    model = to_model(task)
    with torch.no_grad():
        for weight in model.module.parameters():
            if weight.ndim == 2:
                steps = short_step(weight.std(1, keepdim=True) * step)
                levels = (weight / steps).round()
                weight.copy_(torch.where(weight.abs() < steps * 2 / 3, 0.0, levels * steps) + 0.0)
    return model


def _in_a_fresh_process(way: str) -> dict[str, Any]:
    """Load the artifact, answer ``validate`` and ``test``, keep the answers: the milliseconds of loading."""
    done = subprocess.run(
        [sys.executable, "-m", "bench._compress_minilm", way], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(way: str) -> None:
    """What runs in the fresh process."""
    started = time.perf_counter()
    engine = tauten.load(WORK / way, threads=1)
    loaded = time.perf_counter() - started
    task = minilm.task()
    for split in ("validate", "test"):
        answers = [engine(inputs)["sentence_embedding"] for inputs, _ in task.data(split)]
        np.save(WORK / f"{way}-{split}.npy", np.concatenate(answers))
    print(json.dumps({"load_ms": round(1000 * loaded, 1)}))


def _judge(row: dict[str, Any], split: str) -> dict[str, float]:
    """Cosines with the float32 artifact's answers on a split."""
    way = row["way"].removesuffix(" and zstd-22")
    wanted, came = (np.load(WORK / f"{one}-{split}.npy") for one in ("float32", way))
    wanted, came = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (wanted, came))
    cosine = (wanted * came).sum(1)
    first = minilm.CALIBRATE + (0 if split == "validate" else minilm.VALIDATE)
    everyday = np.array([(first + place) % 12 == 0 for place in range(len(cosine))])
    nearest = [(one @ one.T - 2 * np.eye(len(one))).argmax(1) for one in (wanted, came)]
    return {
        "mean_cosine": float(cosine.mean()),
        "min_cosine": float(cosine.min()),
        "everyday": float(cosine[everyday].mean()),
        "neighbour": float((nearest[0] == nearest[1]).mean()),
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        answer(sys.argv[1])
    else:
        main()
