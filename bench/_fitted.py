"""Trained networks, kept between runs: a benchmark that is run again does not train again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import safetensors.torch

import tauten
from tauten.make.model.build import build

CACHE = Path(os.environ.get("TAUTEN_BENCH_CACHE", "build/bench"))
"""Remove it to train anew."""


def fitted(task: tauten.Task, seed: int) -> tauten.Task:
    """``task.fit(seed)``, from the cache where that was done before."""
    path = CACHE / f"{task.name}-{seed}-{task.epochs}.safetensors"
    if path.is_file():
        module = build(task)
        module.load_state_dict(safetensors.torch.load_file(path))
        return replace(task, model=module.eval(), epochs=0)
    print(f"{task.name}, seed {seed}: training for {task.epochs} epochs", flush=True)
    done = task.fit(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in build(done).state_dict().items()}, path)
    return done
