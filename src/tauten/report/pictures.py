"""The curves and patterns of a run as PNG files, for slides and papers: drawn by Matplotlib, always on white."""

from __future__ import annotations

import os
import secrets
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauten.core.measure import Measure
from tauten.errors import ExtraMissing
from tauten.report import patterns, words
from tauten.report.comparison import STAGES, Comparison, Point
from tauten.report.patterns import MOST, Curve, HeatMap, Panels
from tauten.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#4a4f57")
"""Okabe and Ito (2008), apart for every kind of colour vision; the yellow is darker, to be seen on white."""
SYMBOLS = ("o", "s", "D", "^", "*", "v", "P")
DASHES: Mapping[str, Any] = {"cut": (0, (1.5, 1.5)), "recovered": "-", "int8": (0, (5, 2))}
COSTS = {"size": "size_bytes", "latency": "latency_p50_ms", "latency-p95": "latency_p95_ms"}
DPI = 150
HIGH = 4.0
"""Inches of a plot, its legend aside."""
_SETTINGS: Any = {
    "font.size": 9.0,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "axes.edgecolor": "#8a94a3",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
    "legend.frameon": False,
}


def draw_comparison(document: Mapping[str, Any], folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write the pictures of a comparison (the document in ``compare.json``) to ``folder``, as ``compare-….png``.

    Earlier ones of that name go. Raises ``ConfigError`` where the document is none, ``ExtraMissing`` without the extra
    ``optimize``.
    """
    found = Comparison(document)
    made: dict[str, Figure] = {}
    with _settings():
        made["quality-ratio"] = _by_ratio(found)
        for name, key in COSTS.items():
            made[f"quality-{name}"] = _by_cost(found, key)
        for strategy in found.strategies:
            points = [point for point in found.of(strategy) if point.stages]
            cuts = [(f"{point.ratio:g}", next(iter(point.stages.values()))) for point in points]
            masks = patterns.masks([(f"{point.ratio:g}", point.raw.get("masks") or []) for point in points])
            curves = patterns.sensitivity(cuts[0][1]) if cuts else []
            made |= _patterns(strategy, patterns.kept(cuts), masks, curves)
        return _save(made, Path(folder), "compare")


def draw_result(document: Mapping[str, Any], folder: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write what the best candidate of a run (the document in ``result.json``) leaves out, as ``best-….png``.

    Nothing is written where its passes left no pattern. Errors as in ``draw_comparison``.
    """
    run = Run(document)
    masks = patterns.masks([("", run.raw.get("masks") or [])])
    kept = patterns.kept([("", run.shown)]) if run.shown else []
    curves = patterns.sensitivity(run.shown) if run.shown else []
    if not (kept or masks or curves):
        return _save({}, Path(folder), "best")
    with _settings():
        return _save(_patterns("", kept, masks, curves), Path(folder), "best")


def _settings() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as fault:
        raise ExtraMissing(f"pictures ({fault.name} is not installed)", "optimize") from None
    return matplotlib.rc_context(_SETTINGS)


def _figure(wide: float, high: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, high), dpi=DPI, layout="constrained")


def _save(figures: Mapping[str, Figure], folder: Path, prefix: str) -> tuple[Path, ...]:
    """Each whole or not at all. Figures of their own, apart from ``pyplot``, are drawn by Agg, without a screen."""
    for old in folder.glob(f"{prefix}-*.png"):
        old.unlink(missing_ok=True)
    if figures:
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{prefix}-{name}.png"
        fresh = folder / f".{path.name}.{secrets.token_hex(4)}.partial"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a name in letters that the font lacks is drawn as boxes
                figure.savefig(fresh, format="png", facecolor="white")
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
        paths.append(path)
    return tuple(paths)


def _by_ratio(found: Comparison) -> Figure:
    figure = _figure(7.2, HIGH)
    axes = figure.subplots()
    for number, strategy in enumerate(found.strategies):
        for stage in found.stages:
            pairs = [(point.ratio, quality) for point in found.of(strategy) if (quality := point.quality(stage))]
            if pairs:
                xs, ys = zip(*pairs, strict=True)
                _line(axes, number, xs, ys, "", DASHES[stage], filled=stage != "cut")
    original = found.originals[0][1].measure("quality")
    if original:
        axes.axhline(original.value, color="#57606d", linewidth=1, dashes=(8, 3), label="original")
    _keys(axes, found)
    axes.set(xlabel="Ratio", ylabel=found.quality_title, title=_title(found, "quality against ratio"))
    axes.set_xticks(sorted(float(ratio) for ratio in found.raw["ratios"]))
    _finish(figure, axes, found.higher)
    return figure


def _keys(axes: Axes, found: Comparison) -> None:
    """What colours and dashes mean, each once."""
    for number, strategy in enumerate(found.strategies):
        colour, symbol = COLOURS[number % len(COLOURS)], SYMBOLS[number % len(SYMBOLS)]
        axes.plot([], [], color=colour, marker=symbol, label=strategy)
    for stage in found.stages:
        axes.plot([], [], color="#57606d", linestyle=DASHES[stage], label=STAGES[stage])


def _by_cost(found: Comparison, key: str) -> Figure:
    figure = _figure(7.2, HIGH)
    axes = figure.subplots()
    for number, strategy in enumerate(found.strategies):
        known = [(point, *pair) for point in found.of(strategy) if (pair := _pair(point, key))]
        if known:
            _line(axes, number, [x for _, x, _ in known], [y for _, _, y in known], strategy, "-", filled=True)
        _name_points(axes, number, known)
    for marker, (label, entry) in zip(("D", "s", "o"), found.originals, strict=False):
        cost, quality = entry.measure(key), entry.measure("quality")
        if cost and quality:
            axes.plot(cost.value, quality.value, marker, color="#57606d", fillstyle="none", markersize=8, label=label)
    unit = next((cost.unit for _, entry in found.originals if (cost := entry.measure(key))), "")
    if axes.has_data():
        _log_axis(axes, unit)
    name = words.NAMES[key]
    title = _title(found, f"quality against {_low(name)}")
    axes.set(xlabel=f"{name} ({unit})", ylabel=found.quality_title, title=title)
    _finish(figure, axes, found.higher)
    return figure


def _name_points(axes: Axes, number: int, known: Sequence[tuple[Point, Measure, Measure]]) -> None:
    """Each point's ratio beside it; points in one place share a name."""
    places: dict[tuple[str, str], list[tuple[Point, Measure, Measure]]] = {}
    for point, x, y in known:
        places.setdefault((f"{x.value:.2g}", f"{y.value:.3g}"), []).append((point, x, y))
    for listed in places.values():
        _, x, y = listed[0]
        text = ", ".join(f"{point.ratio:g}" for point, _, _ in listed)
        beside = (6, 5 - 15 * (number % 2))
        colour = COLOURS[number % len(COLOURS)]
        axes.annotate(text, (x.value, y.value), textcoords="offset points", xytext=beside, fontsize=7, color=colour)


def _pair(point: Point, key: str) -> tuple[Measure, Measure] | None:
    cost = point.shipped.measure(key) if point.shipped else None
    quality = point.shipped.measure("quality") if point.shipped else None
    return (cost, quality) if cost and quality else None


def _line(
    axes: Axes, number: int, xs: Sequence[Any], ys: Sequence[Measure], label: str, dashes: Any, *, filled: bool
) -> None:
    """A line with whiskers; ``xs`` are numbers or measures."""
    colour = COLOURS[number % len(COLOURS)]
    spread = [[y.value - y.low for y in ys], [y.high - y.value for y in ys]]
    across = [[x.value - x.low for x in xs], [x.high - x.value for x in xs]] if isinstance(xs[0], Measure) else None
    axes.errorbar(
        [x.value if isinstance(x, Measure) else x for x in xs],
        [y.value for y in ys],
        yerr=spread,
        xerr=across,
        color=colour,
        linestyle=dashes,
        linewidth=1.5,
        marker=SYMBOLS[number % len(SYMBOLS)],
        markersize=6,
        markerfacecolor=colour if filled else "white",
        elinewidth=0.8,
        capsize=2,
        label=label,
    )


def _log_axis(axes: Axes, unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    parts: Any = (1.0, 2.0, 5.0) if high / low > 8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=parts))
    axes.xaxis.set_minor_formatter(NullFormatter())
    text: Callable[[float, int], str] = lambda value, _: words.size(value, 2) if unit == "bytes" else f"{value:.3g}"  # noqa: E731
    axes.xaxis.set_major_formatter(FuncFormatter(text))


def _finish(figure: Figure, axes: Axes, higher: bool) -> None:
    """The legend stands below the plot, where it covers nothing; better is up."""
    if not higher:
        axes.invert_yaxis()
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = max(1, min(len(labels), 110 // (max(map(len, labels)) + 8)))
        lines = -(-len(labels) // columns)
        figure.set_figheight(HIGH + 0.19 * lines)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _title(found: Comparison, about: str) -> str:
    return f"{found.raw['task']}: {about}"


def _low(name: str) -> str:
    return name[0].lower() + name[1:]


def _patterns(
    strategy: str, kept: Sequence[HeatMap], masks: Sequence[Panels], curves: Sequence[Curve]
) -> dict[str, Figure]:
    """Figures by name: what there is of kept channels, masks and sensitivity."""
    tail = f"-{_file_name(strategy)}" if strategy else ""
    head = f"{strategy}: " if strategy else ""
    made = {}
    if kept:
        made[f"kept{tail}"] = _kept(kept[:MOST], f"{head}kept channels")
    if masks:
        made[f"masks{tail}"] = _masks(masks[:MOST], f"{head}weights that are not zero")
    if curves:
        made[f"sensitivity{tail}"] = _sensitivity(curves[:MOST], f"{head}each group cut alone")
    return made


def _file_name(text: str) -> str:
    return "".join(char if char.isalnum() or char in "._" else "-" for char in text)


def _kept(maps: Sequence[HeatMap], title: str) -> Figure:
    rows = max(len(it.rows) for it in maps)
    columns = 1 if len(maps) == 1 else 2
    lines = -(-len(maps) // columns)
    figure = _figure(8.0, 0.9 + lines * (0.75 + 0.2 * rows))
    figure.suptitle(title)
    image: Any = None
    for axes, it in _grid(figure, lines, columns, maps):
        image = _heat(axes, it)
        axes.set_title(_wrapped(f"{it.name}\n{it.caption}"), fontsize=8, loc="left")
        axes.set_yticks(range(len(it.rows)), list(it.labels), fontsize=7)
        axes.set_xticks([])
    _scale(figure, image, "share of channels kept")
    return figure


def _masks(layers: Sequence[Panels], title: str) -> Figure:
    columns = max(len(it.maps) for it in layers)
    figure = _figure(max(4.5, 0.8 + 2.3 * columns), 0.8 + 2.25 * len(layers))
    figure.suptitle(title)
    grid = figure.subplots(len(layers), columns, squeeze=False)
    image: Any = None
    for line, it in zip(grid, layers, strict=True):
        for axes in line[len(it.maps) :]:
            axes.axis("off")
        for number, (axes, one) in enumerate(zip(line, it.maps, strict=False)):
            image = _heat(axes, one)
            about = _wrapped(f"{it.name}\n{it.caption}", 30) + "\n" if number == 0 else ""
            axes.set_title(f"{about}{one.caption}", fontsize=7.5, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel("all other dimensions", fontsize=6.5)
            axes.set_ylabel("first dimension", fontsize=6.5)
    _scale(figure, image, "share that is not zero")
    return figure


def _sensitivity(curves: Sequence[Curve], title: str) -> Figure:
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    figure = _figure(max(4.0, 0.6 + 2.1 * columns), 0.9 + 1.7 * lines)
    figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, curve in zip(grid, curves, strict=False):
        ratios, values = zip(*curve.points, strict=True)
        axes.plot(ratios, values, color=COLOURS[0], marker="o", markersize=3.5, linewidth=1.4)
        axes.set_title(_wrapped(curve.name, 30), fontsize=8, loc="left")
    for axes in grid[len(curves) :]:
        axes.axis("off")
    figure.supxlabel("share of the group that is cut", fontsize=8)
    figure.supylabel("how far the outputs move", fontsize=8)
    return figure


def _grid(figure: Figure, lines: int, columns: int, maps: Sequence[HeatMap]) -> list[tuple[Axes, HeatMap]]:
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in grid[len(maps) :]:
        axes.axis("off")
    return list(zip(grid, maps, strict=False))


def _heat(axes: Axes, it: HeatMap) -> Any:
    # One hue from light to dark: read alike by every kind of colour vision, and in grey.
    image = axes.imshow(it.levels, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    return image


def _scale(figure: Figure, image: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=figure.axes, location="bottom", shrink=0.4, aspect=30, pad=0.06)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _wrapped(text: str, width: int = 60) -> str:
    return "\n".join(textwrap.shorten(line, width, placeholder="…") for line in text.split("\n"))
