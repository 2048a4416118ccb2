"""Which room may import which, read from the source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "src"

LOW = {"errors": set[str](), "core": {"errors"}, "codecs": {"errors", "core"}}
LOW["artifact"] = {*LOW["codecs"], "codecs"}
LOW["report"] = {"errors", "core"}
LOW["run.engines"] = {*LOW["artifact"], "artifact"}
LOW["run.measure"] = {*LOW["run.engines"], "run.engines"}
LOW["run.serve.protocol"] = LOW["run.engines"]  # before run.serve: the first room that fits a file is its room
LOW["run.load"] = LOW["run.serve"] = {*LOW["run.measure"], "run.measure", "run.serve.protocol"}
LOW["client"] = {*LOW["run.serve"], "run.serve", "run.load"}
LOW["make.layers"] = {*LOW["run.measure"], "run.measure", "make.layers", "make.graph"}
LOW["make.graph"] = LOW["make.datasets"] = LOW["make.layers"]
LOW["make.model"] = {*LOW["make.graph"], "make.datasets"}
LOW["make.passes"] = {*LOW["make.model"], "make.model"}
LOW["make.lower"] = {*LOW["make.passes"], "make.passes"}
LOW["make.search"] = {*LOW["make.lower"], "make.lower", "report"}
LOW["make.calls"] = LOW["make.convert"] = {*LOW["make.search"], "make.search"}
"""What each room may import, itself aside. Rooms that are not here (cli, testing, …) may import any."""

BACKENDS = {
    "onnxruntime": ("run.engines.onnx", "make.lower", "make.model.imported"),
    "openvino": ("run.engines.openvino", "make.lower"),
    "nncf": ("make.lower",),
    "executorch": ("run.engines.executorch", "make.lower"),
    "torch": (
        "run.engines._operations",
        "run.engines.eager",
        "run.engines.executorch",
        "run.engines.inductor",
        "make",
        "testing",
        "cli",
        "examples",
    ),
}
LAZY = {
    "torch": ("cli", "examples", "make.model.task", "make.datasets"),
    "tauten.make": ("cli", "", "run", "artifact", "core"),
}
"""What these rooms may import inside a function only, so that importing them stays cheap ("" is tauten itself)."""


class Import(NamedTuple):
    """One imported module. ``eager`` says that importing the file imports it."""

    module: str
    line: int
    eager: bool


def imports(tree: ast.AST, modules: set[str], eager: bool = True) -> Iterator[Import]:
    """Every import of a file, those inside functions and behind ``TYPE_CHECKING`` too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name.name, node.lineno, eager) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            for name in node.names:
                whole = f"{base}.{name.name}"
                yield Import(whole if whole in modules else base, node.lineno, eager)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            )
            yield from imports(node, modules, eager and not later)


def inside(name: str, room: str) -> bool:
    """Whether a module lies in a room."""
    return name == room or (bool(room) and name.startswith(f"{room}."))


def room_of(name: str) -> str:
    """The room that a module lies in: ``run.engines`` for ``run.engines.onnx``."""
    return next((room for room in LOW if inside(name, room)), name)


def is_plugin(tree: ast.Module) -> bool:
    """Whether a file exports one name, which is what makes it a plug-in."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return len(ast.literal_eval(node.value)) == 1
    return False


def faults(module: str, tree: ast.AST, modules: set[str], plugins: set[str]) -> Iterator[str]:
    """What a file, by its dotted name, imports and must not."""
    name = module.removeprefix("tauten").removeprefix(".")
    for found in imports(tree, modules):
        where = f"{module}:{found.line} imports {found.module}"
        if found.module.startswith("."):
            yield f"{where}: relative, which hides the room"
        for backend, homes in BACKENDS.items():
            if inside(found.module, backend) and not any(inside(name, home) for home in homes):
                yield f"{where}: a backend belongs to {', '.join(homes)}"
        for what, rooms in LAZY.items():
            if found.eager and inside(found.module, what) and any(inside(name, room) for room in rooms):
                yield f"{where}: only inside a function here"
        if not inside(found.module, "tauten"):
            continue
        other = found.module.removeprefix("tauten").removeprefix(".")
        here, there = room_of(name), room_of(other)
        if here in LOW and there != here and there not in LOW[here]:
            yield f"{where}: {here} stands below {there or 'the public surface'}"
        if here == there and found.module in plugins and found.module != module:
            yield f"{where}: a sibling plug-in"


@cache
def read_tree() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((SOURCE / "tauten").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text("utf-8"))
    return found
