"""The before/after picture, drawn from figures alone."""

from __future__ import annotations

from html import escape
from typing import Any

_ROWS = (
    ("size_bytes", "Size on disk", "smaller"),
    ("latency_p50_ms", "Latency, batch 1", "faster"),
    ("throughput_per_s.32", "Rows a second, batch 32", "more"),
)
_STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.label { font-weight: 600 } .value { font-variant-numeric: tabular-nums } .note { fill: #57606a; font-size: 12px }
.before { fill: #b6bec8 } .after { fill: #0a7d5a } .gain { fill: #0a7d5a; font-weight: 700; font-size: 16px }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .note { fill: #9da7b3 } .before { fill: #57606a }
  .after { fill: #3fc79a } .gain { fill: #3fc79a }
}
"""
_LEFT, _WIDTH, _ROW = 215, 360, 74


def picture(figures: dict[str, Any]) -> str:
    """An SVG of bars: the untouched model in PyTorch above, the artifact that is shipped below."""
    parts, height = [], 40 + _ROW * len(_ROWS) + 44
    legend = (("before", 0, "Before: PyTorch eager fp32"), ("after", 300, "After: the artifact Tauten wrote"))
    for kind, x, text in legend:
        parts.append(f'<rect class="{kind}" x="{x}" y="7" width="12" height="12" rx="2"/>')
        parts.append(f'<text class="label" x="{x + 20}" y="18">{text}</text>')
    for index, (key, label, word) in enumerate(_ROWS):
        before, after = figures["baseline_values"][key], figures["best_values"][key]
        ratio = figures["baseline"][key]["median"]
        largest = max(before["median"], after["median"])
        top = 44 + index * _ROW
        parts.append(f'<text class="label" x="0" y="{top + 29}">{label}</text>')
        for row, (kind, figure) in enumerate((("before", before), ("after", after))):
            width = max(2.0, _WIDTH * figure["median"] / largest)
            y = top + row * 24
            parts.append(f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="18" rx="3"/>')
            parts.append(
                f'<text class="value" x="{_LEFT + width + 8:.1f}" y="{y + 14}">{escape(_value(figure))}</text>'
            )
        parts.append(f'<text class="gain" x="{_LEFT + _WIDTH + 110}" y="{top + 28}">{ratio:.1f} times {word}</text>')
    lost = figures.get("test_drop_points")
    if lost:
        parts.append(
            f'<text class="note" x="0" y="{height - 12}">A residual CNN on scanned digits, median of '
            f"{lost['repeats']} seeds: {figures['test_baseline']['median']:.1f} % of the test set right before, "
            f"{figures['test_best']['median']:.1f} % after. Made by python -m bench.digits.</text>"
        )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 {height}" role="img" '
        'aria-label="Before and after: size, latency and throughput of a small CNN"><style>'
    )
    return head + _STYLE + "</style>\n" + "\n".join(parts) + "\n</svg>\n"


def _value(figure: dict[str, Any]) -> str:
    value, unit = figure["median"], figure["unit"]
    if unit == "bytes":
        return f"{value / 1000:,.0f} KB"
    unit = "" if unit == "1/s" else unit
    return f"{value:,.0f} {unit}".strip() if value >= 100 else f"{value:.3g} {unit}"
