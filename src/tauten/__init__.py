"""Tauten: a trained PyTorch model and a budget in, a smaller and faster artifact that was measured out.

The public surface. Names are loaded when they are first used: importing this imports neither PyTorch nor an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tauten.artifact.read import Artifact, read_artifact
    from tauten.client.asynchronous import AsyncClient
    from tauten.client.retries import Retries
    from tauten.client.sync import Client
    from tauten.core.measure import Measure
    from tauten.core.target import Budget, Target
    from tauten.core.tensor import TensorSpec
    from tauten.errors import (
        ArtifactError,
        BudgetNotMet,
        ConfigError,
        EngineError,
        InputError,
        LoweringError,
        MeasureError,
        NotFound,
        NotReady,
        Overloaded,
        PassError,
        PluginError,
        RecipeError,
        ServeError,
        TaskError,
        TautenError,
        TooLarge,
    )
    from tauten.make.calls import compress, device, distill, dynamic, prune, quantize, recover, save, sensitivity
    from tauten.make.model.model import Model
    from tauten.make.model.task import Task
    from tauten.make.model.weights import load_module, save_module
    from tauten.make.search.adapt import Adapted, adapt
    from tauten.make.search.compare import compare
    from tauten.make.search.comparison import Comparison
    from tauten.make.search.optimize import optimize
    from tauten.make.search.recipe import Recipe
    from tauten.make.search.result import Result
    from tauten.run.engines import load
    from tauten.run.engines.engine import Engine
    from tauten.run.measure.metrics import FunctionMetric
    from tauten.run.serve.protocol.elements import BytesSpec

_HOMES = {
    "tauten.artifact.read": ("Artifact", "read_artifact"),
    "tauten.client.asynchronous": ("AsyncClient",),
    "tauten.client.retries": ("Retries",),
    "tauten.client.sync": ("Client",),
    "tauten.core.measure": ("Measure",),
    "tauten.core.target": ("Budget", "Target"),
    "tauten.core.tensor": ("TensorSpec",),
    "tauten.errors": (
        "ArtifactError",
        "BudgetNotMet",
        "ConfigError",
        "EngineError",
        "InputError",
        "LoweringError",
        "MeasureError",
        "NotFound",
        "NotReady",
        "Overloaded",
        "PassError",
        "PluginError",
        "RecipeError",
        "ServeError",
        "TaskError",
        "TautenError",
        "TooLarge",
    ),
    "tauten.make.calls": (
        "compress",
        "device",
        "distill",
        "dynamic",
        "prune",
        "quantize",
        "recover",
        "save",
        "sensitivity",
    ),
    "tauten.make.model.model": ("Model",),
    "tauten.make.model.task": ("Task",),
    "tauten.make.model.weights": ("load_module", "save_module"),
    "tauten.make.search.adapt": ("Adapted", "adapt"),
    "tauten.make.search.compare": ("compare",),
    "tauten.make.search.comparison": ("Comparison",),
    "tauten.make.search.optimize": ("optimize",),
    "tauten.make.search.recipe": ("Recipe",),
    "tauten.make.search.result": ("Result",),
    "tauten.run.engines": ("load",),
    "tauten.run.engines.engine": ("Engine",),
    "tauten.run.measure.metrics": ("FunctionMetric",),
    "tauten.run.serve.protocol.elements": ("BytesSpec",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Adapted",
    "Artifact",
    "ArtifactError",
    "AsyncClient",
    "Budget",
    "BudgetNotMet",
    "BytesSpec",
    "Client",
    "Comparison",
    "ConfigError",
    "Engine",
    "EngineError",
    "FunctionMetric",
    "InputError",
    "LoweringError",
    "Measure",
    "MeasureError",
    "Model",
    "NotFound",
    "NotReady",
    "Overloaded",
    "PassError",
    "PluginError",
    "Recipe",
    "RecipeError",
    "Result",
    "Retries",
    "ServeError",
    "Target",
    "Task",
    "TaskError",
    "TautenError",
    "TensorSpec",
    "TooLarge",
    "adapt",
    "compare",
    "compress",
    "device",
    "distill",
    "dynamic",
    "load",
    "load_module",
    "optimize",
    "prune",
    "quantize",
    "read_artifact",
    "recover",
    "save",
    "save_module",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tauten")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'tauten' has no attribute {name!r}")
    try:
        return getattr(import_module(home), name)
    except ModuleNotFoundError as fault:
        if fault.name is not None and fault.name.startswith("tauten"):
            raise
        from tauten.errors import ExtraMissing

        raise ExtraMissing(f"tauten.{name} ({fault.name} is not installed)", "optimize") from fault


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
