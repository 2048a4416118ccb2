"""From ``digits.py:task`` on a command line to a ``Task``. Needs no PyTorch, unless the file does."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tauten.core.user_file import blame, folder_on_path, run_file
from tauten.errors import TaskError

if TYPE_CHECKING:
    from tauten.make.model.task import Task

DEFAULT_FUNCTION = "task"


def load_task(reference: str) -> Task:
    """The task that ``FILE.py:function`` or ``package.module:function`` returns; the function defaults to ``task``.

    A file is run as ``python FILE.py`` would run it, with its folder first on the path; afterwards the folder stays
    last there, so that imports inside functions work too and hide nothing. The file itself becomes a module under a
    private name, which no ``import`` of another module can meet.

    Raises ``TaskError`` where there is no such file, module or function, where the file or the function fails (it says
    in which line), or where something other than a ``Task`` comes back.
    """
    target, function = _split(reference)
    if _is_file(target):
        path = Path(os.path.abspath(target))
        with folder_on_path(path.parent):
            return _call(run_file(path, TaskError), function, path)
    with folder_on_path(Path.cwd()):
        return _call(_import(target), function, None)


def _split(reference: str) -> tuple[str, str]:
    target, colon, function = reference.rpartition(":")
    # A colon that no function name follows belongs to a path, such as C:\digits.py.
    if not colon or not (function.isidentifier() or function == ""):
        target, function = reference, ""
    if not target:
        raise TaskError(f"expected a task as FILE.py:function or package.module:function, got {reference!r}")
    return target, function or DEFAULT_FUNCTION


def _is_file(target: str) -> bool:
    return target.endswith(".py") or os.sep in target or "/" in target


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as fault:
        if fault.name is not None and (name == fault.name or name.startswith(f"{fault.name}.")):
            raise TaskError(f"no module named {name!r}; a task in a file is given as FILE.py:function") from None
        raise _blame(fault, None, f"module {name} does not import") from fault
    except (Exception, SystemExit) as fault:
        raise _blame(fault, None, f"module {name} does not import") from fault


def _call(module: ModuleType, function: str, path: Path | None) -> Task:
    from tauten.make.model.task import Task

    where = path.name if path else module.__name__
    make = getattr(module, function, None)
    if not callable(make):
        own = [name for name, value in vars(module).items() if _is_own_function(name, value, module)]
        there = f"its functions are {', '.join(own)}" if own else "it has no functions"
        came = "no function" if make is None else f"a {type(make).__name__}, not a function,"
        raise TaskError(f"{where}: {came} named {function!r}; {there}")
    try:
        task = make()
    except (Exception, SystemExit) as fault:
        raise _blame(fault, path, f"{where}: {function}() failed") from fault
    if not isinstance(task, Task):
        raise TaskError(f"{where}: expected {function}() to return a tauten.Task, got a {type(task).__name__}")
    return task


def _is_own_function(name: str, value: Callable[..., Any], module: ModuleType) -> bool:
    return not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__


def _blame(fault: BaseException, path: Path | None, what: str) -> TaskError:
    return TaskError(blame(fault, path, what, __file__))
