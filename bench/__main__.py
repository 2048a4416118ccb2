"""List the benchmarks: ``python -m bench``."""

from __future__ import annotations

import ast
from pathlib import Path


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        described = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        print(f"python -m bench.{path.stem:<18} {described.splitlines()[0]}")


if __name__ == "__main__":
    main()
