"""When and on what machine each part of a figures file was measured: parts may be measured anew by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bench._results import RESULTS
from tauten.core.environment import environment

Measured = dict[str, Any]
"""``created`` and ``environment``, as a figures file has them of the whole."""


def measured_now() -> Measured:
    """Of what has just been measured here."""
    return {"created": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment()}


def read_document(name: str) -> dict[str, Any]:
    """The figures file as it is; without figures where there is none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {"figures": {}}
    return found


def measured_as_all(document: Mapping[str, Any]) -> Measured:
    """Of a part of a figures file that says nothing of its own."""
    return {key: document[key] for key in ("created", "environment")}


def tell_measured(parts: Mapping[str, Measured]) -> list[str]:
    """A line of Markdown for each day and processor: what was measured then and there."""
    where: dict[str, list[str]] = {}
    for part, measured in parts.items():
        found = measured["environment"]
        can = found.get("instructions", "").replace(" ", ", ")
        # Nothing was written down of the processors of older figures.
        machine = f"{found['cpu']} with the instructions {can}" if can else str(found["cpu"])
        where.setdefault(f"{measured['created'][:10]}, {machine}", []).append(part)
    return [f"- {machine}: {'; '.join(names)}." for machine, names in where.items()]
