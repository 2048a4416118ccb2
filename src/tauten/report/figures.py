"""The scatter plots, as Plotly figures in plain JSON. Colours are names of CSS variables, which the page fills in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tauten.core.measure import Measure
from tauten.report import words
from tauten.report.run import Entry, Run

SIZE = ("size_bytes", "Size on disk", "max_bytes")
MEDIAN = ("latency_p50_ms", "Latency of one request, median", "")
TAIL = ("latency_p95_ms", "Latency of one request, p95", "max_latency_ms")
MANY = 60
"""From so many candidates on, whiskers would hide the points."""


def figures(run: Run) -> list[dict[str, Any]]:
    """A figure a cost: ``{id, title, alt, caption, data, layout}``. One that would hold no point is left out."""
    # A latency budget binds p95, so that its line stands in the plot of p95.
    axes = (SIZE, MEDIAN if run.raw["budget"].get("max_latency_ms") is None else TAIL)
    return [figure for axis in axes if (figure := _scatter(run, *axis))]


def legend(plots: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Name, colour and symbol of what the plots show, each once."""
    found = {}
    for trace in (trace for plot in plots for trace in plot["data"]):
        marker = trace.get("marker", {})
        found[trace["name"]] = (marker.get("color", trace.get("line", {}).get("color")), marker.get("symbol", "line"))
    return [(name, colour, symbol) for name, (colour, symbol) in found.items()]


def _scatter(run: Run, name: str, title: str, limit: str) -> dict[str, Any] | None:
    best = run.best.name if run.best else None
    points = [
        (entry, x, y) for entry in run.candidates if (x := entry.measure(name)) and (y := entry.measure("quality"))
    ]
    if not points:
        return None
    groups = (
        ("Holds the budget", "--good", "circle", [p for p in points if p[0].fits and p[0].name != best]),
        ("Outside the budget", "--muted", "circle-open", [p for p in points if not p[0].fits and p[0].name != best]),
        ("Chosen", "--accent", "star", [p for p in points if p[0].name == best]),
    )
    data = [_staircase(run, [(x.value, y.value) for _, x, y in points])]
    data += [_markers(*group, name) for group in groups if group[3]]
    for label, symbol, entry in (
        ("Original, PyTorch", "diamond", run.baseline),
        ("Original, same engine", "square", run.engine_baseline),
    ):
        x, y = entry.measure(name), entry.measure("quality")
        if x and y:
            data.append(_markers(label, "--before", symbol, [(entry, x, y)], name))
    unit = points[0][1].unit
    return {
        "id": name,
        "title": f"Quality against {title[0].lower()}{title[1:]}",
        "alt": _alt(run, title, points),
        "caption": _caption(run, limit),
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": f"{title} ({unit})"}, "type": "log", **ticks(data, unit)},
            "yaxis": {"title": {"text": _quality_title(run)}, "autorange": True if run.higher else "reversed"},
            "shapes": _limits(run, limit),
        },
    }


def _markers(
    label: str, colour: str, symbol: str, points: Sequence[tuple[Entry, Measure, Measure]], name: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": [x.value for _, x, _ in points],
        "y": [y.value for _, _, y in points],
        "error_x": spread([x for _, x, _ in points], colour),
        "error_y": spread([y for _, _, y in points], colour),
        "text": [_hover(entry, name) for entry, _, _ in points],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "symbol": symbol,
            "size": 17 if symbol == "star" else 11,
            "color": colour,
            "line": {"width": 1.6, "color": colour},
        },
    }


def spread(measures: Sequence[Measure], colour: str) -> dict[str, Any]:
    """Whiskers to each measure's interval."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [measure.high - measure.value for measure in measures],
        "arrayminus": [measure.value - measure.low for measure in measures],
        "visible": len(measures) < MANY,
        "color": colour,
        "thickness": 1,
        "width": 3,
    }


def _hover(entry: Entry, name: str) -> str:
    lines = [f"<b>{plain(entry.name)}</b>"]
    for key in ("quality", name):
        measure = entry.measure(key)
        between = words.interval(measure)
        lines.append(f"{words.NAMES[key]}: {words.measured(measure)}" + (f" ({between})" if between else ""))
    lines += [plain(text) for text in entry.violations]
    return "<br>".join(lines)


def plain(text: str) -> str:
    """Text that Plotly, which reads some tags, shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _staircase(run: Run, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The line through those that no other beats in these two measures at once."""
    sign = 1 if run.higher else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Best trade-offs",
        "x": [x for x, _ in front],
        "y": [y for _, y in front],
        "line": {"shape": "hv", "color": "--accent-soft", "width": 2},
        "hoverinfo": "skip",
    }


def _limits(run: Run, limit: str) -> list[dict[str, Any]]:
    """Dashed lines where the budget ends."""
    budget = run.raw["budget"]
    line = {"color": "--bad", "width": 1.4, "dash": "dash"}
    shapes: list[dict[str, Any]] = []
    original = run.baseline.measure("quality")
    if budget.get("max_drop") is not None and original:
        floor = original.value - float(budget["max_drop"]) * (1 if run.higher else -1)
        shapes.append({"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": floor, "y1": floor, "line": line})
    if budget.get(limit) is not None:
        edge = float(budget[limit])
        shapes.append({"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": edge, "x1": edge, "line": line})
    return shapes


def _caption(run: Run, limit: str) -> str:
    budget = run.raw["budget"]
    parts = []
    if budget.get("max_drop") is not None:
        parts.append(f"{words.amount(float(budget['max_drop']), 'points')} lost")
    if budget.get(limit) is not None:
        parts.append(words.amount(float(budget[limit]), "bytes" if limit == "max_bytes" else "ms"))
    dashed = f" Dashed: where the budget ends ({words.listing(parts)})." if parts else ""
    corner = "Up" if run.higher else "Up (less is better)"
    return f"{corner} and to the left is better. Whiskers are 95 % intervals.{dashed}"


def _quality_title(run: Run) -> str:
    unit = str((run.raw.get("metric") or {}).get("unit") or "")
    return run.metric[0].upper() + run.metric[1:] + (f" ({unit})" if unit else "")


def ticks(data: Sequence[dict[str, Any]], unit: str) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 of each power of ten, in the tables' words; closer ones where few would be seen."""
    values = [x for trace in data for x in trace["x"] if x > 0]
    if not values:
        return {}
    low, high = min(values) / 2, max(values) * 2
    found = _steps(low, high, (1, 2, 5))
    if sum(min(values) <= tick <= max(values) for tick in found) < 2:
        low, high = min(values) / 1.3, max(values) * 1.3
        found = _steps(low, high, (1, 1.5, 2, 3, 4, 5, 7))
    if len(found) > 7:
        found = [tick for tick in found if f"{tick:e}".startswith("1.0")]
    digits = 2 if any(f"{tick:e}".startswith("1.5") for tick in found) else 1
    texts = [words.size(tick, digits) if unit == "bytes" else words.number(tick, digits) for tick in found]
    return {"tickvals": found, "ticktext": texts, "tickangle": 0}


def _steps(low: float, high: float, parts: Sequence[float]) -> list[float]:
    found: list[float] = []
    step = 10.0**-9
    while step <= high:
        found += [step * part for part in parts if low <= step * part <= high]
        step *= 10
    return found


def _alt(run: Run, title: str, points: Sequence[tuple[Entry, Measure, Measure]]) -> str:
    costs = sorted((x for _, x, _ in points), key=lambda measure: measure.value)
    scores = sorted((y for _, _, y in points), key=lambda measure: measure.value)
    text = (
        f"Scatter plot of {len(points)} candidate{'' if len(points) == 1 else 's'}. "
        f"{title} from {words.measured(costs[0])} to {words.measured(costs[-1])}, "
        f"{run.metric} from {words.measured(scores[0])} to {words.measured(scores[-1])}."
    )
    chosen = next(((a, b) for entry, a, b in points if run.best and entry.name == run.best.name), None)
    if chosen:
        text += f" The chosen one: {words.measured(chosen[0])} at {words.measured(chosen[1])}."
    return f"{text} The table of candidates holds every figure."
