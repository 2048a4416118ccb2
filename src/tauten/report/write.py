"""From a result to the page."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tauten.errors import ExtraMissing
from tauten.report import summary, tables, words
from tauten.report.figures import figures, legend
from tauten.report.run import Run

_PAGE = Path(__file__).parent / "page"


def write_report(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the page of ``result`` (the document in ``result.json``) to ``path``, whole or not at all.

    Raises ``ConfigError`` where the document is no result, ``ExtraMissing`` without the extra ``optimize``.
    """
    target = Path(path)
    text = render(result)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        fresh.write_text(text, "utf-8")
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def render(result: Mapping[str, Any]) -> str:
    """The page as one HTML text that needs nothing beside it."""
    try:
        import jinja2
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as fault:
        raise ExtraMissing(f"the report ({fault.name} is not installed)", "optimize") from None
    run = Run(result)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plots = figures(run)
    return environment.get_template("report.html").render(
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
        refused=tables.refused(run),
        environment=tables.environment(run),
        figures=plots,
        legend=legend(plots),
        style=(_PAGE / "report.css").read_text("utf-8"),
        script=(_PAGE / "report.js").read_text("utf-8"),
        # A page without plots need not carry 5 MB of plotting.
        plotly=get_plotlyjs().replace("</script", "<\\/script") if plots else "",
    )
