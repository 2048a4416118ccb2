"""From what was measured to the figures file: medians over the turns, ratios within each turn."""

from __future__ import annotations

import json
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.serving.environments import PINS
from bench.serving.models import FOLDER
from bench.serving.plan import LIMIT, RAW

Record = dict[str, Any]
Figures = dict[str, Any]
Turns = dict[tuple[int, int, str], list[Record]]
"""By round, turn and row."""
OURS, BASELINE = "tauten", "granian"
HELD = FOLDER / "held.json"
"""Written by the tests that hold the server to its promises, where they were run."""


def collected(records: Sequence[Record], faults: dict[str, str]) -> Figures:
    """``points``, ``servers``, what was measured of Tauten alone, ``held``, and what the run says of itself."""
    for record in records:
        record["cpu_s_per_1k"] = record["cpu_s"] / max(record["requests"], 1) * 1000
    turns: Turns = defaultdict(list)
    for record in records:
        turns[record["round"], record["turn"], record["row"]].append(record)
    alone = [one for one in records if one["size"] or one["server"].startswith(f"{OURS}-")]
    beside = [one for one in records if not one["size"] and not one["server"].startswith(f"{OURS}-")]
    figures: Figures = {
        "points": [_point(group, turns) for group in _grouped(beside)],
        "servers": _servers(beside),
        "alone": [_alone(group, turns) for group in _grouped(alone)],
        "faults": faults,
        "disturbed_share_max": max((_disturbed(one) for one in records), default=0.0),
        "pins": tomllib.loads(PINS.read_text("utf-8")),
        "left_out": {"triton": "has no package to install from PyPI"},
    }
    if HELD.is_file():
        figures["held"] = json.loads(HELD.read_text("utf-8"))
    return figures


def _grouped(records: Iterable[Record]) -> list[list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["point"], record["server"]].append(record)
    return list(groups.values())


def _point(group: Sequence[Record], turns: Turns) -> Figures:
    """Figures of one server at one point."""
    found: Figures = {key: group[0][key] for key in ("model", "mode", "load", "server")}
    for key in ("req_s", "p50_ms", "p99_ms", "max_ms", "cpu_s_per_1k"):
        found.update(_median(key, [one[key] for one in group if key in one]))
    against: dict[str, Callable[[Record], float]] = {
        "ratio_to_granian": lambda one: _best(turns, one, BASELINE),
        "ratio_to_raw": lambda one: _best(turns, one, RAW),
        "ratio_to_raw_b32": lambda one: _best(turns, one, RAW, "b32"),
    }
    for key, rate in against.items():
        found.update(_median(key, [one["req_s"] / other for one in group if (other := rate(one))]))
    if found["server"] not in (OURS, RAW):
        ours = [other / one["req_s"] for one in group if (other := _best(turns, one, OURS)) and one["req_s"]]
        found.update(_median("tauten_over_it", ours))
    found["errors"] = sum(sum(one["errors"].values()) for one in group)
    found["turns"] = len(group)
    return found


def _best(turns: Turns, like: Record, server: str, load: str = "") -> float:
    """The highest rate of ``server`` in the same turn (RAW has one for each batch), 0 where it was not measured."""
    same = turns.get((like["round"], like["turn"], like["row"]), ())
    return max((one["req_s"] for one in same if one["server"] == server and load in ("", one["load"])), default=0.0)


def _servers(records: Sequence[Record]) -> list[Figures]:
    """How long each takes to its first right answer on the small model, and what memory it has then and after load."""
    found = []
    for name in dict.fromkeys(one["server"] for one in records):
        # All turns of a group in a round share a start.
        mine = [one for one in records if one["server"] == name and one["model"] == "lenet" and "ready_s" in one]
        starts = {(one["round"], one["ready_s"]): one for one in mine}.values()
        told: Figures = {"server": name}
        for key in ("ready_s", "pss_mb", "pss_loaded_mb"):
            told.update(_median(key, [one[key] for one in starts]))
        if "ready_s" in told:
            found.append(told)
    return found


def _alone(group: Sequence[Record], turns: Turns) -> Figures:
    found = _point(group, turns)
    found["body_bytes"] = group[0]["size"]
    found.update(_median("cpu_us", [one["cpu_s_per_1k"] * 1000 for one in group]))
    if found["server"] == LIMIT:
        found.update(_median("idle_share", [one["idle_share"] for one in group]))
    return found


def _median(key: str, values: Sequence[float]) -> Figures:
    """``key`` and its spread, or nothing where there are no values."""
    if not values:
        return {}
    return {key: _short(statistics.median(values)), f"{key}_spread": [_short(min(values)), _short(max(values))]}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _disturbed(record: Record) -> float:
    """The share of the two cores that others had, or the host took, while a point was measured."""
    taken = record.get("others_s", 0.0) + record.get("stolen_s", 0.0)
    return _short(max(0.0, taken) / (2 * record["seconds"]))
