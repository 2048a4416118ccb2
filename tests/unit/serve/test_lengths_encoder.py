"""A small encoder of texts in ONNX: texts of different lengths in one batch, in the server and in worker processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.artifact.read import Artifact
from tauten.core.target import Target
from tauten.core.tensor import Array, Arrays
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.run.engines import load
from tauten.run.engines._padding import Padding
from tauten.run.engines.engine import Engine
from tauten.run.serve.call import Call
from tauten.run.serve.instances.processes import Processes
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.layout import fit
from tauten.run.serve.settings import ServeSettings
from tauten.testing import tiny
from tests.unit.serve.processes import in_loop

WITHIN = 1e-5


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    task = tiny.encoder_task()
    model = to_model(task)
    target = Target(name="test", batch=8)
    lowered = LOWERINGS.get("onnx")(model, target, Context(task, model.module))
    return to_artifact(lowered, tmp_path_factory.mktemp("encoder") / "a", name="text", engine="onnx", target=target)


@pytest.fixture(scope="module")
def engine(artifact: Artifact) -> Engine:
    return load(artifact)


def text(length: int, seed: int = 0) -> Arrays:
    ids = np.random.default_rng([seed, length]).integers(0, 100, (1, length))
    return {"ids": ids, "mask": np.ones_like(ids)}


async def ask_all(model: ServedModel, texts: list[Arrays]) -> list[Call]:
    """The answers to texts that come at the same moment."""
    waiting = []
    for arrays in texts:
        future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        ordered: list[Array] = [arrays[spec.name] for spec in model.inputs]
        shapes = tuple(array.shape for array in ordered)
        rows, group = fit(model.inputs, shapes)
        model.submit(Call([array.data for array in ordered], shapes, rows, group, future.set_result))
        waiting.append(future)
    return [await future for future in waiting]


def hold(calls: list[Call], texts: list[Arrays], engine: Engine) -> None:
    """Each answer is that of its text alone."""
    name = engine.outputs[0].name
    for call, arrays in zip(calls, texts, strict=True):
        if call.fault is not None:
            raise call.fault
        assert call.result is not None
        np.testing.assert_allclose(call.result[0], engine(arrays)[name], rtol=0, atol=WITHIN)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(1, 32), min_size=2, max_size=8), seed=st.integers(0, 99))
def test_texts_of_any_lengths_are_answered_as_alone(
    artifact: Artifact, engine: Engine, lengths: Any, seed: int
) -> None:
    texts = [text(length, seed + place) for place, length in enumerate(lengths)]

    async def main() -> None:
        model = ServedModel("text", engine, max_batch=8)
        model.start(ServeSettings(instances=1, run_in="loop"))
        calls = await ask_all(model, texts)
        hold(calls, texts, engine)
        assert model.statistics.executions == len({-(-length // 8) for length in lengths})
        model.stop()

    asyncio.run(main())


def test_worker_processes_pad_as_well(artifact: Artifact, engine: Engine, tmp_path: Path) -> None:
    async def main() -> None:
        model = ServedModel.load(artifact, workers=1)
        assert isinstance(model.engine, Processes)
        assert model.engine.padding == engine.padding == Padding(mask="mask")
        try:
            model.start(ServeSettings())
            texts = [text(length) for length in (17, 24, 20, 3, 3, 30, 32)]
            for again in range(3):  # memory is used again
                calls = await ask_all(model, texts[again:])
                hold(calls, texts[again:], engine)
                assert model.statistics.executions == 3 * (again + 1)
            assert [call.padded for call in calls] == [0, 0, 0, 2, 0]
            assert model.statistics.padded == 7 + 4 + 4 + 3 * 2
        finally:
            model.stop()
            model.engine.close()

    in_loop(main)


def test_what_a_handler_makes_of_requests_is_not_padded(artifact: Artifact, tmp_path: Path) -> None:
    """Its inputs may be anything: nothing says that what it computes does without columns."""
    file = tmp_path / "prep.py"
    file.write_text("def before(inputs):\n    return inputs\n", "utf-8")
    assert ServedModel.load(artifact, handler=file).engine.padding is None
    processes = Processes.load(artifact, threads=1, handler=file)
    try:
        assert processes.padding is None
    finally:
        processes.close()
