"""A run as the page sees it: ``result.json``, checked, with questions that the page asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tauten.core.measure import Measure
from tauten.errors import ConfigError

SCHEMA_VERSION = 1
_NEEDED = ("task", "met", "budget", "target", "baseline", "engine_baseline", "candidates")


@dataclass(frozen=True)
class Entry:
    """A candidate or a baseline."""

    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw.get("name", ""))

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """The recipe's passes, each ``{"pass": …, parameters…}``."""
        return list((self.raw.get("recipe") or {}).get("passes") or [])

    @property
    def history(self) -> list[Mapping[str, Any]]:
        return list(self.raw.get("history") or [])

    @property
    def layers(self) -> list[Mapping[str, Any]]:
        return list(self.raw.get("layers") or [])

    @property
    def violations(self) -> list[str]:
        return [str(text) for text in self.raw.get("violations") or []]

    @property
    def fits(self) -> bool:
        """Whether it holds the budget."""
        return bool(self.raw.get("within_budget"))

    def measure(self, name: str) -> Measure | None:
        """A measure by its key, ``throughput_per_s.8`` for batch 8, ``drop_points``; ``None`` where not taken."""
        if name == "drop_points":
            found = self.raw.get(name)
        else:
            key, _, batch = name.partition(".")
            found = (self.raw.get("measures") or {}).get(key)
            if batch and isinstance(found, Mapping):
                found = found.get(batch)
        return read_measure(found)

    def batches(self) -> list[str]:
        """The batch sizes that throughput was measured for, from small to large."""
        found = (self.raw.get("measures") or {}).get("throughput_per_s") or {}
        return sorted(found, key=int)


def read_measure(document: object) -> Measure | None:
    """The measure that a JSON document is, or ``None`` where there is none."""
    return Measure.from_json(document) if isinstance(document, Mapping) and "value" in document else None


@dataclass(frozen=True)
class Run:
    """A finished run. Raises ``ConfigError`` where the document is none."""

    raw: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.raw, Mapping):
            raise ConfigError(f"result: expected a JSON object, got a {type(self.raw).__name__}")
        if self.raw.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            raise ConfigError(f"result: expected schema_version {SCHEMA_VERSION}, got {self.raw['schema_version']!r}")
        missing = [key for key in _NEEDED if key not in self.raw]
        if missing:
            raise ConfigError(f"result: expected the result.json of a run, but it lacks {', '.join(missing)}")

    @property
    def met(self) -> bool:
        return bool(self.raw["met"]) and self.best is not None

    @cached_property
    def best(self) -> Entry | None:
        found = self.raw.get("best")
        return Entry(found) if found else None

    @cached_property
    def shown(self) -> Entry | None:
        """What stands beside the baselines: the best, or the nearest where nothing held the budget."""
        if self.best:
            return self.best
        nearest = list(self.raw.get("nearest") or [])
        named = {entry.name: entry for entry in self.candidates}
        return next((named[name] for name in nearest if name in named), None)

    @cached_property
    def baseline(self) -> Entry:
        return Entry(self.raw["baseline"])

    @cached_property
    def engine_baseline(self) -> Entry:
        return Entry(self.raw["engine_baseline"])

    @property
    def engine(self) -> str:
        """The engine that the shown candidate runs on."""
        recipe = self.engine_baseline.raw.get("recipe") or {}
        return str(recipe.get("lowering") or self.raw["target"].get("engine") or "the same engine")

    @cached_property
    def candidates(self) -> list[Entry]:
        return [Entry(raw) for raw in self.raw["candidates"]]

    @property
    def front(self) -> set[str]:
        return set(self.raw.get("front") or ())

    @property
    def metric(self) -> str:
        """What quality is: ``accuracy``."""
        return str((self.raw.get("metric") or {}).get("name") or "quality")

    @property
    def higher(self) -> bool:
        """Whether more of the metric is better."""
        return str((self.raw.get("metric") or {}).get("better", "higher")) == "higher"

    def on_test(self, what: str) -> Measure | None:
        """``baseline``, ``engine_baseline``, ``best`` or ``drop_points`` on the test set, where there was one."""
        return read_measure((self.raw.get("test") or {}).get(what))

    def limits(self) -> Iterator[tuple[str, float]]:
        """The limits that bind: name in the budget, value."""
        for name, limit in self.raw["budget"].items():
            if limit is not None:
                yield name, float(limit)

    def improvement(self, which: str, name: str) -> Mapping[str, Any] | None:
        """What the run itself says of the best against ``baseline`` or ``engine_baseline`` in one measure."""
        found = ((self.raw.get("improvements") or {}).get(which) or {}).get(name)
        return found if self.met and isinstance(found, Mapping) else None

    def ratio(self, name: str, which: str = "baseline") -> float | None:
        """How many times better the shown one is than that baseline; above 1 is better."""
        given = self.improvement(which, name)
        if given:
            return float(given["ratio"])
        against = self.baseline if which == "baseline" else self.engine_baseline
        ours, theirs = self.shown and self.shown.measure(name), against.measure(name)
        return ours.ratio(theirs) if ours and theirs and ours.value and theirs.value else None
