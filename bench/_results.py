"""Where figures are kept, and what stands beside each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tauten.core.environment import environment

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and greatest of the repeats."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "repeats": len(values)}


def write(name: str, command: str, seeds: Sequence[int], figures: dict[str, Any]) -> Path:
    """Write ``bench/results/NAME.json`` and print it."""
    document = {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seeds": list(seeds),
        "environment": environment(),
        "figures": figures,
    }
    print(json.dumps(figures, indent=1))
    return write_document(name, document)


def write_document(name: str, document: dict[str, Any]) -> Path:
    """Write ``bench/results/NAME.json`` as it is."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    print(f"written: bench/results/{name}.json")
    return path
