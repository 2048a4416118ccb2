"""Worker processes that were started together and each hold one model."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tauten.artifact.read import Artifact, hold
from tauten.core.tensor import Array, Arrays
from tauten.errors import ConfigError, EngineError
from tauten.run.serve.instance import Instance
from tauten.run.serve.instances import BringsInstances
from tauten.run.serve.instances._process_child import Child, ProcessSettings, Specs
from tauten.run.serve.instances.process import ProcessInstance


class Processes(BringsInstances):
    """``count`` processes that have loaded what ``settings`` say, tried it, and wait for an event loop to use them.

    The server itself loads neither the model nor the handler: neither can slow it down or end it. The descriptors in
    ``settings`` become its own.
    """

    def __init__(self, settings: ProcessSettings, count: int) -> None:
        self._settings = settings
        self._let_go = weakref.finalize(self, _close_all, settings.descriptors)
        self._count = count
        self._waiting: list[Child] = []
        specs = self._start()
        super().__init__(specs.inputs, specs.outputs)
        self._specs = specs
        self.padding = specs.padding

    @classmethod
    def load(
        cls,
        artifact: Artifact,
        *,
        threads: int,
        count: int = 1,
        handler: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Start ``count`` processes for ``artifact``, each with ``threads`` threads, and wait until all are ready.

        The files are kept open: a process that starts again later loads what the first one did, although another
        artifact or handler may lie in their place by then. Raises ``EngineError`` with what one of the processes could
        not do; none is left then. ``ArtifactError`` and ``ConfigError`` where a file has gone.
        """
        held = hold(artifact)
        try:
            text = None if handler is None else _kept(Path(handler))
        except ConfigError:
            _close_all(tuple(held.values()))
            raise
        settings = ProcessSettings(
            artifact=str(artifact.path.absolute()),
            checksums=artifact.checksums,
            threads=threads,
            handler=None if handler is None else str(Path(handler).absolute()),
            held=held,
            handler_text=text,
        )
        return cls(settings, count)

    def instances(self, answer_s: float) -> list[Instance]:
        """An instance for each process, in the running event loop. Processes that were used up are started anew."""
        if not self._waiting:
            self._start()
        children, self._waiting = self._waiting, []
        return [ProcessInstance(child, self._specs, self._settings, answer_s=answer_s) for child in children]

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Not here: batches are run by the instances."""
        raise EngineError("this model runs in processes of its own: batches are handed to its instances")

    def describe(self) -> dict[str, Any]:
        return {"engine": "processes", "count": self._count, "threads": self._settings.threads}

    def close(self) -> None:
        """End those that no event loop has taken. None can be started any more."""
        self._end()
        self._let_go()

    def _start(self) -> Specs:
        try:
            for _ in range(self._count):
                self._waiting.append(Child(self._settings))
            # All of them load at once; each one is waited for.
            specs = [child.wait_ready(self._settings.start_s) for child in self._waiting]
        except (EngineError, OSError) as fault:
            self._end()
            if isinstance(fault, EngineError):
                raise
            raise EngineError(f"no worker process could be started: {fault}") from None
        return specs[0]

    def _end(self) -> None:
        children, self._waiting = self._waiting, []
        for child in children:
            child.kill()
            child.reap()


def _kept(handler: Path) -> int:
    """A descriptor of memory with what stands in the file now: editors write a file anew, or where it lies."""
    try:
        text = handler.read_bytes()
    except OSError as fault:
        raise ConfigError(f"{handler}: cannot be read: {fault.strerror or fault}") from None
    descriptor = os.memfd_create("tauten-handler", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(text)
    return descriptor


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
