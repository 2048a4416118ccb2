"""One model that is served: its name, its engine, and the worker that runs it."""

from __future__ import annotations

import os
from typing import Final, Self

import numpy as np

from tauten.artifact.read import Artifact, read_artifact
from tauten.core.tensor import Arrays
from tauten.errors import ArtifactError, EngineError, NotReady, TautenError
from tauten.run.engines import load
from tauten.run.engines.engine import Engine
from tauten.run.serve.settings import ServeSettings, check_model_name
from tauten.run.serve.statistics import Statistics
from tauten.run.serve.worker import Outcome, Worker

VERSION: Final = "1"


class ServedModel:
    """An engine under a name. ``start`` makes it ready, ``stop`` ends that; both belong to one event loop.

    ``max_batch`` is the largest batch that the model was made for; larger ones are computed too.
    """

    def __init__(self, name: str, engine: Engine, *, platform: str = "tauten", max_batch: int = 1) -> None:
        self.name = check_model_name(name)
        self.version = VERSION
        self.engine = engine
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self.platform = platform
        self.max_batch = max_batch
        self.statistics = Statistics()
        self._worker: Worker | None = None

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
        model.dry_run()
        return model

    def dry_run(self) -> None:
        """Run one request of zeros, so that a model that cannot run is found before anyone asks it.

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
        except TautenError as fault:
            raise EngineError(f"model {self.name!r} does not answer a request of zeros: {fault}") from fault

    @property
    def ready(self) -> bool:
        return self._worker is not None

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return self._worker.waiting if self._worker is not None else 0

    def start(self, settings: ServeSettings) -> None:
        """Take requests from now on, in the running event loop."""
        self._worker = Worker(
            self.engine, instances=settings.instances, queue=settings.queue, answer_s=settings.answer_s
        )

    def stop(self) -> None:
        """Take no more requests."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    async def infer(self, inputs: Arrays) -> Outcome:
        """Outputs for ``inputs``. Raises what ``Worker.run`` raises, and ``NotReady`` before ``start``."""
        if self._worker is None:
            raise NotReady(f"model {self.name!r} is not ready")
        return await self._worker.run(inputs)
