"""Half the channels of transformers of 10, 30 and 100 million parameters cut: seconds and memory, and how they grow.

Each cut runs in a process of its own, in one thread, which builds the model (BERT with random weights), calls
``tauten.prune`` as a user does, and tells how many seconds of the processor the call took (which do not depend on what
else the machine does, as those on the wall do) and how much memory the process held at most, the model included.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from bench._results import spread, write

REPEATS = 3
# Layers, width, heads, width of the inner layers; 20,000 words.
SIZES = {"10m": (6, 256, 4, 1024), "30m": (6, 512, 8, 2048), "100m": (12, 768, 12, 3072)}
WORDS, LENGTH, BATCH = 20_000, 64, 8


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(cut(*sys.argv[1:])))
        return
    figures: dict[str, Any] = {}
    for size in SIZES:
        rows = [_in_a_process(size, str(seed)) for seed in range(REPEATS)]
        figures[f"parameters_{size}"] = rows[0]["parameters"]
        figures[f"kept_{size}"] = rows[0]["parameters_after"] / rows[0]["parameters"]
        for name in ("seconds", "wall_seconds", "peak_mib", "peak_before_mib"):
            told = spread([row[name] for row in rows])
            figures[f"{name}_{size}"] = told.pop("median")
            figures[f"{name}_{size}_spread"] = told
    figures["growth"] = math.log(figures["seconds_100m"] / figures["seconds_10m"]) / math.log(
        figures["parameters_100m"] / figures["parameters_10m"]
    )
    write("scaling", "python -m bench.scaling", list(range(REPEATS)), figures)


def _in_a_process(size: str, seed: str) -> dict[str, Any]:
    print(f"{size}, seed {seed}", flush=True)
    command = [sys.executable, "-m", "bench.scaling", size, seed]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def cut(size: str, seed: str) -> dict[str, Any]:
    """One cut in this process."""
    import torch
    import transformers

    import tauten
    from tauten.core.tensor import TensorSpec

    layers, width, heads, inner = SIZES[size]
    config = transformers.BertConfig(
        vocab_size=WORDS, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        intermediate_size=inner, num_labels=5,
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.manual_seed(int(seed))
    model = transformers.BertForSequenceClassification(config).eval()
    tokens = np.random.default_rng(int(seed)).integers(0, WORDS, (BATCH, LENGTH))
    task = tauten.Task(
        model=model,
        inputs=(TensorSpec(name="input_ids", shape=("batch", LENGTH), dtype="int64"),),
        calibrate=[{"input_ids": tokens}],
        metric=lambda *_: 0.0,
        validate=[],
    )
    before = _peak_mib()
    started, started_wall = time.process_time(), time.perf_counter()
    small = tauten.prune(task, ratio=0.5, seed=int(seed))
    return {
        "seconds": time.process_time() - started,
        "wall_seconds": time.perf_counter() - started_wall,
        "peak_mib": _peak_mib(),
        "peak_before_mib": before,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "parameters_after": sum(parameter.numel() for parameter in small.module.parameters()),
    }


def _peak_mib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(figures: dict[str, Any]) -> str:
    """One row a size."""
    lines = ["| parameters | seconds | peak memory | of it before pruning | parameters kept |", "|---|---|---|---|---|"]
    for size in SIZES:
        cells = [
            f"{figures[f'{name}_{size}']:,.{digits}f}{unit} ({figures[f'{name}_{size}_spread']['low']:,.{digits}f} to "
            f"{figures[f'{name}_{size}_spread']['high']:,.{digits}f})"
            for name, unit, digits in (("seconds", " s", 1), ("peak_mib", " MiB", 0), ("peak_before_mib", " MiB", 0))
        ]
        kept = f"{100 * figures[f'kept_{size}']:.0f} %"
        lines.append(f"| {figures[f'parameters_{size}'] / 1e6:.0f} million | {' | '.join(cells)} | {kept} |")
    lines += ["", f"From 10 to 100 million the seconds grow as the parameters to the power of {figures['growth']:.2f}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
