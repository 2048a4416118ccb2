"""The plots of a comparison, as Plotly figures in plain JSON: quality against ratio, bytes and time, by strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tauten.core.measure import Measure
from tauten.report import words
from tauten.report.comparison import STAGES, Comparison, Point
from tauten.report.figures import plain, spread, ticks
from tauten.report.run import Entry

COLOURS = tuple(f"--series-{number}" for number in range(1, 7))
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "triangle-down", "cross")
"""A strategy has a colour and a symbol: neither alone carries the meaning, and 42 pairs differ."""
DASHES = {"cut": "dot", "recovered": "solid", "int8": "dash"}
_DRAWN = {"cut": "dotted", "recovered": "solid", "int8": "dashed"}
COSTS = (
    ("size_bytes", "Size on disk"),
    ("latency_p50_ms", "Latency of one request, median"),
    ("latency_p95_ms", "Latency of one request, p95"),
)


def look(number: int) -> tuple[str, str]:
    """Colour and symbol of the strategy with that place."""
    return COLOURS[number % len(COLOURS)], SYMBOLS[number % len(SYMBOLS)]


def plots(found: Comparison) -> list[dict[str, Any]]:
    """A figure each: ``{id, title, alt, caption, data, layout}``. One that would hold no point is left out."""
    figures = [_by_ratio(found), *(_by_cost(found, name, title) for name, title in COSTS)]
    return [figure for figure in figures if figure]


def legend(found: Comparison) -> list[tuple[str, str, str]]:
    """Name, colour and symbol of what the plots show."""
    entries = [(name, *look(number)) for number, name in enumerate(found.strategies)]
    shapes = ("diamond-open", "square-open", "circle-open")
    return [*entries, *((name, "--before", shape) for (name, _), shape in zip(found.originals, shapes, strict=False))]


def _by_ratio(found: Comparison) -> dict[str, Any] | None:
    data = []
    for number, strategy in enumerate(found.strategies):
        colour, symbol = look(number)
        for stage in found.stages:
            pairs = [(point, quality) for point in found.of(strategy) if (quality := point.quality(stage)) is not None]
            if pairs:
                data.append(_line(strategy, stage, colour, symbol, pairs))
    if not data:
        return None
    shown = [STAGES[stage] for stage in found.stages]
    lines = ", ".join(f"{_DRAWN[stage]}: {STAGES[stage]}" for stage in found.stages)
    original = found.originals[0][1].measure("quality")
    shapes = []
    if original:
        style = {"color": "--before", "width": 1.4, "dash": "longdash"}
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": original.value,
                "y1": original.value,
                "line": style,
            }
        )
    return {
        "id": "ratio",
        "title": "Quality against ratio",
        "alt": f"Lines of {found.metric} by ratio, {words.listing(shown)}, for {words.listing(found.strategies)}. "
        "The table below holds every figure.",
        "caption": f"{lines[0].upper()}{lines[1:]}. Grey: the original. Whiskers are 95 % intervals.",
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "Ratio"}, "tickvals": sorted(found.raw["ratios"])},
            "yaxis": {"title": {"text": found.quality_title}, "autorange": True if found.higher else "reversed"},
            "shapes": shapes,
        },
    }


def _line(
    strategy: str, stage: str, colour: str, symbol: str, pairs: Sequence[tuple[Point, Measure]]
) -> dict[str, Any]:
    filled = stage != "cut"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"{strategy}, {STAGES[stage]}",
        "x": [point.ratio for point, _ in pairs],
        "y": [quality.value for _, quality in pairs],
        "error_y": spread([quality for _, quality in pairs], colour),
        "text": [_hover(point, stage, quality) for point, quality in pairs],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": colour, "width": 2, "dash": DASHES[stage]},
        "marker": {
            "symbol": symbol if filled else f"{symbol}-open",
            "size": 10,
            "color": colour,
            "line": {"width": 1.6, "color": colour},
        },
    }


def _by_cost(found: Comparison, name: str, title: str) -> dict[str, Any] | None:
    data: list[dict[str, Any]] = []
    unit, label = "", words.NAMES[name]
    for number, strategy in enumerate(found.strategies):
        colour, symbol = look(number)
        shipped = [(point, point.shipped) for point in found.of(strategy)]
        known = [
            (point, x, y)
            for point, entry in shipped
            if entry and (x := entry.measure(name)) and (y := entry.measure("quality"))
        ]
        if not known:
            continue
        unit = known[0][1].unit
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": strategy,
                "x": [x.value for _, x, _ in known],
                "y": [y.value for _, _, y in known],
                "error_x": spread([x for _, x, _ in known], colour),
                "error_y": spread([y for _, _, y in known], colour),
                "text": [
                    f"{_hover(point, '', y)}<br>{words.NAMES[name]}: {words.measured(x)}" for point, x, y in known
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": colour, "width": 1.2},
                "marker": {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 1.6, "color": colour}},
            }
        )
    if not data:
        return None
    for symbol, (label, entry) in zip(("diamond-open", "square-open", "circle-open"), found.originals, strict=False):
        if trace := _original(label, entry, name, symbol):
            data.append(trace)
    return {
        "id": name,
        "title": f"Quality against {title[0].lower()}{title[1:]}",
        "alt": f"{found.metric} against {title[0].lower()}{title[1:]} for {words.listing(found.strategies)}. "
        "The table below holds every figure.",
        "caption": f"{'Up' if found.higher else 'Up (less is better)'} and to the left is better. Each strategy's last "
        "stage; whiskers are 95 % intervals.",
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": f"{title} ({unit})"}, "type": "log", **ticks(data, unit)},
            "yaxis": {"title": {"text": found.quality_title}, "autorange": True if found.higher else "reversed"},
        },
    }


def _original(label: str, entry: Entry, name: str, symbol: str) -> dict[str, Any] | None:
    x, y = entry.measure(name), entry.measure("quality")
    if not x or not y:
        return None
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "x": [x.value],
        "y": [y.value],
        "text": [f"<b>{plain(label)}</b><br>{words.measured(y)}<br>{words.NAMES[name]}: {words.measured(x)}"],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": symbol, "size": 12, "color": "--before", "line": {"width": 1.8, "color": "--before"}},
    }


def _hover(point: Point, stage: str, quality: Measure) -> str:
    between = words.interval(quality)
    about = f", {STAGES[stage]}" if stage else ""
    lines = [f"<b>{plain(point.strategy)} {point.ratio:g}</b>{about}"]
    lines.append(words.measured(quality) + (f" ({between})" if between else ""))
    return "<br>".join(lines)
