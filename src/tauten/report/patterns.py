"""What a cut looks like: masks, kept channels and sensitivity curves, from a candidate's notes and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tauten.report import words
from tauten.report.run import Entry

MOST = 24
"""Layers that are drawn; a page of hundreds shows nothing."""
CELLS = 96
"""Cells of a row of channels."""


@dataclass(frozen=True)
class HeatMap:
    """Cells as hexadecimal digits: ``f`` where all of it is there, ``0`` where nothing is. ``labels`` name the rows."""

    name: str
    caption: str
    rows: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def alt(self) -> str:
        """For those who hear the page."""
        return f"{self.name}: {self.caption}."

    @property
    def levels(self) -> list[list[float]]:
        """The cells as shares from 0 to 1."""
        return [[int(cell, 16) / 15 for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Curve:
    """How far the outputs move when one group alone is cut: ``(ratio, loss)`` pairs by ratio."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panels:
    """Heat maps of one layer side by side: a panel a ratio."""

    name: str
    caption: str
    maps: tuple[HeatMap, ...]


def masks(found: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[Panels]:
    """Panels a weight, from ``(label, masks)`` pairs: rows are outputs, columns inputs times kernel.

    A mask that is not well formed is left out.
    """
    weights: dict[str, list[HeatMap]] = {}
    captions: dict[str, tuple[str, str]] = {}
    for label, listed in found:
        for raw in listed:
            rows = tuple(str(row) for row in raw.get("rows") or ())
            if not rows or not all(_is_hex(row) and len(row) == len(rows[0]) for row in rows):
                continue
            weight, layer = str(raw.get("weight")), str(raw.get("layer") or raw.get("weight"))
            zeros = f"{100 * float(raw.get('zeros', 0)):.0f} % zeros"
            captions.setdefault(weight, (layer, " × ".join(str(size) for size in raw.get("shape") or ())))
            at = f"{label}: {zeros}" if label else zeros
            weights.setdefault(weight, []).append(HeatMap(layer, at, rows))
    return [Panels(*captions[weight], tuple(maps)) for weight, maps in weights.items()]


def kept(entries: Sequence[tuple[str, Entry]]) -> list[HeatMap]:
    """A map a group of channels, with a row an entry: which of the original channels each keeps."""
    groups: dict[str, int] = {}
    cuts: list[tuple[str, dict[str, list[int]]]] = []
    for label, entry in entries:
        cut = {}
        for note in _groups(entry):
            name = str(note.get("name") or (note.get("parameters") or ["?"])[0])
            groups.setdefault(name, int(note["before"]))
            cut[name] = [int(unit) for unit in note["kept"]]
        cuts.append((label, cut))
    maps = []
    for name, units in groups.items():
        rows = tuple(_strip(cut.get(name), units) for _, cut in cuts)
        counts = [len(cut[name]) if name in cut else units for _, cut in cuts]
        caption = f"{' / '.join(map(str, counts))} of {units} channels kept"
        maps.append(HeatMap(name.removesuffix(".weight"), caption, rows, tuple(label for label, _ in cuts)))
    return maps


def sensitivity(entry: Entry) -> list[Curve]:
    """The curves that ``prune.structured`` measured, where it chose its ratios so."""
    curves = []
    for record in entry.history:
        found = (record.get("notes") or {}).get("sensitivity")
        if not isinstance(found, Mapping):
            continue
        for name, points in found.items():
            pairs = points.items() if isinstance(points, Mapping) else points
            try:
                read = tuple(sorted((float(ratio), float(value)) for ratio, value in pairs))
            except (TypeError, ValueError):
                continue
            if read:
                curves.append(Curve(str(name).removesuffix(".weight"), read))
    return curves


@dataclass(frozen=True)
class Small:
    """A curve as a small drawing of ``WIDE`` by ``HIGH``, on axes that all of its kind share."""

    name: str
    caption: str
    dots: tuple[tuple[float, float, str], ...]

    @property
    def line(self) -> str:
        """The points of an SVG polyline."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in self.dots)


WIDE, HIGH = 220, 90
_EDGE = 6


def smalls(curves: Sequence[Curve]) -> list[Small]:
    """Curves as small drawings side by side: up is more, from the least to the greatest value of all."""
    values = [value for curve in curves for _, value in curve.points]
    ratios = [ratio for curve in curves for ratio, _ in curve.points]
    if not values:
        return []
    low, high, last = min(values), max(values), max(ratios) or 1.0
    found = []
    for curve in curves:
        dots = tuple(
            (
                _EDGE + (WIDE - 2 * _EDGE) * ratio / last,
                _EDGE + (HIGH - 2 * _EDGE) * (high - value) / ((high - low) or 1.0),
                f"{ratio:.2g}: {words.number(value, 2)}",
            )
            for ratio, value in curve.points
        )
        first, final = curve.points[0], curve.points[-1]
        ends = f"{words.number(first[1], 2)} at {first[0]:.2g}, {words.number(final[1], 2)} at {final[0]:.2g}"
        found.append(Small(curve.name, ends, dots))
    return found


def drawn(kept: Sequence[HeatMap], masks: Sequence[Panels], curves: Sequence[Curve]) -> dict[str, Any] | None:
    """What the page draws of them, with a word where that is not all; ``None`` where there is nothing."""
    if not (kept or masks or curves):
        return None
    return {
        "kept": kept[:MOST],
        "kept_more": _more(len(kept)),
        "masks": masks[:MOST],
        "masks_more": _more(len(masks)),
        "smalls": smalls(curves[:MOST]),
        "smalls_more": _more(len(curves)),
    }


def _more(count: int) -> str:
    return f"The first {MOST} of {count} are drawn." if count > MOST else ""


def _groups(entry: Entry) -> list[Mapping[str, Any]]:
    """The groups that a pass cut, the last cut of each."""
    found: dict[str, Mapping[str, Any]] = {}
    for record in entry.history:
        groups = (record.get("notes") or {}).get("groups")
        for note in groups if isinstance(groups, list) else ():
            if isinstance(note, Mapping) and isinstance(note.get("kept"), list) and int(note.get("before") or 0) > 0:
                found.setdefault(words.value(note.get("name") or note.get("parameters")), note)
    return list(found.values())


def _strip(units: Sequence[int] | None, count: int) -> str:
    """One row: the share of each cell's channels that are kept; all of them where the group was not cut."""
    cells = min(count, CELLS)
    if units is None:
        return "f" * cells
    stay = [0] * cells
    sizes = [0] * cells
    here = set(units)
    for unit in range(count):
        cell = unit * cells // count
        sizes[cell] += 1
        stay[cell] += unit in here
    return "".join(f"{round(15 * part / size):x}" for part, size in zip(stay, sizes, strict=True))


def _is_hex(text: str) -> bool:
    return bool(text) and all(cell in "0123456789abcdef" for cell in text)
