"""What the verbs that make candidates share."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tauten.cli.console import console
from tauten.cli.progress import LiveProgress
from tauten.core.target import Target, find_target
from tauten.errors import ConfigError, ExtraMissing

if TYPE_CHECKING:
    from tauten.make.model.task import Task


def need_torch(verb: str) -> None:
    """``ExtraMissing`` where the making half is not installed."""
    from importlib.util import find_spec

    for package in ("torch", "onnxscript"):
        if find_spec(package) is None:
            raise ExtraMissing(f"tauten {verb} ({package} is not installed)", "optimize")


def choose_target(name: str, threads: int | None) -> Target:
    """The target of that name, with as many threads as were asked for."""
    found = find_target(name)
    return found if threads is None else Target.from_json({**found.to_json(), "threads": threads})


def read_task(
    reference: str, out: Path | None, calibrate: Path | None = None, metric: str | None = None
) -> tuple[Task, str, Path]:
    """The task, the text it was read from (an edited task file is another task), and the run's folder.

    An ONNX file becomes a task with the samples of the file ``calibrate``. Raises ``ConfigError`` where the two are not
    given together.
    """
    from tauten.cli.task import load_task

    if reference.endswith(".onnx"):
        return _read_onnx(reference, out, calibrate, metric)
    if calibrate or metric:
        raise ConfigError("--calibrate and --metric go with a model in a .onnx file; a task file has its own")
    task = load_task(reference)
    path = Path(reference.rpartition(":")[0] or reference)
    text = path.read_text("utf-8") if path.suffix == ".py" and path.is_file() else reference
    return task, text, out or Path("build") / task.name


def _read_onnx(reference: str, out: Path | None, calibrate: Path | None, metric: str | None) -> tuple[Task, str, Path]:
    from tauten.cli._data import LABELS, read_npz
    from tauten.make.model.imported import onnx_task

    if calibrate is None:
        raise ConfigError(
            f"{reference}: expected --calibrate FILE.npz with an array of samples for each input, and labels if there "
            "are any"
        )
    arrays = read_npz(calibrate)
    task = onnx_task(reference, arrays, labels=arrays.pop(LABELS, None), metric=metric)
    origin = " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(reference), calibrate))
    return task, origin, out or Path("build") / task.name


@contextmanager
def watched(folder: Path) -> Iterator[LiveProgress]:
    """A progress line while a run goes; Ctrl-C and SIGTERM end it with a word on what is kept."""
    with LiveProgress(console) as progress, _interrupted_by_signals(progress):
        try:
            yield progress
            progress.check()
        except KeyboardInterrupt:
            console.print(
                f"Interrupted. {progress.finished} finished candidates are kept in {folder}: "
                "the same command goes on from there.",
                soft_wrap=True,
            )
            raise


@contextmanager
def _interrupted_by_signals(progress: LiveProgress) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise ``KeyboardInterrupt`` where the run is, and are remembered.

    A callback, a ``__del__`` or a user's own ``except`` may swallow what is raised in it, so that ``progress`` raises
    it again when it is next told of anything.
    """

    def interrupt(signum: int, frame: object) -> None:
        progress.interrupted = True
        raise KeyboardInterrupt

    def unraisable(fault: sys.UnraisableHookArgs) -> None:
        # Nothing is lost that the user should read of: the run ends at its next step.
        if not (progress.interrupted and issubclass(fault.exc_type, KeyboardInterrupt)):
            told_before(fault)

    told_before, sys.unraisablehook = sys.unraisablehook, unraisable
    # A command in the background of a shell ignores Ctrl-C, and goes on doing so.
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = told_before
