"""All figures of pruning in one file: ``python -m bench.pruning`` runs what has none yet, then gathers them.

The parts are ``pruned_cnn``, ``early_exit``, ``zoo`` and ``scaling``; each can be run alone. ``--gather`` runs none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from bench._results import RESULTS, write_document

PARTS = ("pruned_cnn", "early_exit", "zoo", "scaling")


def main() -> None:
    for part in PARTS:
        if "--gather" not in sys.argv and not (RESULTS / f"{part}.json").is_file():
            subprocess.run([sys.executable, "-m", f"bench.{part}"], check=True)
    documents = {part: json.loads((RESULTS / f"{part}.json").read_text("utf-8")) for part in PARTS}
    figures = {part: document["figures"] for part, document in documents.items()}
    fashion = figures["pruned_cnn"]["fashion-mnist"]
    gathered = {
        "cnn": {
            **_flat("speedup_vs_eager", fashion["speedup_vs_eager.16"]),
            **_flat("drop_points", fashion["drop_points"]),
            **_flat("ratio_bytes", fashion["ratio_bytes"]),
            **_flat("points_over_torch_pruning", fashion["points_over_torch_pruning"]),
        },
        "early_exit": _picked(figures["early_exit"], "mean_latency_ratio", "drop_points"),
        "zoo": _picked(figures["zoo"], "verified", "refused", "failed"),
        "scaling": _picked(figures["scaling"], "seconds_10m", "seconds_100m", "peak_mib_100m"),
    }
    sources = {part: {key: value for key, value in it.items() if key != "figures"} for part, it in documents.items()}
    write_document("pruning", {**gathered, "sources": sources})


def _flat(key: str, figure: Mapping[str, Any]) -> dict[str, Any]:
    """``{key: median, key_spread: {low, high, repeats}}``."""
    return {key: figure["median"], f"{key}_spread": {name: figure[name] for name in ("low", "high", "repeats")}}


def _picked(figures: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """These figures with their spreads; a count has none but itself."""
    found: dict[str, Any] = {}
    for key in keys:
        value = figures[key]
        exact = {"low": value, "high": value, "repeats": 1}
        found |= (
            _flat(key, value)
            if isinstance(value, Mapping)
            else {key: value, f"{key}_spread": figures.get(f"{key}_spread", exact)}
        )
    return found


if __name__ == "__main__":
    main()
