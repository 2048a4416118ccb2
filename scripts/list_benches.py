"""Print the command and the first line of each comparison in bench/."""

from __future__ import annotations

import ast
from pathlib import Path

for path in sorted(Path("bench").glob("*.py")):
    if not path.name.startswith("_"):
        about = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        print(f"python -m bench.{path.stem:<16} {about.partition(chr(10))[0]}")
