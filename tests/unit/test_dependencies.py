"""What the source imports is what the package asks for."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.unit.import_rule import SOURCE, imports, inside, read_tree

PROJECT = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text("utf-8"))["project"]
NAME = re.compile(r"^[A-Za-z0-9._-]+")


def declared(requirements: list[str]) -> set[str]:
    """Distribution names, spelt alike."""
    return {plain(match[0]) for text in requirements if (match := NAME.match(text))}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def foreign() -> dict[str, set[str]]:
    """Distributions that each file imports: file to names, in functions too."""
    owners = packages_distributions()
    found: dict[str, set[str]] = {}
    for module, tree in read_tree().items():
        tops = {item.module.partition(".")[0] for item in imports(tree, set())}
        tops -= {"tauten", *sys.stdlib_module_names}
        found[module] = {plain(owner) for top in tops for owner in owners.get(top, [top])}
    return found


def test_every_import_is_asked_for() -> None:
    extras = [text for name, texts in PROJECT["optional-dependencies"].items() if name != "dev" for text in texts]
    asked = declared([*PROJECT["dependencies"], *extras])
    missing = {module: names - asked for module, names in foreign().items()}
    assert {module: names for module, names in missing.items() if names} == {}


def test_the_running_half_needs_the_base_install_alone() -> None:
    base = declared(PROJECT["dependencies"])
    rooms = ("tauten.errors", "tauten.core", "tauten.codecs", "tauten.artifact", "tauten.run")
    late = {f"tauten.run.engines.{name}" for name in ("_operations", "eager", "executorch", "inductor", "openvino")}
    late.add("tauten.run.serve.cache.redis")
    missing = {
        module: names - base
        for module, names in foreign().items()
        if any(inside(module, room) for room in rooms) and module not in late
    }
    assert {module: names for module, names in missing.items() if names} == {}


def test_what_is_asked_for_is_imported() -> None:
    used = set().union(*foreign().values())
    assert declared(PROJECT["dependencies"]) <= used
