"""From ``digits.py:task`` on a command line to a ``Task``. Needs no PyTorch, unless the file does."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

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
        with _folder_on_path(path.parent):
            return _call(_run_file(path), function, path)
    with _folder_on_path(Path.cwd()):
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


@contextmanager
def _folder_on_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def _run_file(path: Path) -> ModuleType:
    try:
        # Compiled from the text, never from a cached .pyc, which a file that was just rewritten can outrun.
        with tokenize.open(path) as stream:
            code = compile(stream.read(), str(path), "exec", dont_inherit=True)
    except FileNotFoundError:
        raise TaskError(f"{path}: no such file") from None
    except (SyntaxError, ValueError) as fault:
        line = f", line {fault.lineno}" if isinstance(fault, SyntaxError) and fault.lineno else ""
        raise TaskError(f"{path}{line}: {type(fault).__name__}: {getattr(fault, 'msg', fault)}") from fault
    except OSError as fault:
        raise TaskError(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    name = f"_tauten_task_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise TaskError(f"{path}: expected a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickled objects look their module up by name.
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise _blame(fault, path, f"{path.name} does not load") from fault
    return module


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
    """A ``TaskError`` with the error and the last line of the user's own file that led to it."""
    # A file that is imported stands below the machinery of imports, which is no place to send a user to.
    frames = [
        frame
        for frame in traceback.extract_tb(fault.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen importlib")
    ]
    source = str(path) if path else frames[0].filename if frames else ""
    ours = [frame for frame in frames if frame.filename == source]
    at = f" (line {ours[-1].lineno}: {ours[-1].line})" if ours else ""
    hint = ""
    if isinstance(fault, ModuleNotFoundError) and fault.name == "torch":
        hint = '; a model needs PyTorch: pip install "tauten[optimize]"'
    return TaskError(f"{what}{at}: {type(fault).__name__}: {fault}{hint}")
