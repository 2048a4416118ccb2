"""A comparison of strategies as its page sees it: ``compare.json``, checked, with questions that the page asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tauten.core.measure import Measure
from tauten.errors import ConfigError
from tauten.report import words
from tauten.report.run import SCHEMA_VERSION, Entry

STAGES = {"cut": "right after the cut", "recovered": "recovered", "int8": "in eight bits"}
LITTLE = 0.5
"""Points of a metric in percent that count as little lost."""
_NEEDED = ("task", "target", "strategies", "ratios", "metric", "baseline", "engine_baseline", "points")


@dataclass(frozen=True)
class Point:
    """One strategy at one ratio."""

    raw: Mapping[str, Any]

    @property
    def strategy(self) -> str:
        return str(self.raw["strategy"])

    @property
    def ratio(self) -> float:
        return float(self.raw["ratio"])

    @cached_property
    def stages(self) -> dict[str, Entry]:
        return {str(stage): Entry(raw) for stage, raw in (self.raw.get("stages") or {}).items()}

    @property
    def shipped(self) -> Entry | None:
        """The candidate of the last stage that could be made."""
        return self.stages.get(str(self.raw.get("last") or ""))

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by stage."""
        return {str(stage): str(reason) for stage, reason in (self.raw.get("refused") or {}).items()}

    @property
    def saving(self) -> Mapping[str, Any] | None:
        return self.raw.get("saving")

    def smaller(self, which: str = "engine_baseline") -> float | None:
        """How many times smaller its files are."""
        found = (self.raw.get("compression") or {}).get(which)
        return None if found is None else float(found)

    def quality(self, stage: str) -> Measure | None:
        entry = self.stages.get(stage)
        return entry.measure("quality") if entry else None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison. Raises ``ConfigError`` where the document is none."""

    raw: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.raw, Mapping):
            raise ConfigError(f"comparison: expected a JSON object, got a {type(self.raw).__name__}")
        if self.raw.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            came = self.raw["schema_version"]
            raise ConfigError(f"comparison: expected schema_version {SCHEMA_VERSION}, got {came!r}")
        missing = [key for key in _NEEDED if key not in self.raw]
        if missing:
            raise ConfigError(f"comparison: expected the compare.json of a run, but it lacks {', '.join(missing)}")

    @cached_property
    def points(self) -> list[Point]:
        return [Point(raw) for raw in self.raw["points"]]

    def of(self, strategy: str) -> list[Point]:
        """Its points, from the mildest ratio on."""
        return sorted((point for point in self.points if point.strategy == strategy), key=lambda point: point.ratio)

    @property
    def strategies(self) -> list[str]:
        return [str(name) for name in self.raw["strategies"]]

    @property
    def stages(self) -> list[str]:
        """The stages that any point has or was refused, in their order."""
        return [stage for stage in STAGES if any(stage in {**it.stages, **it.refused} for it in self.points)]

    @cached_property
    def originals(self) -> list[tuple[str, Entry]]:
        """The untouched model: in PyTorch, on the engine, and there in eight bits."""
        engine = str(self.raw["target"].get("engine", ""))
        found = [("Original, PyTorch", Entry(self.raw["baseline"]))]
        found.append((f"Original, {engine}", Entry(self.raw["engine_baseline"])))
        if self.raw.get("control"):
            found.append((f"Original, {engine}, eight bits", Entry(self.raw["control"])))
        return found

    @property
    def metric(self) -> str:
        return str(self.raw["metric"].get("name") or "quality")

    @property
    def unit(self) -> str:
        return str(self.raw["metric"].get("unit") or "")

    @property
    def higher(self) -> bool:
        return str(self.raw["metric"].get("better", "higher")) == "higher"

    @property
    def quality_title(self) -> str:
        return self.metric[0].upper() + self.metric[1:] + (f" ({self.unit})" if self.unit else "")


@dataclass(frozen=True)
class Row:
    """One line of the page's table: cells as text and interval, and the numbers to sort by."""

    name: str
    step: str
    ratio: str
    cells: tuple[tuple[str, str], ...]
    sort: tuple[float | None, ...]
    saves: str
    kind: str


_HEADINGS = {"cut": "Quality after the cut", "recovered": "Quality recovered", "int8": "Quality in eight bits"}


def columns(found: Comparison) -> list[str]:
    """The headings of a row's cells."""
    return [
        "Ratio",
        *(_HEADINGS[stage] for stage in found.stages or ["cut"]),
        "Lost",
        "Size",
        "Smaller",
        "p50",
        "p95",
        "Throughput",
    ]


def rows(found: Comparison) -> list[Row]:
    """The originals first, then each point in the order it was asked for."""
    lines = [_row(found, name, entry, None) for name, entry in found.originals]
    return lines + [_row(found, point.strategy, point.shipped, point) for point in found.points]


def _row(found: Comparison, name: str, shipped: Entry | None, point: Point | None) -> Row:
    stages = found.stages or ["cut"]
    if point:
        qualities = [point.quality(stage) for stage in stages]
    else:
        qualities = [shipped.measure("quality") if shipped else None, *[None] * (len(stages) - 1)]
    texts = ["refused" if point and stage in point.refused else "" for stage in stages]
    smaller = point.smaller() if point else None
    costs = [shipped.measure(key) if shipped else None for key in ("size_bytes", "latency_p50_ms", "latency_p95_ms")]
    drop = shipped.measure("drop_points") if shipped and point else None
    rate = _throughput(shipped)
    measures = [*qualities, drop, costs[0], None, *costs[1:], rate]
    blanks = [*texts, "", "", f"{smaller:.3g}×" if smaller else "", "", "", ""]
    cells = [
        (words.measured(measure).removesuffix(" points"), words.interval(measure)) if measure else (blank, "")
        for measure, blank in zip(measures, blanks, strict=True)
    ]
    sort = [measure.value if measure else None for measure in measures]
    sort[len(stages) + 2] = smaller
    ratio = point.ratio if point else None
    saving = (point.saving if point else None) or {}
    return Row(
        name=name,
        step=str((point.raw.get("step") or {}).get("pass", "")) if point else "",
        ratio="" if ratio is None else f"{ratio:g}",
        cells=(("" if ratio is None else f"{ratio:g}", ""), *cells),
        sort=(ratio, *sort),
        saves=str(saving.get("text", "")),
        kind=str(saving.get("kind", "")),
    )


def _throughput(entry: Entry | None) -> Measure | None:
    """That of the largest batch."""
    if entry is None or not entry.batches():
        return None
    return entry.measure(f"throughput_per_s.{entry.batches()[-1]}")


def refusals(found: Comparison) -> list[tuple[str, str]]:
    """What could not be made, and why."""
    return [
        (f"{point.strategy}, {point.ratio:g}, {STAGES.get(stage, stage)}", reason)
        for point in found.points
        for stage, reason in point.refused.items()
    ]


def sentences(found: Comparison) -> list[str]:
    """What was found, in plain sentences: of each strategy the furthest that costs little quality."""
    made = sum(bool(point.stages) for point in found.points)
    ratios = words.listing([f"{ratio:g}" for ratio in found.raw["ratios"]])
    who = words.listing(found.strategies) if len(found.strategies) <= 4 else f"{len(found.strategies)} strategies"
    lines = [
        f"{who} at {ratios}: {made} of {len(found.points)} could be made and were measured beside the untouched model."
    ]
    if found.unit != "%":
        return lines
    return lines + [f"{strategy}: {_furthest(found.of(strategy))}" for strategy in found.strategies]


def _furthest(points: list[Point]) -> str:
    if not any(point.stages for point in points):
        return "could not be made."
    held = [point for point in points if (drop := _drop(point)) is not None and drop <= LITTLE]
    if not held:
        closest = min((point for point in points if point.shipped), key=lambda point: _drop(point) or 0.0)
        return f"loses {words.amount(_drop(closest) or 0.0, 'points')} or more at every ratio."
    best = held[-1]
    smaller = best.smaller()
    size = f", {words.compared(smaller, 'smaller', 'larger')}" if smaller else ""
    saves = (best.saving or {}).get("text", "")
    return f"at most {LITTLE:g} points lost up to {best.ratio:g}{size}; in measured time {saves}."


def _drop(point: Point) -> float | None:
    measure = point.shipped.measure("drop_points") if point.shipped else None
    return measure.value if measure else None
