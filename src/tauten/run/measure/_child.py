"""A fresh process that measures: its messages are lines of JSON, its work lies in a folder of its own."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from tauten.core.tensor import Array, Arrays
from tauten.errors import MeasureError

OnMessage = Callable[[dict[str, Any], float], None]
"""Gets a message, and the seconds from starting the process to its arrival."""
PATIENCE_S: Final = 600.0
"""How long a child may be silent."""
_STDERR_TAIL: Final = 2000
_LONGEST_LINE: Final = 1 << 20


def run_child(
    module: str,
    spec: Mapping[str, Any],
    arrays: Mapping[str, Array],
    on_message: OnMessage,
    *,
    patience_s: float = PATIENCE_S,
) -> Arrays:
    """Run ``python -m module FOLDER`` to its end and return the arrays that it left.

    ``on_message`` gets each JSON object that it prints, as it comes. The child finds ``spec`` and ``arrays`` by
    ``read_spec``. It never outlives this call. Raises ``MeasureError``, with the end of its standard error, where it
    dies, prints anything else, reports an error, or is silent for longer than ``patience_s``.
    """
    with tempfile.TemporaryDirectory(prefix="tauten-measure-") as name:
        folder = Path(name)
        (folder / "spec.json").write_text(json.dumps({**spec, "inputs": list(arrays)}), "utf-8")
        _save(folder / "inputs.npz", arrays.values())
        with (folder / "stderr").open("w+b") as stderr:
            try:
                started = time.perf_counter()
                with _spawn(module, folder, stderr) as child:
                    for line in _lines(child, patience_s):
                        on_message(_parse(line), time.perf_counter() - started)
                    code = child.wait(patience_s)
            except MeasureError as fault:
                raise MeasureError(f"{fault}{_tail(stderr)}") from None
            except subprocess.TimeoutExpired:
                raise MeasureError(
                    f"the measuring process did not end within {patience_s:g} s{_tail(stderr)}"
                ) from None
            if code:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise MeasureError(f"the measuring process {how}{_tail(stderr)}")
        return _load(folder / "outputs.npz") if (folder / "outputs.npz").exists() else {}


@contextmanager
def _spawn(module: str, folder: Path, stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    # -P: a file in the working directory must not shadow a module. A session of its own: Ctrl-C reaches the parent
    # alone, which then ends the child.
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


def _lines(child: subprocess.Popen[bytes], patience_s: float) -> Iterator[bytes]:
    """Lines of standard output as they come, until it closes."""
    if child.stdout is None:
        raise MeasureError("the measuring process has no standard output")
    held = b""
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not ready.select(patience_s):
                raise MeasureError(f"the measuring process was silent for {patience_s:g} s and was stopped")
            block = os.read(child.stdout.fileno(), 1 << 16)
            if not block:
                if held:
                    yield held
                return
            *lines, held = (held + block).split(b"\n")
            yield from lines
            if len(held) > _LONGEST_LINE:
                raise MeasureError(f"the measuring process printed a line of more than {_LONGEST_LINE} bytes")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise MeasureError(f"the measuring process printed {line[:80]!r}, expected a JSON object")
    if "error" in message:
        raise MeasureError(str(message["error"]))
    return message


def _tail(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _STDERR_TAIL))
    text = stderr.read().decode("utf-8", "replace").strip()
    return f"; its last words:\n{text}" if text else ""


def _save(path: Path, arrays: Any) -> None:
    # By position, not by name: an input may be called anything, an entry of a zip file may not.
    np.savez(path, *arrays)


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


# What follows runs in the child.


def read_spec(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """What ``run_child`` was given."""
    spec: dict[str, Any] = json.loads((folder / "spec.json").read_text("utf-8"))
    stored = _load(folder / "inputs.npz")
    return spec, {name: stored[f"arr_{index}"] for index, name in enumerate(spec["inputs"])}


def write_arrays(folder: Path, arrays: Mapping[str, Array]) -> None:
    """Leave arrays for the parent; names are plain words of our own."""
    np.savez(folder / "outputs.npz", **arrays)  # type: ignore[arg-type]  # numpy types keywords as its own flags


def open_messages() -> Callable[[dict[str, Any]], None]:
    """A function that sends one JSON object to the parent.

    From now on whatever else prints to standard output (a backend's banner) goes to standard error instead.
    """
    private = os.dup(1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        try:
            os.write(private, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            # The parent is gone: nobody waits for this measurement.
            raise SystemExit(1) from None

    return send


def now_ns() -> int:
    """The clock of every measurement."""
    return time.perf_counter_ns()
