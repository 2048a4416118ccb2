"""A Python file of the user's, run as a module; and its errors, told by the line in it that led to them."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import tokenize
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tauten.errors import ConfigError


@contextmanager
def folder_on_path(folder: Path) -> Iterator[None]:
    """The folder stands first on the path meanwhile, and last from then on, so that imports in functions work too."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


def run_file(path: Path, error: type[ConfigError] = ConfigError, text: bytes | None = None) -> ModuleType:
    """The module that a file is, under a private name, which no ``import`` of another module can meet.

    ``text`` is what stood in it when somebody read it, where that is to be run and not what it holds by now. Raises
    ``error`` where it cannot be read, or fails; it says in which line.
    """
    try:
        # Compiled from the text, never from a cached .pyc, which a file that was just rewritten can outrun.
        if text is not None:
            code = compile(text, str(path), "exec", dont_inherit=True)
        else:
            with tokenize.open(path) as stream:
                code = compile(stream.read(), str(path), "exec", dont_inherit=True)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (SyntaxError, ValueError) as fault:
        line = f", line {fault.lineno}" if isinstance(fault, SyntaxError) and fault.lineno else ""
        raise error(f"{path}{line}: {type(fault).__name__}: {getattr(fault, 'msg', fault)}") from fault
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    name = f"_tauten_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise error(f"{path}: expected a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickled objects look their module up by name.
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as fault:
        del sys.modules[name]
        raise error(blame(fault, path, f"{path.name} does not load")) from fault
    return module


def blame(fault: BaseException, path: Path | None, what: str, caller: str = "") -> str:
    """``what``, the error, and the last line of the user's own file that led to it.

    Without a path that file is the first that ``caller``, a file of ours, ran into.
    """
    # A file that is imported stands below the machinery of imports, which is no place to send a user to.
    machinery = (__file__, caller, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(fault.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen importlib")
    ]
    source = str(path) if path else frames[0].filename if frames else ""
    own = [frame for frame in frames if frame.filename == source]
    at = f" (line {own[-1].lineno}: {own[-1].line})" if own else ""
    hint = ""
    if isinstance(fault, ModuleNotFoundError) and fault.name == "torch":
        hint = '; a model needs PyTorch: pip install "tauten[optimize]"'
    return f"{what}{at}: {type(fault).__name__}: {fault}{hint}"
