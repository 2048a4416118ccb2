"""``python -m tauten.report build/digits/result.json -o report.html``: the page of a finished run or comparison."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tauten.errors import ConfigError, TautenError
from tauten.report import write_comparison, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tauten.report", description="Make the page of a finished run.")
    parser.add_argument("result", type=Path, help="the result.json of tauten optimize, or compare.json")
    parser.add_argument("-o", "--out", type=Path, help="where to write; default: report.html or compare.html beside it")
    given = parser.parse_args(arguments)
    try:
        document = _read(given.result)
        compares = document.get("kind") == "comparison"
        out = given.out or given.result.with_name("compare.html" if compares else "report.html")
        (write_comparison if compares else write_report)(document, out)
    except TautenError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    print(out)
    return 0


def _read(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as fault:
        raise ConfigError(f"{path}: expected the result.json of a run: {fault}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a JSON object, got a {type(document).__name__}")
    return document


if __name__ == "__main__":
    raise SystemExit(main())
