"""The figures as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Figures = dict[str, Any]
PEERS = ("granian", "mosec")
NAMES = {
    "tauten": "Tauten", "granian": "granian (RSGI), bare", "granian-asgi": "granian (ASGI), bare", "mosec": "mosec",
    "fastapi": "FastAPI, uvicorn", "litserve": "LitServe", "mlserver": "MLServer", "bentoml": "BentoML", "raw": "RAW",
}  # fmt: skip
MODELS = {"lenet": "S", "minilm": "M"}
LOADS = {"binary": "", "json": "JSON, ", "raw": "raw mode, "}


def table(figures: Figures) -> str:
    """All tables, each with a line that says what it tells."""
    parts = [
        _rates(figures["points"]),
        "At Poisson arrivals, milliseconds from when a request was due to its whole answer:",
        _latencies(figures["points"]),
        "RAW, rows a second:",
        _raw(figures["points"]),
        "The others on S with 32 connections:",
        _others(figures["points"]),
        "From the start of the process to the first right answer on S; memory (PSS of all its processes) then, and "
        "after load:",
        _starts(figures["servers"]),
        "Tauten alone:",
        _alone(figures["alone"]),
    ]
    if "held" in figures:
        parts += ["Held:", _held(figures["held"])]
    return "\n\n".join(part for part in parts if part)


def _rates(points: Iterable[Figures]) -> str:
    lines = [
        "| | Tauten | granian | mosec | Tauten over granian | over mosec | of RAW's best | CPU, granian's as 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    points = list(points)
    for ours in (one for one in points if one["server"] == "tauten" and one["load"][0] == "c"):
        found = {name: _same(points, ours, name) for name in PEERS}
        rates = [_rate(found[name]) for name in PEERS]
        over = [_ratio(found[name], "tauten_over_it") for name in PEERS]
        over[0] = over[0] and f"**{over[0]}**"
        used = ""
        if found["granian"]:
            used = f"{ours['cpu_s_per_1k'] / found['granian']['cpu_s_per_1k']:.2f}"
        lines.append(
            f"| {_label(ours)} | {_rate(ours)} | {rates[0]} | {rates[1]} | {over[0]} | {over[1]} "
            f"| {_ratio(ours, 'ratio_to_raw')} | {used} |"
        )
    return "\n".join(lines)


def _latencies(points: Iterable[Figures]) -> str:
    lines = ["| | requests a second | p50 | p99 |", "|---|---|---|---|"]
    lines += [
        f"| {NAMES[one['server']]} | {_rate(one)} | {_ms(one, 'p50_ms')} | {_ms(one, 'p99_ms')} |"
        for one in points
        if one["load"].startswith("poisson")
    ]
    return "\n".join(lines)


def _raw(points: Iterable[Figures]) -> str:
    rows = [one for one in points if one["server"] == "raw"]
    lines = ["| | batch | rows/s |", "|---|---|---|"]
    lines += [f"| {MODELS[one['model']]} | {one['load'][1:]} | {_rate(one)} |" for one in rows]
    return "\n".join(lines)


def _others(points: Iterable[Figures]) -> str:
    lines = ["| | req/s | p99 ms | Tauten over it | CPU seconds a 1,000 |", "|---|---|---|---|---|"]
    lines += [
        f"| {NAMES[one['server']]} | {_rate(one)} | {_ms(one, 'p99_ms')} | {_ratio(one, 'tauten_over_it')} "
        f"| {one['cpu_s_per_1k']:.3g} |"
        for one in points
        if (one["model"], one["load"], one["mode"]) == ("lenet", "c32", "binary")
    ]
    return "\n".join(lines)


def _starts(servers: Iterable[Figures]) -> str:
    lines = ["| | ready, s | memory when ready, MB | after load, MB |", "|---|---|---|---|"]
    lines += [
        f"| {NAMES[one['server']]} | {_with_spread(one, 'ready_s', 2)} | {_with_spread(one, 'pss_mb', 0)} "
        f"| {_with_spread(one, 'pss_loaded_mb', 0)} |"
        for one in servers
    ]
    return "\n".join(lines)


def _alone(rows: Iterable[Figures]) -> str:
    lines = ["| | load | req/s | p50 ms | CPU µs a request | of RAW's best |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {_what(one)} | {one['load']} | {_rate(one)} | {_ms(one, 'p50_ms')} | {one['cpu_us']:.3g} "
        f"| {_ratio(one, 'ratio_to_raw')} |"
        for one in rows
    ]
    return "\n".join(lines)


def _what(one: Figures) -> str:
    if one["server"] == "limit":
        return "the load generator's limit: a server in C that computes nothing"
    if one["server"] == "tauten-null":
        return f"null engine, {_bytes(one['body_bytes'])} a row"
    what = one["server"].removeprefix("tauten-").replace("-", " ").replace("1 instances", "1 instance")
    return f"{MODELS[one['model']]}, {'answers from the cache' if what == 'cache' else what + ' on two cores'}"


def _held(held: Figures) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [
        f"| {key.replace('_', ' ')} | {value:,} |" for key, value in held.items() if isinstance(value, int | float)
    ]
    return "\n".join(lines)


def _same(points: Iterable[Figures], like: Figures, server: str) -> Figures | None:
    keys = ("model", "mode", "load")
    for one in points:
        if one["server"] == server and all(one[key] == like[key] for key in keys):
            return one
    return None


def _label(one: Figures) -> str:
    return f"{MODELS[one['model']]}, {LOADS[one['mode']]}{one['load'][1:]} connections"


def _rate(one: Figures | None) -> str:
    return "" if one is None else f"{one['req_s']:,.0f}"


def _ms(one: Figures, key: str) -> str:
    low, high = one[f"{key}_spread"]
    return f"{one[key]:.3g} ({low:.3g} to {high:.3g})"


def _ratio(one: Figures | None, key: str) -> str:
    return "" if one is None or key not in one else _with_spread(one, key, 2)


def _with_spread(one: Figures, key: str, digits: int) -> str:
    low, high = one[f"{key}_spread"]
    return f"{one[key]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _bytes(count: int) -> str:
    for unit, size in (("MB", 2**20), ("KB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
