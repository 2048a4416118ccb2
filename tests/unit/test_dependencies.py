"""What the source imports is what the package asks for."""

from __future__ import annotations

import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

from tests.unit.import_rule import SOURCE, imports, inside, read_tree

PROJECT = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text("utf-8"))["project"]
NAME = re.compile(r"^[A-Za-z0-9._-]+")


def declared(requirements: list[str]) -> set[str]:
    """Distribution names, spelt alike."""
    return {plain(match[0]) for text in requirements if (match := NAME.match(text))}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def foreign() -> dict[str, list[set[str]]]:
    """What each file imports, in functions too: for each name, the distributions that it may come from.

    Several have a part in names such as ``google``.
    """
    owners = packages_distributions()
    found: dict[str, list[set[str]]] = {}
    for module, tree in read_tree().items():
        tops = {item.module.partition(".")[0] for item in imports(tree, set())}
        tops -= {"tauten", *sys.stdlib_module_names}
        found[module] = [{plain(owner) for owner in owners.get(top, [top])} for top in sorted(tops)]
    return found


def missing(allowed: set[str], rooms: tuple[str, ...] = ("tauten",)) -> dict[str, list[set[str]]]:
    """What files in ``rooms`` import and no distribution in ``allowed`` brings."""
    return {
        module: lacking
        for module, imported in foreign().items()
        if any(inside(module, room) for room in rooms)
        and (lacking := [owners for owners in imported if not owners & allowed])
    }


def test_every_import_is_asked_for() -> None:
    extras = [text for name, texts in PROJECT["optional-dependencies"].items() if name != "dev" for text in texts]
    assert missing(declared([*PROJECT["dependencies"], *extras])) == {}


def test_the_running_half_needs_the_base_install_alone() -> None:
    rooms = ("tauten.errors", "tauten.core", "tauten.codecs", "tauten.artifact", "tauten.run")
    late = {f"tauten.run.engines.{name}" for name in ("_operations", "eager", "executorch", "inductor", "openvino")}
    late |= {f"tauten.run.serve.{name}" for name in ("around.spans", "cache.redis")}
    found = missing(declared(PROJECT["dependencies"]), rooms)
    grpc = ("tauten.run.serve.grpc_", "tauten.run.serve.protocol.grpc.")
    assert {
        module: names for module, names in found.items() if module not in late and not module.startswith(grpc)
    } == {}


def test_what_is_asked_for_is_imported() -> None:
    used = set[str]().union(*(owners for imported in foreign().values() for owners in imported))
    assert declared(PROJECT["dependencies"]) <= used
