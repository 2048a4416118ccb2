"""A server whose models run in worker processes: what clients see while those die."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tauten.artifact.pack import pack
from tauten.artifact.read import read_artifact
from tauten.errors import ConfigError, EngineError, PluginError
from tauten.run.engines import load
from tauten.run.serve.balancers import BALANCERS
from tauten.run.serve.call import Call
from tauten.run.serve.instance import InstanceLost
from tauten.run.serve.instances.process import ProcessInstance
from tauten.run.serve.instances.processes import Processes
from tauten.run.serve.model import ServedModel
from tauten.run.serve.schedulers import SCHEDULERS
from tauten.run.serve.settings import ServeSettings
from tauten.run.serve.worker import Worker
from tests.unit.serve.artifacts import linear_artifact, null_artifact
from tests.unit.serve.processes import HANDLER, in_loop, rows, until
from tests.unit.serve.test_process import children


def start(folder: Path, count: int = 2, handler: str = HANDLER) -> Processes:
    path = folder / "nothing"
    if not path.exists():
        null_artifact(path)
    file = folder / "prep.py"
    file.write_text(handler, "utf-8")
    return Processes.load(read_artifact(path), threads=1, count=count, handler=file)


def ask(to: Worker | ServedModel, first: float) -> asyncio.Future[Call]:
    """One row; the future's result is the call as it was answered."""
    answered: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
    data = rows(first)
    to.submit(Call([data.tobytes()], [data.shape], 1, "g", answered.set_result))
    return answered


@contextmanager
def working(processes: Processes, balancer: str = "pull") -> Iterator[tuple[Worker, list[ProcessInstance]]]:
    """A worker of these processes, in the running loop; none of them is left after it."""
    instances = [one for one in processes.instances(30) if isinstance(one, ProcessInstance)]
    policy = BALANCERS.get(balancer)(2, Random(0))
    scheduler = SCHEDULERS.get("continuous")(4)
    worker = Worker(instances, scheduler, queue=1000, answer_s=30, balancer=policy)
    try:
        yield worker, instances
    finally:
        worker.close()
    assert not children()


@pytest.mark.parametrize("balancer", ["pull", "least_outstanding"])
def test_no_request_is_lost_while_processes_are_killed(tmp_path: Path, balancer: str) -> None:
    async def main() -> None:
        with working(start(tmp_path), balancer) as (worker, instances):
            asked: list[asyncio.Future[Call]] = []
            killed = 0

            async def load_it() -> None:
                while killed < 4:
                    asked.append(ask(worker, -101))  # ten milliseconds each
                    # Fewer than the queue takes, however long a busy machine needs to start a process.
                    await asyncio.sleep(0.002 if worker.waiting < 500 else 0.1)

            loading = asyncio.ensure_future(load_it())
            for _ in range(4):
                await until(lambda: any(one.healthy and one.outstanding for one in instances))
                victim = max(instances, key=lambda one: (one.healthy, one.outstanding))
                os.kill(victim.pid, signal.SIGKILL)
                await until(lambda one=victim: not one.healthy)
                await asyncio.sleep(0.2)
                killed += 1
            await loading
            calls = await asyncio.gather(*asked)
            faults = [call.fault for call in calls if call.fault is not None]
            # A request that met two of the kills has used up its retry and is told so; none is without an answer.
            assert all(type(fault) is InstanceLost for fault in faults)
            assert len(faults) <= 8
            assert all(float(call.result[0][0]) == -98 for call in calls if call.fault is None)
            assert sum(call.retried for call in calls) >= 1
            await until(lambda: all(one.healthy for one in instances))
            assert float((await ask(worker, 1)).result[0][0]) == 4

    in_loop(main)


def test_a_request_that_ends_every_process_takes_no_other_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        with working(start(tmp_path)) as (worker, _):
            first = [ask(worker, -2000), ask(worker, -2000)]  # 0.2 s, while the next ones gather
            await asyncio.sleep(0.05)
            together = [ask(worker, 1), ask(worker, -1), ask(worker, 2), ask(worker, 3)]
            calls = await asyncio.gather(*first, *together)
            poison = calls[3]
            assert type(poison.fault) is InstanceLost
            assert str(poison.fault) == "the worker process ended with exit code 7"
            assert [call.fault for call in calls if call is not poison] == [None] * 5

    in_loop(main)


def test_a_model_is_served_from_processes_and_answers_as_in_this_one(tmp_path: Path) -> None:
    artifact = read_artifact(linear_artifact(tmp_path / "linear"))
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)

    async def main() -> None:
        model = ServedModel.load(artifact, workers=2)
        assert (model.inputs, model.outputs) == (artifact.manifest.inputs, artifact.manifest.outputs)
        for _ in range(2):  # it can be started again
            model.start(ServeSettings(balancer="round_robin"))
            answered: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
            model.submit(Call([x.tobytes()], [x.shape], len(x), "g", answered.set_result))
            call = await answered
            assert np.array_equal(call.result[0], load(artifact)({"x": x})["y"])
            assert len(children()) == 2
            model.stop()
            assert not children()
        with pytest.raises(EngineError, match="handed to its instances"):
            model.engine.run({"x": x})

    in_loop(main)


def test_a_model_is_not_ready_while_none_of_its_processes_is(tmp_path: Path) -> None:
    async def main() -> None:
        model = ServedModel("m", start(tmp_path, count=1))
        model.start(ServeSettings())
        assert model.ready
        os.kill(int(children()[0]), signal.SIGKILL)
        await until(lambda: not model.ready)
        late = ask(model, 1)  # it waits for the next process
        await until(lambda: model.ready)
        assert float((await late).result[0][0]) == 4
        model.stop()
        assert not model.ready

    in_loop(main)


SUM = """
from tauten import TensorSpec

outputs = [TensorSpec(name="y", shape=("batch", 2))]


def after(outputs):
    return {"y": outputs["y"] + MORE}
"""


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_a_process_that_starts_again_loads_what_the_first_one_did(tmp_path: Path, kind: str) -> None:
    """Another artifact and another handler lie in the old ones' places by then."""
    path, handler = tmp_path / "linear", tmp_path / "sum.py"

    def put(scale: float, more: int) -> Path:
        artifact = linear_artifact(path, scale=scale)
        handler.write_text(f"{SUM}\nMORE = {more}\n", "utf-8")  # where it lies, as some editors do
        return artifact if kind == "folder" else pack(read_artifact(artifact), tmp_path / "linear.tauten")

    async def main() -> None:
        model = ServedModel.load(put(1, 10), handler=handler, workers=2)
        model.start(ServeSettings())
        x = rows(3)

        async def answers() -> set[float]:
            calls = [Call([x.tobytes()], [x.shape], 1, "g", lambda call: None) for _ in range(8)]
            done = [asyncio.get_running_loop().create_future() for _ in calls]
            for call, future in zip(calls, done, strict=True):
                call.answered = future.set_result
                model.submit(call)
                await asyncio.sleep(0)
            return {float(call.result[0][0][0]) for call in await asyncio.gather(*done)}

        assert await answers() == {15.0}  # 3 + 2, and the handler's 10
        put(2, 20)
        worker = model._worker
        assert worker is not None
        for pid in map(int, children()):
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not all(one.healthy for one in worker._instances))
            await until(lambda: all(one.healthy for one in worker._instances))
            assert await answers() == {15.0}
        model.stop()
        before = len(os.listdir("/proc/self/fd"))
        model.engine.close()
        assert len(os.listdir("/proc/self/fd")) < before  # the old files are let go
        new = ServedModel.load(path if kind == "folder" else tmp_path / "linear.tauten", handler=handler, workers=1)
        assert new.digest != model.digest
        new.engine.close()

    in_loop(main)
    assert not children()


def test_a_file_that_is_overwritten_where_it_lies_is_not_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        path = linear_artifact(tmp_path / "linear")
        model = ServedModel.load(path, workers=1)
        model.start(ServeSettings())
        weights = path / "weights.bin"
        kept = weights.read_bytes()
        weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        os.kill(int(children()[0]), signal.SIGKILL)
        await until(lambda: "does not serve" in caplog.text)
        assert "weights.bin: its bytes are not those that were written" in caplog.text
        assert not model.ready
        weights.write_bytes(kept)
        await until(lambda: model.ready)
        model.stop()
        model.engine.close()

    in_loop(main)


def test_processes_that_nobody_took_end_when_they_are_closed(tmp_path: Path) -> None:
    processes = start(tmp_path)
    assert len(children()) == 2
    processes.close()
    assert not children()


def test_none_is_left_where_one_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not load"):
        start(tmp_path, handler="raise RuntimeError('no')")
    assert not children()


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        model = ServedModel.load(null_artifact(tmp_path / "nothing"))
        with pytest.raises(PluginError, match="no balancer named 'best': there are least_outstanding, p2c, pull"):
            model.start(ServeSettings(balancer="best"))

    in_loop(main)
    with pytest.raises(ConfigError):
        ServeSettings(balancer="")
