"""The Python file of a handler: what it may hold, and what is wrong with one that cannot be used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tauten.core.tensor import TensorSpec
from tauten.core.user_file import folder_on_path, run_file
from tauten.errors import ConfigError

Function = Callable[..., Mapping[str, Any]]

_FUNCTIONS: Final = ("before", "before_each", "after", "after_each", "example")


@dataclass(frozen=True, slots=True)
class Handler:
    """What a handler's file holds. ``inputs`` and ``outputs`` are ``None`` where they are the model's own.

    ``before`` and ``after`` take a batch, or one sample at a time where ``before_each`` and ``after_each`` say so.
    ``with_inputs`` says that ``after`` also wants what the client sent.
    """

    path: Path
    inputs: tuple[TensorSpec, ...] | None = None
    outputs: tuple[TensorSpec, ...] | None = None
    before: Function | None = None
    before_each: bool = False
    after: Function | None = None
    after_each: bool = False
    with_inputs: bool = False
    example: Function | None = None


def read_handler(path: Path, text: bytes | None = None) -> Handler:
    """The handler in a file, whose folder stays on the path for what it imports; ``text`` as for ``run_file``.

    Raises ``ConfigError`` where it does not load, or holds something other than a handler.
    """
    path = path.absolute()
    with folder_on_path(path.parent):
        module = run_file(path, text=text)
    functions = {name: _function(module, name, path) for name in _FUNCTIONS}
    before, before_each = _one_of(functions, "before", path)
    after, after_each = _one_of(functions, "after", path)
    if before is None and after is None:
        raise ConfigError(f"{path}: expected a function before, before_each, after or after_each, found none of them")
    inputs, outputs = _specs(module, "inputs", path), _specs(module, "outputs", path)
    for what, specs, name, function in (("inputs", inputs, "before", before), ("outputs", outputs, "after", after)):
        if specs is not None and function is None:
            raise ConfigError(f"{path}: declares {what}, and has no function {name} that makes use of them")
    for name, specs, each in (("before", inputs, before_each), ("after", outputs, after_each)):
        if each and specs is not None and any(spec.batch_axis != 0 for spec in specs):
            raise ConfigError(f'{path}: {name}_each takes samples: expected specs whose first dimension is "batch"')
    with_inputs = after is not None and _arguments(after) == 2
    return Handler(path, inputs, outputs, before, before_each, after, after_each, with_inputs, functions["example"])


def _function(module: ModuleType, name: str, path: Path) -> Function | None:
    found = getattr(module, name, None)
    if found is None:
        return None
    if not callable(found) or inspect.iscoroutinefunction(found):
        kind = "an async function" if callable(found) else f"a {type(found).__name__}"
        raise ConfigError(f"{path}: expected {name} to be a function, got {kind}")
    expected = (0,) if name == "example" else (1, 2) if name.startswith("after") else (1,)
    if _arguments(found) not in expected:
        counts = " or ".join(map(str, expected))
        raise ConfigError(f"{path}: expected {name} to take {counts} arguments, it takes {_arguments(found)}")
    function: Function = found
    return function


def _arguments(function: Function) -> int:
    """How many arguments a function must be given."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(one.kind in kinds and one.default is one.empty for one in parameters)


def _one_of(functions: Mapping[str, Function | None], name: str, path: Path) -> tuple[Function | None, bool]:
    whole, each = functions[name], functions[f"{name}_each"]
    if whole is not None and each is not None:
        raise ConfigError(f"{path}: expected {name} or {name}_each, found both")
    return whole or each, each is not None


def _specs(module: ModuleType, name: str, path: Path) -> tuple[TensorSpec, ...] | None:
    found = getattr(module, name, None)
    if found is None:
        return None
    if not isinstance(found, Sequence) or not found or not all(isinstance(spec, TensorSpec) for spec in found):
        raise ConfigError(f"{path}: expected {name} to be a list of TensorSpec and BytesSpec, got {found!r:.80}")
    names = [spec.name for spec in found]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: expected {name} of distinct names, got {names}")
    return tuple(found)
