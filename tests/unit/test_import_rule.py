"""The one rule that is never bent: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.unit.import_rule import LOW, faults, is_plugin, read_tree, room_of

TREE = read_tree()
PLUGINS = {module for module, tree in TREE.items() if is_plugin(tree)}


def test_every_file_imports_only_what_its_room_may() -> None:
    found = [fault for module, tree in TREE.items() for fault in faults(module, tree, set(TREE), PLUGINS)]
    assert found == []


def test_every_file_of_the_two_halves_lies_in_a_room() -> None:
    halves = ("tauten.run.", "tauten.make.")
    homeless = [name for name in TREE if name.startswith(halves) and room_of(name.removeprefix("tauten.")) not in LOW]
    assert homeless == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tauten.core.measure", "from tauten.artifact.read import read_artifact"),
        ("tauten.codecs.plain", "import tauten.run.engines"),
        ("tauten.run.engines.null", "from tauten.make.model.model import Model"),
        ("tauten.run.engines.null", "def late():\n    from tauten.make.model.model import Model"),
        ("tauten.run.engines.null", "from tauten.run.engines.onnx import OnnxEngine"),
        ("tauten.run.engines.null", "import torch"),
        ("tauten.run.engines.null", "from tauten.run import measure"),
        ("tauten.run.measure.latency", "import onnxruntime"),
        ("tauten.run.measure.latency", "import tauten"),
        ("tauten.run.serve.worker", "def late():\n    import torch.nn"),
        ("tauten.make.model.task", "from torch import nn"),
        ("tauten.make.passes.prune.structured", "from tauten.make.passes.prune.magnitude import Magnitude"),
        ("tauten.make.passes.prune.structured", "from tauten.make.passes.quantize import dynamic"),
        ("tauten.make.passes.prune.structured", "from tauten.make.search.recipe import Recipe"),
        ("tauten.make.graph.trace", "from tauten.make.model.model import Model"),
        ("tauten.report.page", "from tauten.run.measure import latency"),
        ("tauten.report.page", "from tauten.make.search.recipe import Recipe"),
        ("tauten.cli.optimize", "from tauten.make.search.recipe import Recipe"),
        ("tauten.cli.optimize", "if True:\n    import torch"),
        ("tauten", "from tauten.make.model.task import Task"),
        ("tauten.core.measure", "from .value import Value"),
    ],
)
def test_a_breach_is_seen(module: str, line: str) -> None:
    known = {"tauten.run.engines.onnx", "tauten.make.passes.prune.magnitude", "tauten.make.passes.quantize.dynamic"}
    assert list(faults(module, ast.parse(line), set(TREE) | known | {"tauten.run.measure"}, known)) != []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tauten.run.measure.latency", "from tauten.run.engines import load"),
        ("tauten.make.model.task", "def late():\n    import torch"),
        ("tauten.make.model.task", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import nn"),
        ("tauten.make.passes.prune.structured", "import torch\nfrom tauten.make.passes.prune._groups import groups"),
        ("tauten.make.search.search", "from tauten.make.lower import LOWERINGS"),
        ("tauten.cli.optimize", "def late():\n    from tauten.make.search.recipe import Recipe"),
        ("tauten.run.engines.eager", "import torch"),
    ],
)
def test_what_is_allowed_is_not_called_a_breach(module: str, line: str) -> None:
    assert list(faults(module, ast.parse(line), set(TREE), PLUGINS)) == []


WITHOUT_TORCH = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "plotly", "jinja2"}:
            raise ModuleNotFoundError(f"{name} is kept out", name=name)

sys.meta_path.insert(0, Refuse())
import tauten, tauten.cli.main, tauten.errors, tauten.run
names = [item.name for item in pkgutil.walk_packages(tauten.run.__path__, "tauten.run.")]
needs_torch = {f"tauten.run.engines.{name}" for name in ("_operations", "eager", "executorch", "inductor")}
for name in [*names, "tauten.make.model.task", "tauten.artifact.read", "tauten.codecs.plain"]:
    if name not in needs_torch and not name.endswith("__main__"):
        importlib.import_module(name)
for name in needs_torch & set(names):
    try:
        importlib.import_module(name)
    except (ModuleNotFoundError, tauten.errors.ExtraMissing) as fault:
        assert "torch" in str(fault)
    else:
        raise SystemExit(f"{name} imported without torch: then why is it let off?")
print(len(names))
"""


def test_the_running_half_imports_where_torch_cannot_be() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
