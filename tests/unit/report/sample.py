"""Results as a run writes them, with figures that are plausible and fixed."""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]

LAYERS = (
    ("conv1", [32, 1, 3, 3]),
    ("conv2", [64, 32, 3, 3]),
    ("conv3", [128, 64, 3, 3]),
    ("fc1", [128, 512]),
    ("fc2", [10, 128]),
)


def measure(
    value: float, unit: str, better: str = "lower", spread: float = 0.03, on: str = "batch 1", repeats: int = 7
) -> Json:
    """A measure with an interval of ``spread`` of its value to each side."""
    wide = abs(value) * spread
    return {
        "value": value, "low": value - wide, "high": value + wide, "unit": unit, "better": better,
        "repeats": repeats, "on": on,
    }  # fmt: skip


def measures(quality: float, size: int, p50: float, *, full: bool = True) -> Json:
    """All measures of one entry; those that only the front gets are left out where ``full`` is false."""
    found = {
        "quality": measure(quality, "%", "higher", 0.006, "validate, 360 samples", 1),
        "size_bytes": measure(size, "bytes", spread=0, on="all files", repeats=1),
        "latency_mean_ms": measure(p50 * 1.07, "ms"),
        "latency_p50_ms": measure(p50, "ms"),
        "latency_p95_ms": measure(p50 * 1.3, "ms", spread=0.08),
        "latency_p99_ms": measure(p50 * 1.7, "ms", spread=0.15),
        "throughput_per_s": {
            str(batch): measure(1000 / p50 * batch**0.5, "rows/s", "higher", on=f"batch {batch}")
            for batch in (1, 8, 16, 32)
        },
    }
    if full:
        found["peak_memory_mib"] = measure(70 + size / 20_000, "MiB", on="a fresh process", repeats=3)
        found["startup_ms"] = measure(180 + p50 * 40, "ms", on="a fresh process", repeats=3)
        found["load_ms"] = measure(9 + size / 90_000, "ms", on="a fresh process", repeats=3)
    return found


def layers(bits: int, keep: float = 1.0, zeros: float = 0.002) -> list[Json]:
    """One weight and one bias a layer."""
    found = []
    for name, shape in LAYERS:
        kept = [max(1, round(shape[0] * keep)), *shape[1:]] if name != "fc2" else shape
        elements = 1
        for dim in kept:
            elements *= dim
        found.append({
            "name": name, "weight": f"{name}.weight", "shape": kept, "dtype": f"int{bits}" if bits < 32 else "float32",
            "bits": bits, "bytes": elements * bits // 8, "elements": elements, "zeros": zeros,
        })  # fmt: skip
        found.append({
            "name": name, "weight": f"{name}.bias", "shape": kept[:1], "dtype": "float32", "bits": 32,
            "bytes": kept[0] * 4, "elements": kept[0], "zeros": 0.0,
        })  # fmt: skip
    return found


def record(name: str, seconds: float, parameters: Json, notes: Json) -> Json:
    """What one pass did."""
    return {
        "name": name, "parameters": parameters, "seed": 0, "seconds": seconds, "before": "a" * 64, "after": "b" * 64,
        "notes": notes,
    }  # fmt: skip


def entry(
    name: str,
    passes: list[Json],
    quality: float,
    size: int,
    p50: float,
    *,
    full: bool = True,
    violations: tuple[str, ...] = (),
) -> Json:
    """One candidate."""
    return {
        "name": name,
        "recipe": {"name": name, "passes": passes, "lowering": "onnx"},
        "artifact": f"candidates/{name}",
        "measures": measures(quality, size, p50, full=full),
        "drop_points": measure(98.33 - quality, "points", spread=0.4, on="validate, paired", repeats=1),
        "within_budget": not violations,
        "violations": list(violations),
        "history": [
            record(it["pass"], 2.41 * (index + 1), {k: v for k, v in it.items() if k != "pass"}, {})
            for index, it in enumerate(passes)
        ],
        "layers": layers(32),
    }


PRUNE = {"pass": "prune.structured", "ratio": 0.5, "criterion": "l2"}
RECOVER = {"pass": "distill.recover", "epochs": 8, "distill": True, "learning_rate": 0.001}
STATIC = {"pass": "quantize.post_training", "calibration": "minmax", "per_channel": True}
DYNAMIC = {"pass": "quantize.dynamic"}


def pruned(ratio: float) -> list[Json]:
    """The passes of a structured candidate."""
    return [{**PRUNE, "ratio": ratio}, RECOVER, STATIC]


def sample() -> Json:
    """A run that held its budget."""
    baseline = entry("baseline", [], 98.33, 672_120, 0.498)
    engine = entry("engine-baseline", [], 98.33, 690_400, 0.142)
    best = entry("structured-0.5-int8", [PRUNE, RECOVER, STATIC], 98.06, 46_210, 0.0612)
    best["layers"] = layers(8, keep=0.5, zeros=0.031)
    best["history"][0]["notes"] = {
        "channels_removed": 112, "channels": 224, "groups": 4,
        "refused": {"fc2": "its outputs are the model's outputs", "fc1": "a reshape mixes its channels"},
    }  # fmt: skip
    best["history"][1]["notes"] = {"loss_first": 0.412, "loss_last": 0.0371, "epochs": 8, "samples": 1078}
    best["history"][2]["notes"] = {"operations_in_int8": "11 of 12", "samples": 256}
    over = "size {:,} > 50,000 bytes".format
    others = [
        entry("float32", [], 98.33, 690_400, 0.142, violations=(over(690_400),)),
        entry("int8-static", [STATIC], 98.06, 181_300, 0.0874, violations=(over(181_300),)),
        entry("int8-dynamic", [DYNAMIC], 98.33, 182_040, 0.161, full=False, violations=(over(182_040),)),
        entry("structured-0.3-int8", pruned(0.3), 98.33, 91_800, 0.0731, violations=(over(91_800),)),
        entry("structured-0.7-int8", pruned(0.7), 96.94, 21_330, 0.0498, violations=("drop 1.39 > 0.50 points",)),
        entry(
            "structured-0.8-int8",
            pruned(0.8),
            93.10,
            13_120,
            0.0441,
            full=False,
            violations=("drop 5.23 > 0.50 points",),
        ),
        entry(
            "magnitude-0.8-int8",
            [{"pass": "prune.magnitude", "ratio": 0.8}, RECOVER, STATIC],
            97.78,
            181_300,
            0.0881,
            full=False,
            violations=("drop 0.55 > 0.50 points", over(181_300)),
        ),
    ]
    return {
        "schema_version": 1,
        "task": "digits",
        "target": {
            "name": "server-cpu", "engine": "onnx", "device": "cpu", "threads": 1, "batch": 32,
            "precisions": ["float32", "int8"],
        },
        "budget": {"max_drop": 0.5, "max_bytes": 50_000, "max_latency_ms": None, "max_memory_mib": 120.0},
        "level": "medium",
        "seed": 0,
        "met": True,
        "explanation": "structured-0.5-int8 is the smallest of 1 candidate that holds the budget.",
        "quality_on": "validate",
        "metric": {"name": "accuracy", "unit": "%", "better": "higher"},
        "baseline": baseline,
        "engine_baseline": engine,
        "best": {**copy.deepcopy(best), "artifact": "best"},
        "candidates": [*others[:4], best, *others[4:]],
        "nearest": [],
        "front": ["structured-0.5-int8", "structured-0.3-int8", "structured-0.7-int8", "int8-static"],
        "refused": [
            {
                "name": "structured-0.9-int8",
                "recipe": {"name": "structured-0.9-int8", "passes": [{**PRUNE, "ratio": 0.9}], "lowering": "onnx"},
                "error": "prune.structured: output holds numbers that are not finite",
            }
        ],
        "engines": [
            {
                "engine": "onnx", "precision": "int8", "options": {"placement": "products"}, "installed": True,
                "extra": "", "latency": measure(0.0874, "ms"), "drop": measure(0.2, "points"), "chosen": True,
                "reason": "the fastest",
            },
            {
                "engine": "openvino", "precision": None, "options": {}, "installed": False, "extra": "openvino",
                "latency": None, "drop": None, "chosen": False,
                "reason": "not installed: pip install \"tauten[openvino]\" brings it",
            },
        ],
        "improvements": {
            "baseline": {
                "latency_p50_ms": improvement(8.14, 7.8, 8.5, -0.437, "ms", "8.14 times faster"),
                "size_bytes": improvement(14.5, 14.5, 14.5, -625_910, "bytes", "14.5 times smaller"),
            },
            "engine_baseline": {
                "latency_p50_ms": improvement(2.32, 2.2, 2.45, -0.0808, "ms", "2.32 times faster"),
            },
        },
        "test": {
            "baseline": measure(97.78, "%", "higher", 0.008, "test, 360 samples", 1),
            "engine_baseline": measure(97.78, "%", "higher", 0.008, "test, 360 samples", 1),
            "best": measure(97.58, "%", "higher", 0.008, "test, 360 samples", 1),
            "drop_points": measure(0.2, "points", spread=1.5, on="test, paired", repeats=1),
        },
        "environment": {
            "python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.32.0", "machine": "x86_64",
            "cpu": "Example CPU at 2.60 GHz", "cores": "2",
        },
        "created": "2026-11-23T22:00:00+00:00",
        "seconds": 55.1,
        "tauten": "0.1.0",
    }  # fmt: skip


def improvement(ratio: float, low: float, high: float, difference: float, unit: str, text: str) -> Json:
    """The best against a baseline in one measure."""
    return {
        "ratio": ratio, "ratio_low": low, "ratio_high": high, "difference": difference, "unit": unit,
        "better": ratio > 1, "text": text,
    }  # fmt: skip


def not_met() -> Json:
    """A run in which nothing held the budget, and that had no test set."""
    result = sample()
    result.update(
        met=False, best=None, test=None, improvements={}, nearest=["structured-0.7-int8", "structured-0.5-int8"],
        budget={"max_drop": 0.1, "max_bytes": 15_000, "max_latency_ms": 0.05, "max_memory_mib": None},
        explanation="no candidate holds the budget: the nearest, structured-0.7-int8, is 6,330 bytes too large",
    )  # fmt: skip
    for candidate in result["candidates"]:
        candidate["within_budget"] = False
        candidate["violations"] = ["size > 15,000 bytes"]
    return result


def bare() -> Json:
    """The least that a run can have: one candidate with two measures, no budget, no layers, no history."""
    result = sample()
    for which in ("baseline", "engine_baseline", "best"):
        kept = result[which]["measures"]
        result[which] = {
            "name": which, "recipe": {"name": which, "passes": [], "lowering": "onnx"}, "artifact": which,
            "measures": {key: kept[key] for key in ("quality", "size_bytes")}, "drop_points": None,
            "within_budget": True, "violations": [], "history": [], "layers": [],
        }  # fmt: skip
    result.update(
        candidates=[result["best"]], front=[], refused=[], improvements={}, test=None, environment={},
        budget=dict.fromkeys(result["budget"]),
    )  # fmt: skip
    return result


def empty() -> Json:
    """A run whose every candidate was refused."""
    result = not_met()
    result.update(candidates=[], nearest=[], front=[])
    return result


def many(count: int = 400) -> Json:
    """A run with many candidates and a model with many layers."""
    result = sample()
    template = result["candidates"][0]
    for index in range(count):
        other = copy.deepcopy(template)
        other["name"] = f"many-{index}"
        other["measures"] = measures(98 - index % 37 / 10, 20_000 + 911 * index, 0.05 + index / 700, full=False)
        result["candidates"].append(other)
    deep = [
        {**layer, "name": f"encoder.layer.{block}.{layer['name']}"} for block in range(40) for layer in layers(8, 0.5)
    ]
    result["best"]["layers"] = deep
    result["engine_baseline"]["layers"] = [{**layer, "bytes": layer["bytes"] * 4, "bits": 32} for layer in deep]
    return result
