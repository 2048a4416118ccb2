"""List the benchmarks: ``python -m bench``."""

from __future__ import annotations

import ast
from pathlib import Path


def main() -> None:
    here = Path(__file__).parent
    files = {path.stem: path for path in here.glob("[a-z]*.py")}
    files |= {path.parent.name: path for path in here.glob("[a-z]*/__main__.py")}
    for name, path in sorted(files.items()):
        described = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        print(f"python -m bench.{name:<18} {described.splitlines()[0]}")


if __name__ == "__main__":
    main()
