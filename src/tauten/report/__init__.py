"""A finished run, as a page that people read: one HTML file that opens anywhere, offline.

It is made of ``result.json`` alone and imports neither half, so that a run of last year can be shown again.
"""

from __future__ import annotations

from tauten.report.pictures import draw_comparison, draw_result
from tauten.report.write import render, render_comparison, write_comparison, write_report

__all__ = ["draw_comparison", "draw_result", "render", "render_comparison", "write_comparison", "write_report"]
