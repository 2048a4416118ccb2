"""Token merging and gates on scanned digits: quality before and after recovery, multiplications, and measured time.

Each network and its treated version are written as float artifacts and run by ONNX Runtime with one thread, in turn, in
rounds; a speed-up is the median over rounds of the ratio of their mean times, at batch 1 and 16. Quality is that of the
artifacts on the test scans. Early exits have a benchmark of their own (``bench.early_exit``).
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tauten
from bench import _vit
from bench._fitted import CACHE, fitted
from bench._results import spread, write
from tauten.core.tensor import Arrays
from tauten.examples import digits
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.run import forward
from tauten.make.passes.dynamic._arithmetic import count
from tauten.make.passes.dynamic._outputs import first_samples
from tauten.make.passes.dynamic._sites import Site
from tauten.run.engines.engine import Engine
from tauten.run.measure._rounds import run_rounds
from tauten.run.measure.quality import drop, find_metric, measure_quality

SEEDS = [0, 1, 2]
BATCHES = (1, 16)
SECONDS = 3.0
MERGED_SHARE, DEIT_SHARE, CLOSED_SHARE = 0.2, 0.1, 0.5
RECOVERY = 6


def main() -> None:
    found = [_kept(f"dynamic-{seed}", lambda seed=seed: _seed(seed)) for seed in SEEDS]
    figures: dict[str, Any] = {
        kind: {key: spread([of_seed[kind][key] for of_seed in found]) for key in found[0][kind]}
        for kind in ("token_merging", "gates")
    }
    deit = _kept("dynamic-deit", _deit)
    figures["token_merging_deit_tiny"] = {key: spread([value]) for key, value in deit.items()}
    write("dynamic", "python -m bench.dynamic", SEEDS, figures)


def table(figures: dict[str, Any]) -> str:
    """Markdown: a row for each technique and network."""
    lines = [
        "| | points lost at once | after recovery | multiplications saved | times as fast at batch 1 | at batch 16 |",
        "|---|---|---|---|---|---|",
    ]
    rows = (
        ("token_merging", f"tokens merged (`share={MERGED_SHARE}`), ViT, 65 tokens, width 48, 4 blocks"),
        ("token_merging_deit_tiny", f"tokens merged (`share={DEIT_SHARE}`), sizes of DeiT-Ti, 197 tokens, width 192"),
        ("gates", f"channels gated (`share={CLOSED_SHARE}`), residual CNN"),
    )
    for key, label in rows:
        row = figures[key]
        cells = [
            _ranged(row["drop_at_once"], 2) if "drop_at_once" in row else "random weights",
            _ranged(row["drop_recovered"], 2) if "drop_recovered" in row else "random weights",
            f"{100 * row['saved_share']['median']:.0f} %" + (" (on paper)" if key == "gates" else ""),
            *(_ranged(row[f"speedup_{batch}"], 2) for batch in BATCHES),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ranged(figure: dict[str, Any], digits: int) -> str:
    median = f"{figure['median']:.{digits}f}"
    if figure["repeats"] == 1:
        return median
    return f"{median} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def _kept(name: str, make: Any) -> dict[str, Any]:
    """Figures, kept beside the trained networks between runs."""
    path = CACHE / f"{name}.json"
    if not path.is_file():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    figures: dict[str, Any] = json.loads(path.read_text())
    return figures


def _seed(seed: int) -> dict[str, Any]:
    vit = fitted(_vit.task(), seed)
    merged = tauten.dynamic(vit, "token_merging", seed=seed, share=MERGED_SHARE)
    row = merged.history[-1].notes["rows"][0]
    recovered = tauten.recover(merged, task=vit, seed=seed, epochs=RECOVERY)
    merging = _measured(vit, merged, recovered) | {"saved_share": _merged_share(row["tokens"], width=48)}
    cnn = fitted(replace(digits.task(), name="digits-cnn"), seed)
    gated = tauten.dynamic(cnn, "gates", seed=seed, share=CLOSED_SHARE)
    recovered = tauten.recover(gated, task=cnn, seed=seed, epochs=RECOVERY)
    gates = _measured(cnn, gated, recovered)
    notes = gated.history[-1].notes
    gates |= {
        "saved_share": notes["skippable_share"],
        "gates_own_share": notes["gates_share"],
        "closed_on_test": _closed(recovered, gated, cnn),
    }
    print(f"seed {seed}: {json.dumps({'token_merging': merging, 'gates': gates})}", flush=True)
    return {"token_merging": merging, "gates": gates}


def _measured(task: tauten.Task, treated: Model, recovered: Model) -> dict[str, float]:
    """Points lost on the test data at once and after recovery, and how many times as fast the recovered one is."""
    models = {"before": to_model(task), "at_once": treated, "recovered": recovered}
    metric = find_metric(task.metric)
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: _engine(model, Path(folder) / name, task) for name, model in models.items()}
        quality = {name: measure_quality(engine, task.data("test"), metric) for name, engine in engines.items()}
        images = np.concatenate([inputs["image"] for inputs, _ in task.data("test")])
        found = {f"speedup_{batch}": _speedup(engines, {"image": images[:batch]}) for batch in BATCHES}
    found["quality_before"] = quality["before"].measure.value
    for name in ("at_once", "recovered"):
        found[f"drop_{name}"] = drop(quality["before"], quality[name], metric.better).value
    return found


def _deit() -> dict[str, float]:
    draw = np.random.default_rng(0)
    data = [(draw.standard_normal((16, 3, 224, 224)).astype(np.float32), np.zeros(16, np.int64))]
    spec = tauten.TensorSpec(name="image", shape=("batch", 3, 224, 224))
    task = tauten.Task(name="deit", model=_vit.deit_tiny().eval(), inputs=(spec,), calibrate=data, validate=data)
    merged = tauten.dynamic(task, "token_merging", share=DEIT_SHARE)
    with tempfile.TemporaryDirectory() as folder:
        models = {"before": to_model(task), "recovered": merged}
        engines = {name: _engine(model, Path(folder) / name, task) for name, model in models.items()}
        found = {f"speedup_{batch}": _speedup(engines, {"image": data[0][0][:batch]}) for batch in BATCHES}
    found["saved_share"] = _merged_share(merged.history[-1].notes["rows"][0]["tokens"], width=192)
    print(f"DeiT-Ti: {json.dumps(found)}", flush=True)
    return found


def _engine(model: Model, path: Path, task: tauten.Task) -> Engine:
    return tauten.load(tauten.save(model, path, task=task).path, threads=1)


def _speedup(engines: dict[str, Engine], inputs: Arrays) -> float:
    """How many times as fast ``recovered`` is as ``before``: the median over rounds."""
    calls = {name: lambda engine=engines[name]: engine(inputs) for name in ("before", "recovered")}
    rounds = run_rounds(calls, seconds=SECONDS, clock=time.perf_counter_ns)
    ratios = [
        float(np.median(before) / np.median(after))
        for before, after in zip(rounds["before"], rounds["recovered"], strict=True)
    ]
    return float(np.median(ratios))


def _merged_share(tokens: list[int], width: int) -> float:
    """The share of the blocks' multiplications that are saved: 12 n w^2 in linear layers, 2 n^2 w in attention."""

    def products(listed: list[int]) -> int:
        return sum(12 * n * width**2 + 2 * n**2 * width for n in listed)

    return 1 - products(tokens) / products([tokens[0]] * len(tokens))


def _closed(recovered: Model, gated: Model, task: tauten.Task) -> float:
    """The share of closed channels on the test data after recovery."""
    sites = [Site(entry["layer"], None, entry["channels"], ()) for entry in gated.history[-1].notes["gates"]]
    batches = list(first_samples(task.data("test"), task.inputs, 10_000))
    runs = (
        (lambda batch=batch: forward(recovered.module, recovered.inputs, recovered.outputs, batch)) for batch in batches
    )
    counted = count(recovered.module, sites, dict.fromkeys((site.path for site in sites), False), runs)
    channels = sum(site.channels for site in sites)
    return sum(counted.closed[site.path] * site.channels for site in sites) / channels / counted.samples


if __name__ == "__main__":
    main()
