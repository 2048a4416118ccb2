"""Measures as a table and as JSON, the same for every verb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from tauten.cli.tables import number
from tauten.core.measure import Measure

ROOMY = 80


def nested(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """Measures as JSON; ``throughput_per_s.8`` becomes ``8`` inside ``throughput_per_s``."""
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        key, _, part = name.partition(".")
        if part:
            found.setdefault(key, {})[part] = measure.to_json()
        else:
            found[key] = measure.to_json()
    return found


def measures_table(measures: Mapping[str, Measure], width: int) -> Table:
    """A row a measure: value, 95 % interval, which way is better, and on what it was measured.

    The last two are left out where the terminal has fewer than ``ROOMY`` columns: figures come first.
    """
    roomy = width >= ROOMY
    table = Table(title="Measures", title_justify="left")
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", justify="right")
    if roomy:
        table.add_column("better", no_wrap=True)
        table.add_column("on")
    for name, measure in measures.items():
        exact = measure.low == measure.high
        spread = "exact" if exact else f"{_short(measure, measure.low)} to {_short(measure, measure.high)}"
        row = [plain(name), plain(number(measure)), plain(spread), plain(measure.better), plain(measure.on)]
        table.add_row(*row[: len(table.columns)])
    return table


def plain(text: object) -> Text:
    """Text from a file that is not trusted: markup is not read, and what would steer a terminal is spelled out."""
    return Text("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)))


def _short(measure: Measure, value: float) -> str:
    bare = "bytes" if measure.unit == "bytes" else ""
    return number(measure.model_copy(update={"value": value, "unit": bare}))
