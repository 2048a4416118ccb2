"""From ``module:function`` to the module of layers that the function builds."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from tauten.errors import PassError, RecipeError


def refer_to(build: Callable[[], nn.Module]) -> str:
    """The reference by which a function, or a class, is found again; ``RecipeError`` where it cannot be.

    A recipe is JSON, so that what it names has to stand at the top of a module under its own name.
    """
    name = getattr(build, "__qualname__", "")
    module = sys.modules.get(getattr(build, "__module__", ""))
    if not name.isidentifier() or module is None or getattr(module, name, None) is not build:
        raise RecipeError(
            f"students: expected functions without arguments at the top of a module, got {name or build!r}; "
            "give it a name there, or a reference FILE.py:function"
        )
    return f"{module.__name__}:{name}"


def is_reference(text: str) -> bool:
    """Whether it has the form ``package.module:function`` or ``FILE.py:function``."""
    target, colon, function = text.rpartition(":")
    return bool(target and colon and function.isidentifier())


def build_from(reference: str) -> nn.Module:
    """What the function builds, in evaluation mode; ``PassError`` where there is none, or it fails."""
    target, _, function = reference.rpartition(":")
    try:
        module = _load_file(Path(target)) if target.endswith(".py") else importlib.import_module(target)
        build = getattr(module, function)
        built: Any = build()
    except Exception as fault:
        raise PassError(f"students: {reference}: {type(fault).__name__}: {fault}") from fault
    if not isinstance(built, nn.Module):
        raise PassError(f"students: {reference}: expected an nn.Module, got a {type(built).__name__}")
    return built.eval()


def _load_file(path: Path) -> ModuleType:
    # A private name, which no import of another module can meet.
    name = f"_tauten_students_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
