"""The worker: what runs, what waits, and what ends each call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np
import pytest

from tauten.core.tensor import Array, Arrays
from tauten.errors import EngineError, InputError, NotReady, Overloaded, TautenError
from tauten.run.engines.engine import Engine
from tauten.run.serve.call import Batch, Call
from tauten.run.serve.instance import Done, Instance, InstanceLost
from tauten.run.serve.instances.inline import Inline
from tauten.run.serve.instances.thread import InThread
from tauten.run.serve.protocol.buffer import ALONE
from tauten.run.serve.schedulers.continuous import Continuous
from tauten.run.serve.worker import Worker
from tests.unit.serve.tiny import WAIT_S, Broken, Double, Gated

Make = Callable[[Engine], Instance]


class Asking:
    """Calls of a worker, as futures."""

    def __init__(
        self, *engines: Engine, make: Make = InThread, max_rows: int = 4, queue: int = 64, answer_s: float = WAIT_S
    ) -> None:
        self.batches: list[int] = []
        self.worker = Worker(
            [make(engine) for engine in engines],
            Continuous(max_rows),
            queue=queue,
            answer_s=answer_s,
            ran=lambda batch, duration_ns: self.batches.append(batch.rows),
        )

    def ask(self, value: float = 1.0, rows: int = 1, timeout_s: float = 0.0, **fields: Any) -> asyncio.Future[Call]:
        future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()

        def answered(call: Call) -> None:
            assert not future.done(), "answered twice"
            future.set_result(call)

        x = np.full((rows, 3), value, np.float32)
        self.call = Call([x.data], [x.shape], rows, (), answered)
        for name, field in fields.items():
            setattr(self.call, name, field)
        if timeout_s:
            self.call.deadline_ns = self.call.arrived_ns = 0
            self.call.deadline_ns = time.perf_counter_ns() + int(timeout_s * 1e9)
        self.worker.submit(self.call)
        return future


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await main()

    asyncio.run(bounded())


def totals(call: Call) -> list[float]:
    """The second output of ``Double``: three times each row's value."""
    assert call.fault is None, call.fault
    assert call.result is not None
    found: list[float] = call.result[1].tolist()
    return found


async def entered(engine: Gated, calls: int) -> None:
    """Wait until ``calls`` batches have come to the engine."""
    while engine.calls < calls:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("make", [Inline, InThread])
def test_calls_of_one_turn_run_together_and_each_gets_its_rows(make: Make) -> None:
    async def main() -> None:
        asking = Asking(Double(), make=make, max_rows=8)
        waiting = [asking.ask(value, rows) for value, rows in ((1.0, 1), (2.0, 2), (3.0, 1))]
        calls = [await future for future in waiting]
        assert [totals(call) for call in calls] == [[3.0], [6.0, 6.0], [9.0]]
        assert asking.batches == [4]
        assert [call.batch_rows for call in calls] == [4, 4, 4]
        assert all(call.arrived_ns <= call.started_ns <= call.ended_ns for call in calls)
        asking.worker.close()

    run(main)


def test_who_is_heard_a_turn_later_joins_those_that_were_answered_with_it() -> None:
    async def main() -> None:
        asking = Asking(Double(), make=Inline)
        for later in (3, 2, 1, 0):
            waiting = [asking.ask() for _ in range(4 - later)]
            await asyncio.sleep(0)
            waiting += [asking.ask() for _ in range(later)]
            await asyncio.gather(*waiting)
            asking.batches.append(0)
        # The first knew of no others yet; then all four run together, however they came.
        assert asking.batches == [1, 3, 0, 4, 0, 4, 0, 4, 0]
        waiting = [asking.ask() for _ in range(2)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert asking.batches[-1] == 2  # nobody else came, and they have not waited for long
        asking.worker.close()

    run(main)


def test_what_comes_while_an_instance_is_busy_is_the_next_batch() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine)
        first = asking.ask(1.0)
        await entered(engine, 1)
        rest = [asking.ask(value) for value in (2.0, 3.0)]
        await asyncio.sleep(0.02)
        rest += [asking.ask(value) for value in (4.0, 5.0, 6.0)]
        assert asking.worker.waiting == 5
        engine.gate.set()
        assert [totals(await future) for future in (first, *rest)] == [[3.0 * n] for n in range(1, 7)]
        assert asking.batches == [1, 4, 1]
        assert asking.worker.waiting == asking.worker.outstanding == 0
        asking.worker.close()

    run(main)


def test_every_instance_works_at_once() -> None:
    async def main() -> None:
        engines = [Gated(), Gated()]
        asking = Asking(*engines, max_rows=1)
        futures = [asking.ask(value) for value in (1.0, 2.0, 3.0)]
        await entered(engines[0], 1)
        await entered(engines[1], 1)
        assert asking.worker.waiting == 1
        engines[1].gate.set()
        await futures[1]
        assert totals(await futures[2]) == [9.0]
        engines[0].gate.set()
        await futures[0]
        asking.worker.close()

    run(main)


def test_a_full_queue_refuses_and_takes_again() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine, queue=1, max_rows=1)
        first = asking.ask()
        await entered(engine, 1)
        second = asking.ask()
        fault = (await asking.ask()).fault
        assert isinstance(fault, Overloaded)
        assert "queue is full: 1 requests wait" in str(fault)
        engine.gate.set()
        assert [totals(await future) for future in (first, second)] == [[3.0], [3.0]]
        assert totals(await asking.ask()) == [3.0]
        asking.worker.close()

    run(main)


def test_without_a_queue_an_idle_instance_still_takes_one() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine, queue=0)
        first = asking.ask()
        assert isinstance((await asking.ask()).fault, Overloaded)
        engine.gate.set()
        assert totals(await first) == [3.0]
        asking.worker.close()

    run(main)


def test_a_cancelled_call_leaves_before_it_is_computed() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine)
        first = asking.ask()
        await entered(engine, 1)
        left = asking.ask()
        asking.call.cancel()
        stays = asking.ask(2.0)
        engine.gate.set()
        assert totals(await stays) == [6.0]
        await first
        assert asking.batches == [1, 1]
        assert not left.done()
        asking.worker.close()

    run(main)


def test_a_call_that_runs_too_long_is_not_ready_and_one_that_waits_too_long_overloaded() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine, answer_s=0.2)
        first = asking.ask()
        await entered(engine, 1)
        waited = (await asking.ask()).fault
        assert isinstance(waited, Overloaded)
        assert "seconds in the queue" in str(waited)
        ran = (await first).fault
        assert isinstance(ran, NotReady)
        assert "did not answer within 0." in str(ran)
        engine.gate.set()
        assert totals(await asking.ask()) == [3.0]
        assert engine.calls == 2
        asking.worker.close()

    run(main)


def test_a_call_s_own_deadline_is_kept_to_within_a_sweep() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine)
        first = asking.ask()
        await entered(engine, 1)
        started = asyncio.get_running_loop().time()
        late = (await asking.ask(timeout_s=0.05)).fault
        assert isinstance(late, Overloaded)
        assert asyncio.get_running_loop().time() - started < WAIT_S / 2
        engine.gate.set()
        await first
        assert engine.calls == 1
        asking.worker.close()

    run(main)


def test_a_large_call_runs_in_parts_and_is_answered_whole() -> None:
    async def main() -> None:
        asking = Asking(Double(), max_rows=4)
        large, small = asking.ask(2.0, rows=10), asking.ask(1.0)
        call = await large
        assert totals(call) == [6.0] * 10
        assert call.result is not None
        assert call.result[0].shape == (10, 3)
        assert totals(await small) == [3.0]
        assert sum(asking.batches) == 11
        assert max(asking.batches) <= 4
        asking.worker.close()

    run(main)


def test_a_large_call_that_is_cancelled_takes_its_parts_along() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine, max_rows=1)
        asking.ask(1.0, rows=5)
        await entered(engine, 1)
        asking.call.cancel()
        engine.gate.set()
        assert totals(await asking.ask()) == [3.0]
        assert engine.calls == 2
        asking.worker.close()

    run(main)


def test_priorities_go_first_and_groups_stay_apart() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine)
        first = asking.ask()
        await entered(engine, 1)
        order: list[str] = []
        for name, fields in (
            ("late", {"priority": 2}),
            ("other", {"priority": 1, "group": ("other",)}),
            ("urgent", {"priority": 0}),
            ("alone", {"priority": 1, "group": ALONE}),
            ("alone too", {"priority": 1, "group": ALONE}),
        ):
            asking.ask(**fields).add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        engine.gate.set()
        await first
        while len(order) < 5:
            await asyncio.sleep(0.005)
        assert order == ["urgent", "other", "alone", "alone too", "late"]
        assert asking.batches == [1] * 6
        asking.worker.close()

    run(main)


@pytest.mark.parametrize("fault", [InputError("odd"), EngineError("broken"), ZeroDivisionError("bug")])
def test_what_the_engine_raises_comes_back(fault: Exception) -> None:
    async def main() -> None:
        asking = Asking(Broken(fault))
        for _ in range(2):
            assert (await asking.ask()).fault is fault
        asking.worker.close()

    run(main)


class Picky(Double):
    """Fails where a 13 is among its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        self.sizes.append(len(inputs["x"]))
        if (np.asarray(inputs["x"]) == 13).any():
            raise EngineError("13")
        return super().run(inputs)


def test_a_call_that_cannot_work_spoils_no_other() -> None:
    async def main() -> None:
        engine = Picky()
        asking = Asking(engine)
        calls = [await future for future in [asking.ask(value) for value in (1.0, 13.0, 3.0)]]
        assert totals(calls[0]) == [3.0]
        assert isinstance(calls[1].fault, EngineError)
        assert totals(calls[2]) == [9.0]
        assert engine.sizes == [3, 1, 1, 1]
        asking.worker.close()

    run(main)


class Lossy(Instance):
    """Loses its first ``losses`` batches, as a process that dies does."""

    def __init__(self, losses: int) -> None:
        self.losses = losses
        self.inner = Inline(Double())

    def run(self, batch: Batch, done: Done) -> None:
        if self.losses:
            self.losses -= 1
            done(self, batch, InstanceLost("gone"))
        else:
            self.inner.run(batch, lambda instance, batch, fault: done(self, batch, fault))

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("losses", [1, 3])
def test_a_lost_batch_is_run_once_more_and_not_twice(losses: int) -> None:
    async def main() -> None:
        asking = Asking(Double(), make=lambda engine: Lossy(losses))
        calls = [await future for future in [asking.ask(1.0), asking.ask(2.0)]]
        if losses == 1:
            assert [totals(call) for call in calls] == [[3.0], [6.0]]
        else:
            assert all(isinstance(call.fault, InstanceLost) for call in calls)
        asking.worker.close()

    run(main)


def test_an_instance_that_is_down_gets_nothing_until_it_says_it_is_back() -> None:
    async def main() -> None:
        asking = Asking(Double(), make=Inline)
        (instance,) = asking.worker._instances
        instance.healthy = False
        future = asking.ask()
        await asyncio.sleep(0.02)
        assert not future.done()
        instance.healthy = True
        assert instance.changed is not None
        instance.changed()
        assert totals(await future) == [3.0]
        asking.worker.close()

    run(main)


def test_a_closed_worker_refuses_what_waits_and_what_comes() -> None:
    async def main() -> None:
        engine = Gated()
        asking = Asking(engine)
        first = asking.ask()
        await entered(engine, 1)
        second = asking.ask()
        asking.worker.close()
        assert isinstance((await second).fault, NotReady)
        assert isinstance((await asking.ask()).fault, NotReady)
        engine.gate.set()
        assert totals(await first) == [3.0]

    run(main)


def test_an_output_without_the_batch_s_rows_is_an_error_and_not_a_wrong_answer() -> None:
    class Short(Double):
        def run(self, inputs: Mapping[str, Array]) -> Arrays:
            return {name: array[:1] for name, array in super().run(inputs).items()}

    async def main() -> None:
        asking = Asking(Short(), make=Inline)
        calls = [await future for future in [asking.ask(1.0), asking.ask(2.0)]]
        # Each by itself again, where one row is what there is to be.
        assert [totals(call) for call in calls] == [[3.0], [6.0]]
        two = await asking.ask(1.0, rows=2)
        assert isinstance(two.fault, TautenError)
        asking.worker.close()

    run(main)
