"""Half of the channels of a ResNet cut, recovered, then int8: against PyTorch eager fp32, and against Torch-Pruning.

``python -m bench.pruned_cnn``; needs TAUTEN_DATA or a network, and ``pip install "tauten[bench]"``. Finished runs are
kept in ``build/bench``, so that the same command goes on after an interruption; remove that folder to measure anew.
``--train`` stops before anything is timed.

The dense network is trained once a seed. Both tools cut half of the channels of every layer, which leaves one and the
same architecture; each takes the criterion that is best on validation data after a short recovery. Both are then
recovered by the same pass with the same data, epochs and seed, once with the dense network as a teacher and once on
labels alone; each takes the better one on validation data, and is quantized alike. So what differs is the cut. The test
images are looked at once, at the end.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import tauten
from bench import _resnet
from bench._results import spread, write
from tauten.artifact.read import Artifact
from tauten.core.target import find_target
from tauten.make.datasets import Name
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.search.builder import CandidateBuilder
from tauten.make.search.evaluator import QualityEvaluator, time_together
from tauten.make.search.recipe import Recipe
from tauten.run.measure.quality import drop

RATIO = 0.5
SEEDS: dict[Name, tuple[int, ...]] = {"fashion-mnist": (0, 1, 2), "mnist": (0,)}
EPOCHS: dict[Name, int] = {"fashion-mnist": 4, "mnist": 2}
RECOVERY = {"learning_rate": 1.5e-3, "temperature": 4.0, "weight": 0.7, "precision": "bfloat16", "cache_mib": 0}
TRIAL_SAMPLES = 12_800
"""Training images of the short recovery that a criterion is chosen by."""
OURS = ("l1", "l2", "wanda", "taylor", "geometric_median")
THEIRS = ("magnitude_l1", "magnitude_l2", "taylor", "hessian", "lamp", "fpgm", "bn_scale")
BATCHES = (1, 8, 16, 32)
SECONDS = 4.0
TOOLS = ("tauten", "torch_pruning")
WAYS = ("taught", "labels")


@dataclass(frozen=True)
class Run:
    """One data set and seed. Accuracies are in percent on the test images, times faster as ratios of throughput."""

    dense: float
    ours_float: float
    ours: float
    theirs: float
    drop_points: float
    points_over_torch_pruning: float
    criterion: str
    their_criterion: str
    way: str
    their_way: str
    speedup_vs_eager: dict[str, float]
    speedup_vs_engine: dict[str, float]
    latency_vs_theirs: float
    bytes_dense: int
    bytes_ours: int


def main() -> None:
    criteria = _chosen()
    if "--train" in sys.argv:  # what takes long and measures no time, so that the rest can run on a quiet machine
        for name, seeds in SEEDS.items():
            for seed in seeds:
                for tool, way in itertools.product(TOOLS, WAYS):
                    _recovered(tool, way, name, _resnet.task(name, seed), seed, criteria)
        return
    runs = {name: [_kept(name, seed, criteria) for seed in seeds] for name, seeds in SEEDS.items()}
    figures: dict[str, Any] = {name: _summary(of_name) for name, of_name in runs.items()}
    figures["trials"] = criteria["trials"]
    write("pruned_cnn", "python -m bench.pruned_cnn", SEEDS["fashion-mnist"], figures)


def _chosen() -> dict[str, Any]:
    """The best criterion of each tool on the validation images of Fashion-MNIST, after a short recovery; seed 0."""
    path = _resnet.CACHE / "pruned_cnn-criteria.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return kept
    task = _resnet.task("fashion-mnist", 0)
    walk = task.train
    short = replace(task, train=_resnet.Walk(walk.images[:TRIAL_SAMPLES], walk.labels[:TRIAL_SAMPLES], walk.flips))
    trials: dict[str, dict[str, float]] = {"tauten": {}, "torch_pruning": {}}
    for tool, names in (("tauten", OURS), ("torch_pruning", THEIRS)):
        for criterion in names:
            model = _cut(tool, short, criterion, 0)
            model = tauten.recover(model, task=short, epochs=1, **RECOVERY)
            trials[tool][criterion] = _accuracy(model, task)
            print(f"{tool} {criterion}: {trials[tool][criterion]:.2f} % on validation data", flush=True)
    found = {"trials": trials, **{tool: max(of_tool, key=of_tool.__getitem__) for tool, of_tool in trials.items()}}
    path.write_text(json.dumps(found))
    return found


def _cut(tool: str, task: tauten.Task, criterion: str, seed: int) -> Model:
    if tool == "tauten":
        return tauten.prune(task, ratio=RATIO, scope="layer", criterion=criterion, repair="least_squares", seed=seed)
    from bench._torch_pruning import cut

    torch.manual_seed(seed)
    return to_model(task).but(module=cut(task, criterion, RATIO))


def _accuracy(model: Model, task: tauten.Task) -> float:
    right = total = 0
    with torch.inference_mode():
        for inputs, labels in task.data("validate"):
            answers = model.module(torch.from_numpy(inputs["image"])).argmax(1).numpy()
            right, total = right + int((answers == labels).sum()), total + len(answers)
    return 100 * right / total


def _kept(name: Name, seed: int, criteria: dict[str, Any]) -> Run:
    path = _resnet.CACHE / f"pruned_cnn-{name}-{seed}.json"
    if not path.is_file():
        run = _run(name, seed, criteria)
        path.write_text(json.dumps(asdict(run)))
        print(json.dumps(asdict(run)), flush=True)
    return Run(**json.loads(path.read_text("utf-8")))


def _run(name: Name, seed: int, criteria: dict[str, Any]) -> Run:
    task, models, ways = _resnet.task(name, seed), {}, {}
    for tool in TOOLS:
        made = {way: _recovered(tool, way, name, task, seed, criteria) for way in WAYS}
        ways[tool] = max(WAYS, key=lambda way: _accuracy(made[way], task))
        models[tool] = made[ways[tool]]
    with tempfile.TemporaryDirectory() as folder:
        return _measure(task, models, seed, Path(folder), criteria, ways)


def _recovered(tool: str, way: str, name: Name, task: tauten.Task, seed: int, criteria: dict[str, Any]) -> Model:
    """The network after the cut and its recovery, from the cache where an earlier run made it."""
    path = _resnet.CACHE / f"pruned-{name}-{seed}-{tool}-{way}.safetensors"
    module = _resnet.ResNet(tuple(round(width * RATIO) for width in _resnet.WIDTHS)).eval()
    if not path.is_file():
        cut = _cut(tool, task, criteria[tool], seed)
        print(f"{name}, seed {seed}: {tool} cut, {_accuracy(cut, task):.2f} % before recovery", flush=True)
        taught = way == "taught"
        learned = tauten.recover(cut, task=task, seed=seed, epochs=EPOCHS[name], distill=taught, **RECOVERY)
        print(f"{name}, seed {seed}: {tool} {way}, {_accuracy(learned, task):.2f} % recovered", flush=True)
        weights = {key: value.contiguous() for key, value in learned.module.state_dict().items()}
        safetensors.torch.save_file(weights, path)
    module.load_state_dict(safetensors.torch.load_file(path))
    return to_model(task).but(module=module)


def _measure(
    task: tauten.Task,
    models: dict[str, Model],
    seed: int,
    folder: Path,
    criteria: dict[str, Any],
    ways: dict[str, str],
) -> Run:
    dense, target = to_model(task), find_target("server-cpu")
    target = type(target).from_json({**target.to_json(), "threads": 1})
    builder = CandidateBuilder(dense, target, Context(task, dense.module, seed))
    artifacts = {
        "eager": builder.make(Recipe("eager", (), "eager"), folder / "eager", ""),
        "engine": builder.make(Recipe("engine", (), "onnx"), folder / "engine", ""),
        "float": tauten.save(models["tauten"], folder / "float", task=task, target=target),
    }
    for tool, model in models.items():
        small = tauten.quantize(model, "post_training", task=task, seed=seed)
        artifacts[tool] = tauten.save(small, folder / tool, task=task, target=target, seed=seed)
    timings = time_together(artifacts, task, target, SECONDS, lambda what, share: None)
    evaluator = QualityEvaluator(task, artifacts["eager"], seed)
    on_test = {tool: evaluator.quality(artifact, "test") for tool, artifact in artifacts.items()}
    percent = {tool: quality.measure.value for tool, quality in on_test.items()}

    def faster(than: str) -> dict[str, float]:
        ours, theirs = timings["tauten"].measures, timings[than].measures
        keys = [f"throughput_per_s.{batch}" for batch in BATCHES]
        return {key.rpartition(".")[2]: ours[key].ratio(theirs[key]) for key in keys}

    pairs = zip(timings["tauten"].rounds_p50_ms, timings["torch_pruning"].rounds_p50_ms, strict=True)
    return Run(
        dense=percent["eager"],
        ours_float=percent["float"],
        ours=percent["tauten"],
        theirs=percent["torch_pruning"],
        drop_points=drop(on_test["eager"], on_test["tauten"], evaluator.metric.better).value,
        points_over_torch_pruning=percent["tauten"] - percent["torch_pruning"],
        criterion=criteria["tauten"],
        their_criterion=criteria["torch_pruning"],
        way=ways["tauten"],
        their_way=ways["torch_pruning"],
        speedup_vs_eager=faster("eager"),
        speedup_vs_engine=faster("engine"),
        latency_vs_theirs=statistics.median(ours / theirs for ours, theirs in pairs),
        bytes_dense=_weights(artifacts["eager"]),
        bytes_ours=artifacts["tauten"].size_bytes,
    )


def _weights(artifact: Artifact) -> int:
    return artifact.manifest.files[artifact.manifest.weights]


def _summary(runs: list[Run]) -> dict[str, Any]:
    names = (
        "dense", "ours_float", "ours", "theirs", "drop_points", "points_over_torch_pruning", "latency_vs_theirs",
    )  # fmt: skip
    found: dict[str, Any] = {key: spread([getattr(run, key) for run in runs]) for key in names}
    found["ratio_bytes"] = spread([run.bytes_dense / run.bytes_ours for run in runs])
    for key in ("speedup_vs_eager", "speedup_vs_engine"):
        for batch in BATCHES:
            found[f"{key}.{batch}"] = spread([getattr(run, key)[str(batch)] for run in runs])
    for key in ("criterion", "their_criterion", "way", "their_way"):
        found[key] = [getattr(run, key) for run in runs]
    return found


def table(figures: dict[str, Any]) -> str:
    """As Markdown: a column a data set."""
    names = [name for name in SEEDS if name in figures]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    rows = {
        "dense, PyTorch eager fp32": ("dense", "{:.2f} %"),
        "half the channels, float": ("ours_float", "{:.2f} %"),
        "half the channels, int8": ("ours", "{:.2f} %"),
        "points lost, dense to int8": ("drop_points", "{:.2f}"),
        "Torch-Pruning, same recovery, int8": ("theirs", "{:.2f} %"),
        "points over Torch-Pruning": ("points_over_torch_pruning", "{:+.2f}"),
        "latency against its int8, as ratio": ("latency_vs_theirs", "{:.2f}"),
        "bytes, dense weights to artifact": ("ratio_bytes", "{:.1f} times fewer"),
    }
    rows |= {f"throughput against eager, batch {n}": (f"speedup_vs_eager.{n}", "{:.1f} times") for n in BATCHES}
    rows |= {
        f"throughput against the engine at fp32, batch {n}": (f"speedup_vs_engine.{n}", "{:.1f} times") for n in (1, 32)
    }
    for label, (key, form) in rows.items():
        lines.append(f"| {label} | {' | '.join(_cell(figures[name][key], form) for name in names)} |")
    return "\n".join(lines) + "\n"


def _cell(figure: dict[str, Any], form: str) -> str:
    told = form.format(figure["median"])
    if figure["repeats"] == 1:
        return told
    plain = form.partition("}")[0] + "}"
    return f"{told} ({plain.format(figure['low'])} to {plain.format(figure['high'])})"


if __name__ == "__main__":
    sys.exit(main())
