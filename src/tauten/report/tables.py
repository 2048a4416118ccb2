"""The rows of the page's tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tauten.core.measure import Measure
from tauten.report import words
from tauten.report.run import Entry, Run, read_measure

MEASURES = (
    "quality",
    "size_bytes",
    "latency_p50_ms",
    "latency_mean_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "throughput_per_s",
    "load_ms",
    "peak_memory_mib",
    "startup_ms",
)


@dataclass(frozen=True)
class Cell:
    """A value with its interval; ``sort`` orders a column."""

    text: str
    interval: str = ""
    sort: float | None = None

    @classmethod
    def of(cls, measure: Measure | None) -> Cell:
        return cls(words.measured(measure), words.interval(measure), measure.value if measure else None)


@dataclass(frozen=True)
class Comparison:
    """One measure of both baselines and of the shown candidate."""

    title: str
    cells: tuple[Cell, ...]
    changes: tuple[tuple[str, str, bool | None], ...]
    how: str


def comparisons(run: Run) -> list[Comparison]:
    """A row a measure that any of the three has, the test set's quality last."""
    entries = [entry for entry in (run.baseline, run.engine_baseline, run.shown) if entry]
    names = []
    for name in MEASURES:
        if name == "throughput_per_s":
            batches = sorted({batch for entry in entries for batch in entry.batches()}, key=int)
            names += [f"{name}.{batch}" for batch in batches]
        else:
            names.append(name)
    rows = []
    for name in names:
        measures = [entry.measure(name) for entry in entries]
        if any(measures):
            changes = tuple(_change(run, which, name) for which in ("baseline", "engine_baseline")) if run.shown else ()
            rows.append(Comparison(title(name), tuple(map(Cell.of, measures)), changes, _how(measures)))
    on_test = [run.on_test(which) for which in ("baseline", "engine_baseline", "best")]
    if run.met and any(on_test):
        drop = run.on_test("drop_points")
        change = (words.lost(drop.value), words.interval(drop), None) if drop else ("", "", None)
        rows.insert(1, Comparison("Quality on the test set", tuple(map(Cell.of, on_test)), (change,), _how(on_test)))
    return rows


def title(name: str) -> str:
    """A measure's name for people: ``throughput_per_s.8`` is ``Throughput, batch 8``."""
    key, _, batch = name.partition(".")
    return words.NAMES.get(key, words.label(key)) + (f", batch {batch}" if batch else "")


def _how(measures: list[Measure | None]) -> str:
    found = next((measure for measure in reversed(measures) if measure), None)
    if found is None:
        return ""
    repeats = f"{found.repeats:,} repeats" if found.repeats > 1 else ""
    return ", ".join(part for part in (found.on, repeats) if part)


def _change(run: Run, which: str, name: str) -> tuple[str, str, bool | None]:
    """What changed against a baseline: text, interval, and whether it is better (``None``: within the noise)."""
    if name == "quality":
        drop = run.shown.measure("drop_points") if run.shown and which == "baseline" else None
        return (words.lost(drop.value), words.interval(drop), None) if drop else ("", "", None)
    given = run.improvement(which, name)
    ratio = run.ratio(name, which)
    if ratio is None:
        return "", "", None
    low, high = (float(given["ratio_low"]), float(given["ratio_high"])) if given else (ratio, ratio)
    between = f"{words.times(low)} to {words.times(high)}" if low != high else ""
    # An interval that holds 1 tells of no change: neither better nor worse.
    return f"{words.times(ratio)}×", between, None if low <= 1 <= high else ratio > 1


@dataclass(frozen=True)
class CandidateRow:
    """One candidate: what it is, what it measured, and why it may not be chosen."""

    name: str
    steps: list[str]
    cells: tuple[Cell, ...]
    fits: bool
    violations: list[str]
    front: bool
    best: bool


COLUMNS = {
    "quality": "Quality",
    "drop_points": "Lost",
    "size_bytes": "Size",
    "latency_p50_ms": "p50",
    "latency_p95_ms": "p95",
    "load_ms": "Load",
    "peak_memory_mib": "Memory",
}


def candidates(run: Run) -> list[CandidateRow]:
    """All candidates in the order they were tried."""
    best = run.best.name if run.best else None
    return [
        CandidateRow(
            name=entry.name,
            steps=[*(step_text(step) for step in entry.steps), *_coding(entry)],
            cells=tuple(Cell.of(entry.measure(name)) for name in COLUMNS),
            fits=entry.fits,
            violations=entry.violations,
            front=entry.name in run.front,
            best=entry.name == best,
        )
        for entry in run.candidates
    ]


def _coding(entry: Entry) -> list[str]:
    """How the weights are coded, where they are."""
    codec = (entry.raw.get("recipe") or {}).get("codec", "plain")
    return [] if codec == "plain" else [f"coded by {codec}"]


def step_text(step: Mapping[str, Any]) -> str:
    """A pass in a few words: ``prune.structured (ratio 0.5)``."""
    main = next((f" ({key} {words.value(step[key])})" for key in ("ratio", "epochs", "method") if key in step), "")
    return f"{step.get('pass', '')}{main}"


@dataclass(frozen=True)
class Step:
    """One pass of the shown candidate's history."""

    name: str
    seconds: str
    parameters: list[tuple[str, str]]
    notes: list[tuple[str, str]]
    refused: list[tuple[str, str]]


def history(entry: Entry) -> list[Step]:
    """What was done to the model, in order."""
    steps = []
    for record in entry.history:
        notes = dict(record.get("notes") or {})
        refused = notes.pop("refused", None) or {}
        notes.pop("sensitivity", None)  # drawn under the patterns, as kept channels are
        if isinstance(notes.get("groups"), list):
            notes["groups"] = _groups(notes["groups"])
        pairs = refused.items() if isinstance(refused, Mapping) else ((str(item), "") for item in refused)
        steps.append(
            Step(
                name=str(record.get("name", "")),
                seconds=words.duration(float(record["seconds"])) if "seconds" in record else "",
                parameters=[
                    (words.label(key), words.value(it)) for key, it in (record.get("parameters") or {}).items()
                ],
                notes=[(words.label(key), words.value(it)) for key, it in notes.items()],
                refused=[(str(layer), words.value(reason)) for layer, reason in pairs],
            )
        )
    return steps


def _groups(groups: list[Any]) -> str:
    """Groups of channels in a few words: how many channels stay of each."""
    told = [
        f"{it.get('name') or words.value(it.get('parameters'))}: {it.get('after')} of {it.get('before')}"
        for it in groups
        if isinstance(it, Mapping)
    ]
    return "; ".join(told)


@dataclass
class Layer:
    """A layer's weights added up, before and after."""

    name: str
    before_shape: str = ""
    after_shape: str = ""
    before_bytes: int = 0
    after_bytes: int = 0
    before_bits: float = 0
    after_bits: float = 0
    zeros: float = 0
    before_share: float = 0
    after_share: float = 0


def layers(run: Run) -> list[Layer]:
    """Bytes, bits and zeros a layer: the shown candidate against the untouched model on the same engine.

    A layer's bits and shape are those of its largest weight; its bytes and zeros are those of all its weights.
    A layer that is in one of the two only (merged, split or removed) has no bytes in the other.
    """
    if run.shown is None:
        return []
    found: dict[str, Layer] = {}
    for which, entry in (("before", run.engine_baseline), ("after", run.shown)):
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for raw in entry.layers:
            parts.setdefault(str(raw.get("name", "")), []).append(raw)
        for name, weights in parts.items():
            layer = found.setdefault(name, Layer(name))
            main = max(weights, key=lambda raw: raw.get("elements", 0))
            elements = sum(raw.get("elements", 0) for raw in weights)
            zeros = sum(raw.get("elements", 0) * raw.get("zeros", 0) for raw in weights)
            setattr(layer, f"{which}_shape", " × ".join(map(str, main.get("shape") or [])))
            setattr(layer, f"{which}_bytes", sum(raw.get("bytes", 0) for raw in weights))
            setattr(layer, f"{which}_bits", main.get("bits", 0))
            if which == "after":
                layer.zeros = zeros / elements if elements else 0.0
    largest = max((max(layer.before_bytes, layer.after_bytes) for layer in found.values()), default=0)
    for layer in found.values():
        layer.before_share = layer.before_bytes / largest if largest else 0.0
        layer.after_share = layer.after_bytes / largest if largest else 0.0
    return list(found.values())


@dataclass(frozen=True)
class EngineRow:
    """An engine with one choice of options, as it ran the untouched model."""

    name: str
    options: str
    precision: str
    cells: tuple[Cell, ...]
    chosen: bool
    reason: str


def engines(run: Run) -> list[EngineRow]:
    """What was measured of engines, where the run was to choose among them."""
    return [
        EngineRow(
            name=str(raw.get("engine", "")),
            options=", ".join(f"{name} {value}" for name, value in (raw.get("options") or {}).items()),
            precision=str(raw.get("precision") or ""),
            cells=tuple(Cell.of(read_measure(raw.get(name))) for name in ("latency", "drop")),
            chosen=bool(raw.get("chosen")),
            reason=str(raw.get("reason", "")),
        )
        for raw in run.raw.get("engines") or []
    ]


def mixed(entry: Entry) -> tuple[str, list[tuple[str, str]]] | None:
    """Why some layers stay in a higher precision, and which; ``None`` where none does."""
    told = entry.raw.get("mixed")
    if not isinstance(told, Mapping):
        return None
    rows = []
    for layer in told.get("layers") or []:
        noise = layer.get("noise")
        cost = f", the outputs' noise with it alone quantized: {noise:.3g} of their power" if noise is not None else ""
        why = f"; {layer['why']}" if layer.get("why") else ""
        rows.append((str(layer.get("path", "")), f"{layer.get('precision', '')}{cost}{why}"))
    return str(told.get("why", "")), rows


def refused(run: Run) -> list[tuple[str, str]]:
    """Candidates that could not be made, and why."""
    return [(str(raw.get("name", "")), str(raw.get("error", ""))) for raw in run.raw.get("refused") or []]


def environment(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where and with what it was measured."""
    target = raw["target"]
    rows = [
        ("Target", f"{target.get('name', '')}: {target.get('engine', '')} on {target.get('device', '')}"),
        ("Threads", words.value(target.get("threads"))),
        ("Level", str(raw.get("level", ""))),
        ("Seed", str(raw.get("seed", ""))),
        ("Created", str(raw.get("created", ""))),
        ("Took", words.duration(float(raw["seconds"])) if "seconds" in raw else ""),
        ("Tauten", str(raw.get("tauten", ""))),
    ]
    rows += [(words.label(str(key)), str(it)) for key, it in (raw.get("environment") or {}).items()]
    return [(key, it) for key, it in rows if it not in ("", "none")]
