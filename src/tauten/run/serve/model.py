"""One model that is served: its name, its engine, and the worker that runs it."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from random import Random
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final, Self

from tauten.artifact.manifest import CHECKSUMS
from tauten.artifact.read import Artifact, read_artifact
from tauten.errors import ArtifactError, NotReady
from tauten.run.engines import load
from tauten.run.engines.engine import Engine
from tauten.run.serve.balancers import BALANCERS
from tauten.run.serve.call import Call
from tauten.run.serve.dry_run import dry_run, sample
from tauten.run.serve.handler import with_handler
from tauten.run.serve.instances import make_instances
from tauten.run.serve.lengths import ByLength, Lengths
from tauten.run.serve.schedulers import SCHEDULERS
from tauten.run.serve.settings import ServeSettings, check_model_name
from tauten.run.serve.statistics import Statistics
from tauten.run.serve.worker import Worker

if TYPE_CHECKING:
    from tauten.run.serve.cache.cached import Cached, Submits
    from tauten.run.serve.cache.opened import Cache

VERSION: Final = "1"
_REPEATS: Final = 2
_DEPTH: Final = 2
"""Batches that one instance may hold, under policies that hand out more than one: while one runs, the next is there."""


class ServedModel:
    """An engine under a name. ``start`` makes it ready, ``stop`` ends that; both belong to one event loop.

    ``max_batch`` is the most rows that run at once; larger requests run in parts. Requests share batches where all
    inputs and outputs have the batch first, and where their lengths differ too where the engine says that it can do
    without padding.
    """

    def __init__(
        self, name: str, engine: Engine, *, version: str = VERSION, platform: str = "tauten", max_batch: int = 32
    ) -> None:
        self.name = check_model_name(name)
        self.version = version
        self.engine = engine
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.platform = platform
        self.max_batch = max_batch
        self.statistics = Statistics()
        self.threads = 1
        """What one instance of it computes with."""
        self.row_ns: int | None = None
        """What a call with one row takes, warm; measured by ``dry_run``."""
        self.digest = os.urandom(32)
        """Tells what the engine computes from anything else; of an artifact it is the digest of its files."""
        self.handler_digest = b""
        """The same for the file of its handler."""
        self.cached: Cached | None = None
        """What remembers answers, while that is asked for and the model takes requests."""
        self.ragged: tuple[str, ...] = ()
        """The inputs whose lengths may differ between requests that share a batch, while it takes requests."""
        self._lengths = Lengths.of(engine)
        self._worker: Worker | None = None
        self._entry: Submits | None = None

    @classmethod
    def load(
        cls,
        artifact: Artifact | str | os.PathLike[str],
        *,
        name: str | None = None,
        version: str = VERSION,
        threads: int | None = None,
        handler: str | os.PathLike[str] | None = None,
        workers: int = 0,
    ) -> Self:
        """The model of an artifact, checked whole and run once.

        ``handler`` is a Python file that runs before and after it. With ``workers``, both run in so many processes.
        Raises ``ArtifactError`` for one that is damaged, ``ConfigError`` for a file that holds no handler,
        ``EngineError`` for what does not run.
        """
        if not isinstance(artifact, Artifact):
            artifact = read_artifact(artifact)
        manifest = artifact.manifest
        if workers:
            from tauten.run.serve.instances.processes import Processes

            engine: Engine = Processes.load(
                artifact, threads=threads or manifest.target.threads, count=workers, handler=handler
            )
        else:
            engine = with_handler(load(artifact, threads=threads), handler)
        model = cls(
            manifest.name if name is None else name,
            engine,
            version=version,
            platform=f"tauten_{manifest.engine}",
            max_batch=manifest.target.batch,
        )
        if handler is None and (model.inputs, model.outputs) != (manifest.inputs, manifest.outputs):
            engine.close()
            raise ArtifactError(f"{artifact.path}: the manifest's inputs and outputs are not those of the graph")
        model.digest = digest_of(artifact)
        if handler is not None:
            model.handler_digest = sha256(Path(handler).read_bytes()).digest()
        model.threads = threads or manifest.target.threads
        if not workers:  # each of them has made its own
            model.dry_run()
        return model

    def dry_run(self) -> None:
        """Run requests of zeros, or of its handler's example, before anyone asks it, and time them.

        Raises ``EngineError``, also where the answer is not what the outputs' specs declare.
        """
        dry_run(self.engine, f"model {self.name!r}")
        self.measure()

    def measure(self) -> None:
        """Time calls with one row of zeros, or with its handler's example. Raises ``EngineError``."""
        inputs, times = sample(self.engine), []
        for _ in range(_REPEATS):
            started = perf_counter_ns()
            self.engine.run(inputs)
            times.append(perf_counter_ns() - started)
        self.row_ns = min(times)

    @property
    def ready(self) -> bool:
        """It takes requests, and has an instance that answers them."""
        return self._worker is not None and self._worker.healthy

    @property
    def instances(self) -> int:
        """How many batches run at once."""
        return self._worker.instances if self._worker is not None else 0

    @property
    def waiting(self) -> int:
        """Requests that wait for an instance."""
        return self._worker.waiting if self._worker is not None else 0

    @property
    def busy(self) -> bool:
        """Requests wait or run."""
        return self._worker is not None and (self._worker.waiting > 0 or self._worker.outstanding > 0)

    def start(self, settings: ServeSettings, cache: Cache | None = None) -> None:
        """Take requests from now on, in the running event loop; with a ``cache``, answers are remembered."""
        scheduler = SCHEDULERS.get(settings.scheduler)(self.max_batch)
        worker = self._worker = Worker(
            make_instances(self.engine, settings, self.row_ns, self.threads),
            scheduler,
            queue=settings.queue,
            answer_s=settings.answer_s,
            balancer=BALANCERS.get(settings.balancer)(_DEPTH, Random()),
            ran=self.statistics.executed,
        )
        self._entry = worker
        if self._lengths is not None and not settings.exact_batches:
            self._entry = ByLength(worker, self._lengths, self.statistics)
            self.ragged = self._lengths.names
        if cache is not None:
            identity = (self.name.encode(), self.version.encode(), self.digest, self.handler_digest)
            self._entry = self.cached = cache.before(self._entry, identity, self.inputs, self.outputs)

    def stop(self) -> None:
        """Take no more requests."""
        if self._worker is not None:
            self._worker.close()
        if self.cached is not None:
            self.cached.close()
        self._entry = self._worker = self.cached = None
        self.ragged = ()

    @property
    def full(self) -> bool:
        """Whether any request that came now would be refused, whatever it says."""
        return self.cached is None and self._worker is not None and self._worker.full

    def submit(self, call: Call) -> None:
        """Answer ``call``, now or later, as ``Worker.submit`` does; ``NotReady`` before ``start``, after ``stop``."""
        if self._entry is None:
            call.refuse(NotReady(f"model {self.name!r} is not ready"))
        else:
            self._entry.submit(call)


def digest_of(artifact: Artifact) -> bytes:
    """What tells an artifact from any other: a digest of the checksums of its files."""
    return sha256(artifact.read(CHECKSUMS)).digest()
