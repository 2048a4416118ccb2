"""Comparisons as a run writes them, with figures that are plausible and fixed."""

from __future__ import annotations

import copy

from tests.unit.report.sample import Json, entry, measure, sample

RATIOS = (0.3, 0.5, 0.7, 0.9)
GROUPS = {"conv1.weight": 32, "conv2.weight": 64, "conv3.weight": 128, "fc1.weight": 128}


def mask(layer: str, shape: list[int], ratio: float) -> Json:
    """A mask of so many zeros, drawn in at most 16 x 32 cells."""
    down = min(shape[0], 16)
    across = min(shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1), 32)
    level = round(15 * (1 - ratio))
    rows = ["".join(f"{max(0, min(15, level + (x * y) % 5 - 2)):x}" for x in range(across)) for y in range(down)]
    return {"layer": layer, "weight": f"{layer}.weight", "shape": shape, "zeros": ratio, "rows": rows}


def kept(ratio: float) -> list[Json]:
    """Notes of ``prune.structured``: the channels that stay of each group."""
    found = []
    for name, units in GROUPS.items():
        stay = [unit for unit in range(units) if (unit * 37) % units >= round(ratio * units)]
        found.append(
            {"name": name, "parameters": [name], "before": units, "after": len(stay), "kept": stay}
        )  # fmt: skip
    return found


SENSITIVITY = {name: [[ratio, (index + 1) * 0.2 * ratio**3] for ratio in RATIOS] for index, name in enumerate(GROUPS)}


def stage(name: str, steps: list[Json], quality: float, size: int, p50: float, notes: Json) -> Json:
    """One candidate of a point, its first pass with these notes."""
    made = entry(name, steps, quality, size, p50, full=False)
    if made["history"]:
        made["history"][0]["notes"] = notes
    return made


def point(strategy: str, step: Json, ratio: float, notes: Json, *, smaller: float, faster: float, lost: float) -> Json:
    """One strategy at one ratio, recovered."""
    name = f"{strategy}-{ratio:g}"
    size, p50 = round(690_400 / smaller), 0.142 / faster
    recover = {"pass": "distill.recover", "epochs": 3}
    stages = {
        "cut": stage(name, [step], 98.33 - 12 * lost, size, p50, notes),
        "recovered": stage(f"{name}-recovered", [step, recover], 98.33 - lost, size, p50, notes),
    }
    saved = faster > 1.05
    return {
        "strategy": strategy, "name": name, "step": step, "ratio": ratio, "stages": stages, "last": "recovered",
        "refused": {}, "compression": {"baseline": smaller * 0.97, "engine_baseline": smaller}, "improvements": {},
        "saving": {
            "measure": "latency_p50_ms", "ratio": faster, "low": faster * 0.97, "high": faster * 1.03,
            "kind": "time" if saved else "none", "arithmetic": not saved,
            "text": f"{faster:.3g} times faster" if saved else "no time saved outside the noise: zeros",
        },
        "masks": [],
    }  # fmt: skip


def comparison() -> Json:
    """Three strategies at four ratios; one strategy is refused at its strongest."""
    points = []
    for ratio in RATIOS:
        step = {"pass": "prune.magnitude", "ratio": ratio, "scope": "layer"}
        made = point("magnitude", step, ratio, {"sparsity": ratio}, smaller=1.0, faster=1.0, lost=0.3 * ratio**4)
        made["masks"] = [mask("conv1", [32, 1, 3, 3], ratio), mask("conv3", [128, 64, 3, 3], ratio)]
        points.append(made)
    for ratio in RATIOS:
        step = {"pass": "prune.structured", "ratio": ratio, "criterion": "l2"}
        notes = {"groups": kept(ratio), "refused": {"fc2": "its outputs are the model's outputs"}}
        notes["sensitivity"] = SENSITIVITY
        smaller = 1 / (1 - ratio) ** 1.6
        points.append(point("structured", step, ratio, notes, smaller=smaller, faster=smaller**0.6, lost=4 * ratio**6))
    for ratio in RATIOS:
        step = {"pass": "dynamic.early_exit", "share": ratio}
        made = point("dynamic", step, ratio, {}, smaller=0.95, faster=1 + ratio, lost=0.9 * ratio**3)
        made["stages"].pop("recovered")
        made["last"] = "cut"
        points.append(made)
    points[-1].update(stages={}, last="", refused={"cut": "dynamic.early_exit: no point to leave at"}, compression={})
    points[-1].update(saving=None)
    base = sample()
    kept_keys = ("schema_version", "task", "target", "seed", "metric", "environment", "created", "seconds", "tauten")
    return {
        **{key: base[key] for key in kept_keys}, "kind": "comparison",
        "strategies": ["magnitude", "structured", "dynamic"],
        "ratios": list(RATIOS), "recover": 3, "int8": False, "quality_on": "validate",
        "baseline": base["baseline"], "engine_baseline": base["engine_baseline"], "control": None, "points": points,
        "caveats": [],
    }  # fmt: skip


def lower_is_better() -> Json:
    """A comparison by an error, without labels to recover by."""
    document = comparison()
    document["metric"] = {"name": "mse", "unit": "", "better": "lower"}
    entries = [document["baseline"], document["engine_baseline"]]
    for made in document["points"]:
        made["stages"] = dict(list(made["stages"].items())[:1])
        made["last"] = next(iter(made["stages"]), "")
        entries += made["stages"].values()
    for found in entries:
        error = 100 - found["measures"]["quality"]["value"]
        found["measures"]["quality"] = measure(error, "", "lower")
    document["recover"] = 0
    return document


def refused() -> Json:
    """A comparison in which nothing could be made."""
    document = comparison()
    for made in document["points"]:
        made.update(stages={}, last="", refused={"cut": "no"}, compression={}, saving=None, masks=[])
    return document


def crowded() -> Json:
    """Nine strategies with long names, of a model with many layers."""
    document = comparison()
    template = [made for made in document["points"] if made["strategy"] == "structured"]
    document["strategies"] = [f"structured:criterion=geometric_median:scope=layer:round_to={n}" for n in range(9)]
    document["points"] = []
    for number, name in enumerate(document["strategies"]):
        for made in copy.deepcopy(template):
            made["strategy"] = name
            notes = made["stages"]["cut"]["history"][0]["notes"]
            blocks = range(7 if number == 0 else 0)
            notes["groups"] = [
                {**group, "name": f"encoder.layer.{block}.{group['name']}"}
                for block in blocks
                for group in notes["groups"]
            ]
            notes.pop("sensitivity")
            for found in made["stages"].values():
                found["measures"]["quality"] = measure(95 - number, "%", "higher")
            document["points"].append(made)
    return document
