"""What benchmarks and scripts import of the product is there: they run for minutes, so that no test runs them all."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for folder in ("bench", "examples") for path in (ROOT / folder).rglob("*.py"))
OURS = ("tauten", "bench", "examples")


def missing(text: str) -> list[str]:
    """``module.name`` for each that ``text`` imports of ours and that is not there."""
    wanted = [
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
        for alias in node.names
    ]
    return [f"{module}.{name}" for module, name in wanted if not is_there(module, name)]


def is_there(module: str, name: str) -> bool:
    if is_module(f"{module}.{name}"):
        return True
    if not is_module(module):
        return False
    return name in names_of(module) if module.startswith("bench") else hasattr(import_module(module), name)


def is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # what stands before the last point is none, or is no package
        return False


def names_of(module: str) -> set[str]:
    """What a file defines at its top; it is not run, for what it compares with may not be installed."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    found: set[str] = set()
    for node in ast.parse(Path(spec.origin).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_script_imports_is_there(path: Path) -> None:
    assert not missing(path.read_text("utf-8"))


def test_what_is_not_there_is_found() -> None:
    lines = ("tauten.cli.output import console", "tauten.no import x", "bench._results import write, none_such")
    assert missing("".join(f"from {line}\n" for line in lines)) == [
        "tauten.cli.output.console",
        "tauten.no.x",
        "bench._results.none_such",
    ]
