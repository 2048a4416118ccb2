"""From a result to the page."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauten.errors import ExtraMissing
from tauten.report import comparison, curves, patterns, summary, tables, words
from tauten.report.comparison import Comparison
from tauten.report.figures import figures, legend
from tauten.report.run import Entry, Run

_PAGE = Path(__file__).parent / "page"


def write_report(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of ``result`` (the document in ``result.json``) to ``path``, whole or not at all.

    Raises ``ConfigError`` where the document is no result, ``ExtraMissing`` without the extra ``optimize``.
    """
    _write(render(result), Path(path))


def write_comparison(document: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of a comparison (the document in ``compare.json``); errors as in ``write_report``."""
    _write(render_comparison(document), Path(path))


def _write(text: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        fresh.write_text(text, "utf-8")
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def render(result: Mapping[str, Any]) -> str:
    """The page as one HTML text that needs nothing beside it."""
    run = Run(result)
    plots = figures(run)
    return _fill(
        "report.html",
        plots,
        raw=run.raw,
        run=run,
        words=words,
        verdict=summary.verdict(run),
        sentences=summary.sentences(run),
        headlines=summary.headlines(run),
        limits=summary.limits(run),
        comparisons=tables.comparisons(run),
        columns=list(tables.COLUMNS.values()),
        candidates=tables.candidates(run),
        history=tables.history(run.shown) if run.shown else [],
        layers=tables.layers(run),
        patterns_of=patterns_of(run),
        engines=tables.engines(run),
        mixed=tables.mixed(run.shown) if run.shown else None,
        refused=tables.refused(run),
        environment=tables.environment(run.raw),
        legend=legend(plots),
    )


def render_comparison(document: Mapping[str, Any]) -> str:
    """The page of a comparison as one HTML text."""
    found = Comparison(document)
    return _fill(
        "compare.html",
        curves.plots(found),
        raw=found.raw,
        sentences=comparison.sentences(found),
        legend=curves.legend(found),
        columns=comparison.columns(found),
        rows=comparison.rows(found),
        refused=comparison.refusals(found),
        pictures=patterns_of_all(found),
        environment=tables.environment(found.raw),
    )


def patterns_of(run: Run) -> dict[str, Any] | None:
    """What the shown candidate leaves out."""
    if run.shown is None:
        return None
    masks = patterns.masks([("", run.raw.get("masks") or [])])
    return patterns.drawn(patterns.kept([("", run.shown)]), masks, patterns.sensitivity(run.shown))


def patterns_of_all(found: Comparison) -> list[dict[str, Any]]:
    """What each strategy leaves out at each ratio."""
    listed = []
    for strategy in found.strategies:
        points = [point for point in found.of(strategy) if point.stages]
        cuts: list[tuple[str, Entry]] = [(f"{point.ratio:g}", next(iter(point.stages.values()))) for point in points]
        masks = patterns.masks([(f"{point.ratio:g}", point.raw.get("masks") or []) for point in points])
        curves_ = patterns.sensitivity(cuts[0][1]) if cuts else []
        drawn = patterns.drawn(patterns.kept(cuts), masks, curves_)
        if drawn:
            listed.append({"strategy": strategy, **drawn})
    return listed


def _fill(template: str, plots: list[dict[str, Any]], **values: Any) -> str:
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as fault:
        raise ExtraMissing(f"the report ({fault.name} is not installed)", "optimize") from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        **values,
        figures=plots,
        style=(_PAGE / "report.css").read_text("utf-8"),
        script=(_PAGE / "report.js").read_text("utf-8"),
        # A page without plots need not carry 5 MB of plotting.
        plotly=get_plotlyjs().replace("</script", "<\\/script") if plots else "",
    )
