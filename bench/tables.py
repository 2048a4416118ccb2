"""Write the figures of bench/results into the docs: ``python -m bench.tables``, or ``--check`` that they are there.

A page says where a table goes, and holds it between two comments::

    <!-- table: digits -->
    <!-- end table -->

No figure in a document is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from bench._picture import picture
from bench._results import RESULTS

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "before-after.svg"
_PLACE = re.compile(r"(<!-- table: ([a-z_]+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)
_LABELS = {
    "size_bytes": "size on disk",
    "latency_p50_ms": "latency p50, batch 1",
    "throughput_per_s.1": "throughput, batch 1",
    "throughput_per_s.32": "throughput, batch 32",
    "peak_memory_mib": "peak memory",
    "startup_ms": "start-up to first answer",
}


def main() -> int:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    wanted = {page: _filled(page.read_text("utf-8")) for page in pages if page.is_file()}
    digits = RESULTS / "digits.json"
    if digits.is_file():
        wanted[PICTURE] = picture(json.loads(digits.read_text("utf-8"))["figures"])
    stale = [page for page, text in wanted.items() if not page.is_file() or page.read_text("utf-8") != text]
    if "--check" in sys.argv:
        for page in stale:
            print(f"{page.relative_to(ROOT)} does not hold the figures of bench/results: run python -m bench.tables")
        return 1 if stale else 0
    for page in stale:
        page.write_text(wanted[page], "utf-8")
        print(f"written: {page.relative_to(ROOT)}")
    return 0


def _filled(text: str) -> str:
    return _PLACE.sub(lambda match: match[1] + _table(match[2]) + match[4], text)


def _table(name: str) -> str:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return ""
    document = json.loads(path.read_text("utf-8"))
    figures = document["figures"]
    plain = _run_table if "baseline" in figures else _plain_table
    body = getattr(_benchmark(name), "table", plain)(figures)
    return f"{body}\n{_beside(document)}\n"


def _benchmark(name: str) -> ModuleType | None:
    """The benchmark that made the figures, which may have a ``table(figures) -> Markdown`` of its own."""
    return import_module(f"bench.{name}") if find_spec(f"bench.{name}") else None


def _run_table(figures: dict[str, Any]) -> str:
    lines = ["| | before: PyTorch eager fp32 | after | against PyTorch | against the same engine at fp32 |"]
    lines.append("|---|---|---|---|---|")
    for key, label in _LABELS.items():
        if key not in figures["baseline"]:
            continue
        before, after = figures["baseline_values"][key], figures["best_values"][key]
        ratios = [_ratio(figures[against][key]) for against in ("baseline", "engine_baseline")]
        lines.append(f"| {label} | {_value(before)} | {_value(after)} | {ratios[0]} | {ratios[1]} |")
    if "test_drop_points" in figures:
        before, after, lost = figures["test_baseline"], figures["test_best"], figures["test_drop_points"]
        told = f"{_signed(-lost['median'])} points{_range(lost, -1, 2)}"
        lines.append(f"| quality on the test set | {before['median']:.2f} | {after['median']:.2f} | {told} | |")
    return "\n".join(lines)


def _plain_table(figures: dict[str, Any]) -> str:
    lines = ["| | median | least to greatest |", "|---|---|---|"]
    for key, value in figures.items():
        unit = value.get("unit", "")
        lines.append(
            f"| {key} | {_number(value['median'])} {unit} | {_number(value['low'])} to {_number(value['high'])} |"
        )
    return "\n".join(lines)


def _beside(document: dict[str, Any]) -> str:
    where = document["environment"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "onnxruntime", "numpy") if name in where)
    machine = f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, {versions}"
    return f"\n`{document['command']}`, {document['created'][:10]}; {_seeds(document['seeds'])}{machine}.\n"


def _seeds(seeds: Sequence[int]) -> str:
    """Nothing where there are none: the table itself tells what each of its rows is of."""
    if not seeds:
        return ""
    if len(seeds) == 1:
        return f"seed {seeds[0]}, one run; "
    return f"seeds {', '.join(map(str, seeds))}; median, with least and greatest in brackets; "


def _ratio(figure: dict[str, Any]) -> str:
    return f"{figure['median']:.1f} times{_range(figure, 1, 1)}"


def _range(figure: dict[str, Any], sign: int, digits: int) -> str:
    if figure["repeats"] == 1:
        return ""
    low, high = sorted((sign * figure["low"], sign * figure["high"]))
    return f" ({low:.{digits}f} to {high:.{digits}f})"


def _signed(value: float) -> str:
    """With its sign, and none on what rounds to zero."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"


def _value(figure: dict[str, Any]) -> str:
    value, unit = figure["median"], figure["unit"]
    if unit == "bytes":
        return f"{value / 1000:,.0f} KB"
    return f"{_number(value)} {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    raise SystemExit(main())
