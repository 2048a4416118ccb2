"""What is learned of a batch's cost, and what follows from it."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.run.serve.batch_costs import BatchCosts
from tauten.run.serve.call import Batch, Call
from tauten.run.serve.schedulers.continuous import Continuous

MS = 1_000_000


def learned(cost: dict[int, float], max_rows: int = 32, noise: float = 0.0) -> BatchCosts:
    """Costs after many batches of each size; ``cost`` is in ms by rows."""
    costs, draw = BatchCosts(max_rows), Random(0)
    for _ in range(200):
        for rows, ms in cost.items():
            costs.add(rows, int(ms * MS * (1 + noise * draw.uniform(-1, 1))))
    return costs


def test_nothing_is_known_at_first_and_all_that_waits_runs() -> None:
    costs = BatchCosts(32)
    assert costs.best_rows(5) == 5
    assert costs.best_rows(99) == 32
    assert costs.wait_ns(1, 10.0) == 0


def test_the_size_that_takes_least_a_row_is_found() -> None:
    # As of a model whose larger batches no longer fit into a cache: 8 rows take 1 ms each, 32 take 2.
    costs = learned({1: 1.5, 4: 4.4, 8: 8, 16: 24, 31: 62}, noise=0.1)
    sizes = [costs.best_rows(31) for _ in range(50)]
    assert 8 <= max(sizes) < 16


@given(st.floats(0.01, 5), st.floats(0, 5))
def test_where_more_rows_are_never_worse_all_that_fit_run(slope: float, fixed: float) -> None:
    costs = learned({rows: slope * rows + fixed for rows in (1, 2, 4, 8, 16, 32)})
    assert costs.best_rows(64) == 32
    assert costs.best_rows(3) == 3


@given(st.floats(0.01, 5), st.floats(0, 5))
def test_the_line_is_found(slope: float, fixed: float) -> None:
    found, rest = learned({rows: slope * rows + fixed for rows in (1, 4, 32)}).line()
    assert found == pytest.approx(slope * MS, rel=0.01, abs=100)
    assert rest == pytest.approx(fixed * MS, rel=0.05, abs=1000 + slope * MS * 0.05)


def test_a_wait_pays_where_a_call_costs_much_and_a_row_little() -> None:
    gpu = learned({rows: 0.1 * rows + 8 for rows in (1, 2, 4, 8, 16, 32)})
    assert gpu.wait_ns(1, 0.5 * MS) > 0
    assert gpu.wait_ns(1, 5 * MS) == 0  # the next is too far
    assert gpu.wait_ns(20, 0.5 * MS) == 0  # too many would wait
    cpu = learned({rows: 4 * rows + 1 for rows in (1, 2, 4, 8)})
    assert cpu.wait_ns(1, 0.01 * MS) == 0


def interrupted(rows: int, seed: int) -> float:
    """The share of batches that leave with all that wait, of a model for which that is best, on a core that is shared.

    Mostly ``rows`` wait. A batch takes 50 us and 100 us a row. After 2 to 4 ms of it others have the core for 1 to 4.
    """
    draw, costs, whole, until_ns = Random(seed), BatchCosts(32), 0, 3 * MS
    for _ in range(2000):
        waiting = rows if draw.random() < 0.8 else draw.randint(1, rows)
        chosen = costs.best_rows(waiting)
        whole += chosen == waiting
        left_ns = duration_ns = 50_000 + 100_000 * chosen
        while left_ns > until_ns:
            left_ns -= until_ns
            duration_ns += draw.randrange(MS, 4 * MS)
            until_ns = draw.randrange(2 * MS, 4 * MS)
        until_ns -= left_ns
        costs.add(chosen, duration_ns)
    return whole / 2000


@pytest.mark.parametrize("rows", [8, 16])
def test_interruptions_are_not_taken_for_what_rows_cost(rows: int) -> None:
    shares = [interrupted(rows, seed) for seed in range(20)]
    assert sum(shares) / 20 > 0.95, shares


def test_under_full_load_smaller_sizes_are_tried_too() -> None:
    costs = BatchCosts(32)
    for _ in range(20_000):
        rows = costs.best_rows(64)
        costs.add(rows, int((rows if rows < 16 else 2 * rows) * MS))  # no load was light enough to show that
    assert 8 <= costs.best_rows(64) < 16


def submit(scheduler: Continuous, now: int, deadline_ns: int = 0, group: Hashable = ()) -> None:
    call = Call((), (), 1, group, lambda call: None)
    call.arrived_ns, call.deadline_ns = now, deadline_ns
    scheduler.submit(call, now)


def batch_of(rows: int, group: Hashable = ()) -> Batch:
    return Batch([Call((), (), rows, group, lambda call: None)], rows, "idle")


def waiting_pays() -> Continuous:
    scheduler = Continuous(32)
    for _ in range(100):
        for rows in (1, 2, 4, 8, 16, 32):
            scheduler.ran(batch_of(rows), int((0.1 * rows + 8) * MS))
    return scheduler


def steady(scheduler: Continuous, now: int, gap: int, count: int) -> int:
    """Calls at a steady rate that are taken at once; the time after."""
    for _ in range(count):
        submit(scheduler, now)
        found = scheduler.next(now)
        while isinstance(found, int):
            found = scheduler.next(found)
        now += gap
    return now


def test_a_batch_waits_for_the_next_where_that_pays_and_says_so() -> None:
    scheduler = waiting_pays()
    now = steady(scheduler, MS, MS // 2, 300) + 100 * MS
    scheduler.learned(()).gap_ns, scheduler.learned(())._no_wait = MS / 2, 0
    submit(scheduler, now)
    until = scheduler.next(now)
    assert isinstance(until, int)
    assert now < until <= now + 2 * MS
    submit(scheduler, now + MS // 4)
    batch = scheduler.next(until)
    assert isinstance(batch, Batch)
    assert (batch.rows, batch.why) == (2, "waited")


def test_a_deadline_cuts_a_wait_short() -> None:
    scheduler = waiting_pays()
    scheduler.learned(()).gap_ns = MS / 2
    submit(scheduler, 1000 * MS, deadline_ns=1009 * MS)  # a batch takes 8: no time to wait
    assert isinstance(scheduler.next(1000 * MS), Batch)


def test_waits_that_bring_nobody_are_given_up() -> None:
    """Clients that wait for their answers: what has come is all that will come."""
    scheduler = waiting_pays()
    now, waits = 1000 * MS, 0
    for _ in range(400):
        for _ in range(4):
            submit(scheduler, now)
        scheduler.learned(()).gap_ns = MS / 20  # what a burst looks like
        found = scheduler.next(now)
        while isinstance(found, int):
            waits += 1
            now = found
            found = scheduler.next(now)
        assert isinstance(found, Batch)
        assert found.rows == 4
        now += 9 * MS
    assert 1 <= waits < 20


def test_each_group_is_learned_for_itself() -> None:
    """A short text costs 0.1 ms a row and more of them less; of long ones 8 rows cost less than 9."""
    scheduler = Continuous(32)
    for _ in range(100):
        for rows in (1, 2, 4, 8, 16, 32):
            scheduler.ran(batch_of(rows, "short"), int((0.1 * rows + 1) * MS))
            scheduler.ran(batch_of(rows, "long"), int((5 * rows if rows < 16 else 10 * rows) * MS))
    found = {}
    for group in ("short", "long"):
        for _ in range(32):
            submit(scheduler, MS, group=group)
        batch = scheduler.next(MS)
        assert isinstance(batch, Batch)
        found[group] = batch.rows
        while scheduler.next(MS) is not None:
            pass
    assert found["short"] == 32
    assert 8 <= found["long"] < 16


def test_nothing_waits_for_company_while_something_else_could_run() -> None:
    scheduler = waiting_pays()
    scheduler.learned(()).gap_ns = MS / 2
    submit(scheduler, 1000 * MS)
    assert isinstance(scheduler.next(1000 * MS), int)
    submit(scheduler, 1000 * MS + 1, group="other")
    first, second = scheduler.next(1000 * MS + 1), scheduler.next(1000 * MS + 1)
    assert isinstance(first, Batch)
    assert first.why == "idle"
    assert isinstance(second, Batch)


def test_what_is_learned_of_groups_is_bounded() -> None:
    scheduler = Continuous(32)
    for number in range(5000):
        scheduler.ran(batch_of(1, object()), MS)
        scheduler.ran(batch_of(1, number), MS)
    assert len(scheduler._learned) <= 256
