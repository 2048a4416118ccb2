"""The worker: how many run, how many wait, and what ends each."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tauten.core.tensor import Arrays
from tauten.errors import EngineError, InputError, NotReady, Overloaded
from tauten.run.serve.worker import Outcome, Worker
from tests.unit.serve.tiny import WAIT_S, Broken, Double, Gated

X: Arrays = {"x": np.ones((1, 3), np.float32)}


async def entered(engine: Gated, calls: int) -> None:
    """Wait until ``calls`` requests have come to the engine."""
    async with asyncio.timeout(WAIT_S):
        while engine.calls < calls:
            await asyncio.sleep(0.005)


async def both(worker: Worker) -> list[object]:
    """What two requests at once are answered."""
    return await asyncio.gather(worker.run(X), worker.run(X), return_exceptions=True)


def test_an_outcome_says_how_long_it_waited_and_ran() -> None:
    async def main() -> None:
        worker = Worker(Double(), instances=1, queue=0, answer_s=WAIT_S)
        outcome = await worker.run(X)
        assert outcome.outputs["total"].tolist() == [3.0]
        assert outcome.queue_ns > 0
        assert outcome.infer_ns > 0
        worker.close()

    asyncio.run(main())


def test_as_many_run_as_there_are_instances_and_the_rest_waits() -> None:
    async def main() -> None:
        engine = Gated()
        worker = Worker(engine, instances=2, queue=1, answer_s=WAIT_S)
        calls = [asyncio.create_task(worker.run(X)) for _ in range(3)]
        await entered(engine, 2)
        assert worker.waiting == 1
        with pytest.raises(Overloaded, match="queue is full: 3 requests"):
            await worker.run(X)
        assert engine.calls == 2
        engine.gate.set()
        await asyncio.gather(*calls)
        assert engine.calls == 3
        assert worker.waiting == 0
        await worker.run(X)
        worker.close()

    asyncio.run(main())


def test_a_cancelled_request_that_waits_is_never_computed_but_keeps_its_place_until_a_thread_saw_it() -> None:
    async def main() -> None:
        engine = Gated()
        worker = Worker(engine, instances=1, queue=1, answer_s=WAIT_S)
        first = asyncio.create_task(worker.run(X))
        await entered(engine, 1)
        second = asyncio.create_task(worker.run(X))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        with pytest.raises(Overloaded):
            await worker.run(X)
        engine.gate.set()
        await first
        answers: list[object] = []
        async with asyncio.timeout(WAIT_S):
            while not all(isinstance(answer, Outcome) for answer in answers[-2:]) or not answers:
                answers += await both(worker)
        assert engine.calls == 1 + sum(isinstance(answer, Outcome) for answer in answers)
        worker.close()

    asyncio.run(main())


def test_a_request_that_runs_too_long_is_not_ready_and_one_that_waits_too_long_overloaded() -> None:
    async def main() -> None:
        engine = Gated()
        worker = Worker(engine, instances=1, queue=2, answer_s=0.2)
        first = asyncio.create_task(worker.run(X))
        await entered(engine, 1)
        with pytest.raises(Overloaded, match=r"waited 0.2 seconds in the queue"):
            await worker.run(X)
        with pytest.raises(NotReady, match=r"did not answer within 0.2 seconds"):
            await first
        engine.gate.set()
        assert (await worker.run(X)).outputs["total"].tolist() == [3.0]
        assert engine.calls == 2
        worker.close()

    asyncio.run(main())


@pytest.mark.parametrize("fault", [InputError("odd"), EngineError("broken"), ZeroDivisionError("bug")])
def test_what_the_engine_raises_comes_back(fault: Exception) -> None:
    async def main() -> None:
        worker = Worker(Broken(fault), instances=1, queue=0, answer_s=WAIT_S)
        for _ in range(2):
            with pytest.raises(type(fault), match=str(fault)):
                await worker.run(X)
        worker.close()

    asyncio.run(main())


def test_a_closed_worker_takes_no_more() -> None:
    async def main() -> None:
        worker = Worker(Double(), instances=1, queue=0, answer_s=WAIT_S)
        worker.close()
        with pytest.raises(NotReady):
            await worker.run(X)

    asyncio.run(main())
