"""Every engine that is found, against the engines' contract; and the contract against engines that break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tauten.artifact.read import Artifact
from tauten.run.engines import ENGINES, load
from tauten.run.engines.null import Null
from tauten.testing import engines


@pytest.fixture(scope="module", params=ENGINES.names())
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    made = engines.artifact_for(request.param, tmp_path_factory.mktemp("engine") / request.param)
    # An engine that compiles shares what it compiled as long as one of an artifact is open: not once a check.
    kept = load(made)
    yield made
    kept.close()


@pytest.mark.parametrize("check", engines.CHECKS, ids=lambda check: check.__name__)
def test_engine_holds_the_contract(artifact: Artifact, check: Callable[[Artifact, Path], None], tmp_path: Path) -> None:
    check(artifact, tmp_path)


class Unnamed(Null):
    def run(self, inputs):
        return {"other": next(iter(super().run(inputs).values()))}


class OneShape(Null):
    def run(self, inputs):
        return {name: array[:1] for name, array in super().run(inputs).items()}


class Reusing(Null):
    """Answers in memory that the next call overwrites."""

    def run(self, inputs):
        answers = super().run(inputs)
        kept = self.__dict__.setdefault("kept", answers)
        for array in kept.values():
            array += 1
        return kept


class Unchecked(Null):
    def __call__(self, inputs):
        return {"scores": np.zeros((2, 3), np.float32)}


class Scribbling(Null):
    def run(self, inputs):
        for array in inputs.values():
            if array.flags.writeable:
                array[...] = 0
        return super().run(inputs)


class Opaque(Null):
    def describe(self):
        return {"engine": self}


@pytest.mark.parametrize(
    ("engine", "check"),
    [
        (Unnamed, engines.answers_as_declared),
        (OneShape, engines.answers_as_declared),
        (Reusing, engines.keeps_answers_apart),
        (Unchecked, engines.refuses_inputs_that_do_not_fit),
        (Scribbling, engines.takes_any_memory),
    ],
)
def test_contract_catches(
    engine: type[Null], check: Callable[[Artifact, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engines.artifact_for("null", tmp_path / "null")
    monkeypatch.setattr(engines, "load", lambda source, **_: engine.load(made, threads=1))
    with pytest.raises(AssertionError):
        check(made, tmp_path)


def test_contract_catches_what_is_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engines.artifact_for("null", tmp_path / "null")
    monkeypatch.setattr(engines, "load", lambda source, **_: Opaque.load(made, threads=1))
    with pytest.raises(TypeError):
        engines.describes_itself(made, tmp_path)
