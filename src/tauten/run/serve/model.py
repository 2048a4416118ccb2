"""One model that is served: its name, its engine, and the worker that runs it."""

from __future__ import annotations

import os
from hashlib import sha256
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from tauten.artifact.manifest import CHECKSUMS
from tauten.artifact.read import Artifact, read_artifact
from tauten.core.tensor import Arrays
from tauten.errors import ArtifactError, EngineError, NotReady, TautenError
from tauten.run.engines import load
from tauten.run.engines.engine import Engine
from tauten.run.serve.call import Call
from tauten.run.serve.instances import make_instances
from tauten.run.serve.schedulers import SCHEDULERS
from tauten.run.serve.settings import ServeSettings, check_model_name
from tauten.run.serve.statistics import Statistics
from tauten.run.serve.worker import Worker

if TYPE_CHECKING:
    from tauten.run.serve.cache.cached import Cached
    from tauten.run.serve.cache.opened import Cache

VERSION: Final = "1"
_REPEATS: Final = 2


class ServedModel:
    """An engine under a name. ``start`` makes it ready, ``stop`` ends that; both belong to one event loop.

    ``max_batch`` is the most rows that run at once; larger requests run in parts. Requests share batches where all
    inputs and outputs have the batch first.
    """

    def __init__(self, name: str, engine: Engine, *, platform: str = "tauten", max_batch: int = 32) -> None:
        self.name = check_model_name(name)
        self.version = VERSION
        self.engine = engine
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.platform = platform
        self.max_batch = max_batch
        self.statistics = Statistics()
        self.row_ns: int | None = None
        """What a call with one row takes, warm; measured by ``dry_run``."""
        self.digest = os.urandom(32)
        """Tells what the engine computes from anything else; of an artifact it is the digest of its files."""
        self.cached: Cached | None = None
        """What remembers answers, while that is asked for and the model takes requests."""
        self._worker: Worker | None = None
        self._entry: Worker | Cached | None = None

    @classmethod
    def load(
        cls, artifact: Artifact | str | os.PathLike[str], *, name: str | None = None, threads: int | None = None
    ) -> Self:
        """The model of an artifact, checked whole and run once.

        Raises ``ArtifactError`` for one that is damaged, ``EngineError`` for one that does not run.
        """
        if not isinstance(artifact, Artifact):
            artifact = read_artifact(artifact)
        manifest = artifact.manifest
        model = cls(
            manifest.name if name is None else name,
            load(artifact, threads=threads),
            platform=f"tauten_{manifest.engine}",
            max_batch=manifest.target.batch,
        )
        if (model.inputs, model.outputs) != (manifest.inputs, manifest.outputs):
            raise ArtifactError(f"{artifact.path}: the manifest's inputs and outputs are not those of the graph")
        model.digest = sha256(artifact.read(CHECKSUMS)).digest()
        model.dry_run()
        return model

    def dry_run(self) -> None:
        """Run requests of zeros, so that a model that cannot run is found before anyone asks it, and time them.

        Raises ``EngineError``, also where the answer is not what the outputs' specs declare.
        """
        zeros: Arrays = {spec.name: np.zeros(spec.concrete(), spec.dtype) for spec in self.inputs}
        try:
            outputs = self.engine(zeros)
            for spec in self.outputs:
                if spec.name not in outputs:
                    raise EngineError(f"expected output {spec.name!r}, got {sorted(outputs)}")
                if outputs[spec.name].dtype.name != spec.dtype:
                    raise EngineError(f"{spec.name}: expected dtype {spec.dtype}, got {outputs[spec.name].dtype.name}")
                spec.sizes(outputs[spec.name].shape)
            times = []
            for _ in range(_REPEATS):
                started = perf_counter_ns()
                self.engine.run(zeros)
                times.append(perf_counter_ns() - started)
        except TautenError as fault:
            raise EngineError(f"model {self.name!r} does not answer a request of zeros: {fault}") from fault
        self.row_ns = min(times)

    @property
    def ready(self) -> bool:
        return self._worker is not None

    @property
    def waiting(self) -> int:
        """Requests that wait for an instance."""
        return self._worker.waiting if self._worker is not None else 0

    def start(self, settings: ServeSettings, cache: Cache | None = None) -> None:
        """Take requests from now on, in the running event loop; with a ``cache``, answers are remembered."""
        scheduler = SCHEDULERS.get(settings.scheduler)(self.max_batch)
        self._entry = self._worker = Worker(
            make_instances(self.engine, settings, self.row_ns),
            scheduler,
            queue=settings.queue,
            answer_s=settings.answer_s,
            ran=self.statistics.executed,
        )
        if cache is not None:
            identity = (self.name.encode(), self.version.encode(), self.digest)
            self._entry = self.cached = cache.before(self._worker, identity, self.inputs, self.outputs)

    def stop(self) -> None:
        """Take no more requests."""
        if self._worker is not None:
            self._worker.close()
        if self.cached is not None:
            self.cached.close()
        self._entry = self._worker = self.cached = None

    def submit(self, call: Call) -> None:
        """Answer ``call``, now or later, as ``Worker.submit`` does; ``NotReady`` before ``start``, after ``stop``."""
        if self._entry is None:
            call.refuse(NotReady(f"model {self.name!r} is not ready"))
        else:
            self._entry.submit(call)
