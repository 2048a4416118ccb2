"""A run's result as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tauten.core.measure import Measure
    from tauten.make.search.result import EngineTried, Entry, Result

_ROWS = (
    ("quality", "quality"),
    ("size_bytes", "size on disk"),
    ("latency_p50_ms", "latency p50, batch 1"),
    ("latency_p95_ms", "latency p95, batch 1"),
    ("throughput_per_s.1", "throughput, batch 1"),
    ("throughput_per_s.32", "throughput, batch 32"),
    ("load_ms", "load"),
    ("peak_memory_mib", "peak memory"),
    ("startup_ms", "start-up"),
)


def show_result(console: Console, result: Result, out: str) -> None:
    """The before/after table, or the nearest candidates where nothing holds the budget."""
    best = result.best
    if result.engines:
        console.print(_engines(result.engines))
    if best is None:
        console.print(f"[bold red]The budget is not met.[/] {escape(result.explanation)}", soft_wrap=True)
        by_name = {entry.name: entry for entry in result.candidates}
        near = [by_name[name] for name in result.nearest]
        console.print(_candidates(near or result.candidates, "Nearest candidates"))
        console.print(
            f"Every candidate is kept in {escape(out)}/candidates; the report is {escape(out)}/report.html",
            soft_wrap=True,
        )
        return
    console.print(_before_after(result, best))
    if result.test:
        test = result.test
        console.print(
            f"On the test set, looked at once: {number(test.baseline)} before, {number(test.best)} after "
            f"({signed(-test.drop_points.value)} points, "
            f"{signed(-test.drop_points.high)} to {signed(-test.drop_points.low)})"
        )
    if best.mixed:
        console.print(f"[yellow]Mixed precision:[/] {escape(best.mixed.why)}", soft_wrap=True)
    for caveat in result.caveats:
        console.print(f"[yellow]Note:[/] {escape(caveat)}", soft_wrap=True)
    console.print(f"[bold green]The budget is met.[/] {escape(result.explanation)}", soft_wrap=True)
    console.print(f"Artifact: {escape(out)}/best   Report: {escape(out)}/report.html", soft_wrap=True)


def number(measure: Measure) -> str:
    """A value as people write it: three digits, thousands apart, with its unit."""
    value = measure.value
    if measure.unit == "bytes":
        return f"{value:,.0f} B" if value < 1000 else f"{value / 1000:,.1f} KB"
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{digits} {measure.unit}".strip()


def signed(value: float) -> str:
    """Two digits with the sign, and none on what rounds to zero.

    >>> signed(-0.001), signed(0.25)
    ('0.00', '+0.25')
    """
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"


def _before_after(result: Result, best: Entry) -> Table:
    table = Table(title=f"{escape(result.task)}: {escape(best.name)}", title_justify="left")
    engine = str(result.engine_baseline.recipe.get("lowering", result.target.engine))
    # A model that came as a file has no code that PyTorch runs: the file itself is what it is held against.
    came = "PyTorch" if result.baseline.recipe.get("lowering") == "eager" else "the file"
    before = "PyTorch eager fp32" if came == "PyTorch" else "the file, in fp32"
    for heading in ("", before, f"{escape(engine)} fp32", "best", f"against {came}"):
        table.add_column(heading, justify="right" if heading else "left")
    against = result.improvements.get("baseline", {})
    for key, label in _ROWS:
        cells = [entry.measure(key) for entry in (result.baseline, result.engine_baseline, best)]
        if any(cell is None for cell in cells):
            continue
        gain = against.get(key)
        words = gain.text if gain else ""
        table.add_row(label, *(number(cell) for cell in cells if cell), words)
    return table


def _engines(rows: Iterable[EngineTried]) -> Table:
    """What was measured of engines; those that are not installed with the extra that brings them."""
    table = Table(title="Engines, with the untouched model", title_justify="left")
    for heading in ("engine", "precision", "p50", "lost", ""):
        table.add_column(heading, justify="right" if heading in ("p50", "lost") else "left", overflow="fold")
    for row in rows:
        named = " ".join((row.engine, *(f"{name}={value}" for name, value in row.options.items())))
        lost = f"{row.drop.value:.2f}" if row.drop else ""
        latency = number(row.latency) if row.latency else ""
        why = f"[green]{escape(row.reason)}[/]" if row.chosen else escape(_short(row.reason))
        table.add_row(escape(named), row.precision or "", latency, lost, why)
    return table


def _short(text: str, most: int = 200) -> str:
    """The beginning of the first line; the whole of it stands in the result and in the report."""
    line = next(iter(text.splitlines()), "")
    return line if len(line) <= most else line[: most - 1] + "…"


def _candidates(entries: Iterable[Entry], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("candidate", "quality", "size", "latency p95", "load", "memory", "misses the budget by"):
        left = heading in ("candidate", "misses the budget by")
        # A name that is cut short names nothing; figures wrap where the terminal is narrow.
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading == "candidate")
    for entry in entries:
        cells = [
            entry.measure(key) for key in ("quality", "size_bytes", "latency_p95_ms", "load_ms", "peak_memory_mib")
        ]
        table.add_row(
            escape(entry.name), *(number(cell) if cell else "" for cell in cells), "; ".join(entry.violations)
        )
    return table
