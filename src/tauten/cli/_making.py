"""What the verbs that make candidates share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tauten.cli.output import console
from tauten.cli.progress import LiveProgress
from tauten.core.target import Target, find_target
from tauten.errors import ExtraMissing

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


def read_task(reference: str, out: Path | None) -> tuple[Task, str, Path]:
    """The task, the text it was read from (an edited task file is another task), and the run's folder."""
    from tauten.cli.task import load_task

    task = load_task(reference)
    path = Path(reference.rpartition(":")[0] or reference)
    text = path.read_text("utf-8") if path.suffix == ".py" and path.is_file() else reference
    return task, text, out or Path("build") / task.name


@contextmanager
def watched(folder: Path) -> Iterator[LiveProgress]:
    """A progress line while a run goes; Ctrl-C and SIGTERM end it with a word on what is kept."""
    signal.signal(signal.SIGTERM, _interrupt)
    with LiveProgress(console) as progress:
        try:
            yield progress
        except KeyboardInterrupt:
            console.print(
                f"Interrupted. {progress.finished} finished candidates are kept in {folder}: "
                "the same command goes on from there.",
                soft_wrap=True,
            )
            raise


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
