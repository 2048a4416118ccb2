"""Requests of different lengths in one batch: answers are those that each gets alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import ConfigError, EngineError
from tauten.run.serve.cache.opened import Cache
from tauten.run.serve.cache.settings import CacheSettings
from tauten.run.serve.call import Batch, Call, divide, gather
from tauten.run.serve.lengths import Bucket, Lengths, bound_of, open_length
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.buffer import ALONE
from tauten.run.serve.protocol.metadata import model_config
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.masked import INPUTS, OUTPUTS, Masked, call_of, inputs_of
from tests.unit.serve.tiny import WAIT_S, Reply, Running, ask, running, tensor, until

LENGTHS = Lengths(Masked.padding, INPUTS, OUTPUTS)


@st.composite
def requests(draw: st.DrawFn) -> Arrays:
    """One to three rows of few open columns, more of them closed at the end or in front; some open nothing.

    Or of many: there a bucket is longer than the multiple.
    """
    lengths = draw(st.lists(draw(st.sampled_from([st.integers(1, 20), st.integers(65, 80)])), min_size=1, max_size=3))
    columns = max(lengths) + draw(st.sampled_from([0, 0, 1, 9]))
    if draw(st.integers(0, 7)) == 0:
        lengths[-1] = 0
    front = draw(st.sampled_from([0, 0, 2]))
    return inputs_of(
        lengths, columns, front=front, width=draw(st.sampled_from([3, 3, 3, 4])), seed=draw(st.integers(0, 999))
    )


requests_ = st.lists(requests(), min_size=2, max_size=6)


@settings(deadline=None)
@given(requests_)
def test_a_batch_is_as_long_as_its_longest_and_answers_as_each_alone(asked: Sequence[Arrays]) -> None:
    engine = Masked()
    groups: dict[Any, list[Call]] = {}
    for arrays in asked:
        call = call_of(arrays)
        call.group = LENGTHS.bucket(call) or call.group
        groups.setdefault(call.group, []).append(call)
    for group, calls in groups.items():
        batch = Batch(calls, sum(call.rows for call in calls), "test")
        joined = gather(batch, INPUTS)
        assert [joined[spec.name].dtype.name for spec in INPUTS] == [spec.dtype for spec in INPUTS]
        assert all(array.flags.c_contiguous for array in joined.values())
        columns = joined["mask"].shape[1]
        sent = [call.shapes[2][1] for call in calls]
        assert columns <= max(sent)
        if isinstance(group, Bucket):
            assert columns >= max(call.length for call in calls)
            if len(set(sent)) > 1:
                assert columns <= bound_of(max(call.length for call in calls), 8)
            assert [call.padded for call in calls] == [max(0, columns - length) for length in sent]
            assert batch.padded == sum(call.rows * call.padded for call in calls)
        else:
            assert set(sent) == {columns}
        divide(batch, [engine(joined)["sum"]])
        for call in calls:
            alone = engine(gather(Batch([call], call.rows, "test"), INPUTS))["sum"]
            assert call.result is not None
            np.testing.assert_array_equal(call.result[0], alone)
    assert engine.strange == 0


@given(st.integers(1, 100_000), st.integers(1, 100))
def test_a_bucket_is_little_longer_than_its_shortest(length: int, multiple: int) -> None:
    bound = bound_of(length, multiple)
    assert bound >= length
    assert bound % multiple == 0
    assert bound_of(bound, multiple) == bound
    assert bound - length < max(multiple, bound / 5)
    assert bound_of(length + 1, multiple) >= bound


@pytest.mark.parametrize(
    ("mask", "length"),
    [
        ([[1, 1, 1]], 3),
        ([[0, 0, 1]], 3),
        ([[0, 1, 0]], 2),
        ([[1, 0, 0], [1, 1, 0]], 2),
        ([[0, 0, 0]], 0),
        ([[1, 1, 1], [0, 0, 0]], 0),
        ([[]], 0),
        (np.zeros((0, 3)), 0),
    ],
)
def test_a_length_is_that_of_what_is_open(mask: Any, length: int) -> None:
    for dtype in (bool, np.int8, np.float32):
        assert open_length(np.array(mask, dtype)) == length


def test_a_number_that_is_none_is_open() -> None:
    assert open_length(np.array([[np.nan, 0], [-0.0, 5]])) == 2
    assert open_length(np.array([[-0.0]])) == 0


def test_what_differs_besides_the_length_is_in_another_group() -> None:
    calls = [call_of(inputs_of([5], 5)), call_of(inputs_of([6], 6)), call_of(inputs_of([6], 6, width=4))]
    first, second, third = (LENGTHS.bucket(call) for call in calls)
    assert first == second != third


@pytest.mark.parametrize(
    ("inputs", "outputs", "told"),
    [
        (INPUTS, (TensorSpec(name="sum", shape=("batch", "length")),), "outputs without the dimension 'length'"),
        ((*INPUTS, TensorSpec(name="places", shape=("length",))), OUTPUTS, r"count samples first: \['places'\]"),
        (INPUTS[:1], OUTPUTS, "there is no input of that name"),
    ],
)
def test_a_model_that_cannot_be_padded_is_refused(inputs: Any, outputs: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Lengths(Masked.padding, inputs, outputs)


class Tried:
    """A model of ``engine`` in the running loop, and what it answers."""

    def __init__(self, engine: Masked, **fields: Any) -> None:
        self.engine = engine
        self.model = ServedModel("m", engine, max_batch=fields.pop("max_batch", 8))
        cached = fields.pop("cached", False)
        self.model.start(
            ServeSettings(**{"instances": 1, "run_in": "loop", **fields}), Cache(CacheSettings()) if cached else None
        )

    def ask(self, arrays: Arrays) -> tuple[Call, asyncio.Future[Call]]:
        """A call, and a future of it when it is answered."""
        future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        call = call_of(arrays, future.set_result)
        self.model.submit(call)
        return call, future


@contextmanager
def tried(engine: Masked, **fields: Any) -> Iterator[Tried]:
    found = Tried(engine, **fields)
    try:
        yield found
    finally:
        found.model.stop()


def sums(call: Call) -> list[float]:
    if call.fault is not None:
        raise call.fault
    assert call.result is not None
    found: list[float] = np.asarray(call.result[0]).tolist()
    return found


def alone(arrays: Arrays) -> list[float]:
    found: list[float] = Masked()(arrays)["sum"].tolist()
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"run_in": "thread", "instances": 2},
        {"max_batch": 2},
        {"cached": True},
        {"cached": True, "max_batch": 2},
        {"exact_batches": True},
    ],
    ids=lambda fields: " ".join(fields) or "plain",
)
@settings(deadline=None, max_examples=40)
@given(asked=requests_, twice=st.booleans(), left=st.sets(st.integers(0, 5)))
def test_answers_are_those_of_each_request_alone(
    fields: Mapping[str, Any], asked: Sequence[Arrays], twice: bool, left: set[int]
) -> None:
    async def main() -> None:
        with tried(Masked(), **fields) as there:
            for _ in range(1 + twice):  # what is remembered, too
                waiting = [(arrays, *there.ask(arrays)) for arrays in asked]
                for place in left & set(range(len(waiting))):
                    waiting[place][1].cancel()
                for place, (arrays, _call, future) in enumerate(waiting):
                    if place not in left:
                        assert sums(await asyncio.wait_for(future, WAIT_S)) == alone(arrays)

    asyncio.run(main())


@pytest.mark.parametrize("cached", [False, True])
def test_what_fits_runs_at_once_and_what_does_not_does_not(cached: bool) -> None:
    async def main() -> None:
        with tried(Masked(), cached=cached) as there:
            waiting = [there.ask(inputs_of([length], length)) for length in (9, 16, 17, 12, 8)]
            calls = [await future for _, future in waiting]
            assert sorted(there.engine.seen) == [(1, 8), (1, 17), (3, 16)]
            assert [call.batch_rows for call in calls] == [3, 3, 1, 3, 1]
            assert [call.padded for call in calls] == [7, 0, 0, 4, 0]
            assert (there.model.statistics.positions, there.model.statistics.padded) == (62, 11)

    asyncio.run(main())


def test_a_sample_with_nothing_open_is_not_padded() -> None:
    async def main() -> None:
        with tried(Masked()) as there:
            asked = [inputs_of([5], 5), inputs_of([0], 6), inputs_of([7, 0], 7), inputs_of([0], 6, seed=1)]
            waiting = [there.ask(arrays) for arrays in asked]
            assert [sums(await future) for _, future in waiting] == [alone(arrays) for arrays in asked]
            assert sorted(there.engine.seen) == [(1, 5), (2, 6), (2, 7)]

    asyncio.run(main())


def test_no_length_reaches_the_engine_that_nobody_sent() -> None:
    """A model of 13 positions answers those of 13, also beside one of 14, which fails alone."""

    async def main() -> None:
        with tried(Masked(fails=lambda rows, columns: columns > 13)) as there:
            fits = [inputs_of([length], length) for length in (13, 9)]
            waiting = [there.ask(arrays) for arrays in (*fits, inputs_of([14], 14))]
            assert [sums(await future) for _, future in waiting[:2]] == [alone(arrays) for arrays in fits]
            failed = await waiting[2][1]
            assert isinstance(failed.fault, EngineError)
            assert max(columns for _, columns in there.engine.seen) == 14
            assert [call.padded for call, _ in waiting] == [0, 0, 0]  # each ran once more, by itself
            assert there.model.statistics.padded == 0

    asyncio.run(main())


@pytest.mark.parametrize(("long", "other", "padded"), [(12, 14, [2, 0]), (75, 66, [0, 9])])
def test_parts_of_a_large_request_run_with_others_of_its_lengths(long: int, other: int, padded: list[int]) -> None:
    async def main() -> None:
        with tried(Masked(), max_batch=4) as there:
            large, small = inputs_of([9, 12, 10, 11, long], long), inputs_of([9, other, 11], other)
            waiting = [there.ask(large), there.ask(small)]
            calls = [await future for _, future in waiting]
            assert [sums(call) for call in calls] == [alone(large), alone(small)]
            assert there.engine.seen == [(4, long), (4, max(long, other))]
            assert calls[0].why == "split"
            assert [call.padded for call in calls] == padded

    asyncio.run(main())


def test_a_request_that_shares_with_none_is_padded_with_none() -> None:
    async def main() -> None:
        with tried(Masked()) as there:
            future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
            call = call_of(inputs_of([9], 9), future.set_result)
            call.group = ALONE
            there.model.submit(call)
            _, other = there.ask(inputs_of([10], 10))
            assert [(await one).batch_rows for one in (future, other)] == [1, 1]

    asyncio.run(main())


def test_a_model_without_a_batch_has_no_buckets() -> None:
    engine = Masked()
    engine.outputs = (TensorSpec(name="sum", shape=()),)
    assert Lengths.of(engine) is None
    assert Lengths.of(Masked()) is not None


def test_a_model_without_padding_has_no_such_stage() -> None:
    async def main() -> None:
        engine = Masked()
        engine.padding = None
        with tried(engine) as there:
            waiting = [there.ask(inputs_of([length], length)) for length in (9, 10)]
            for _, future in waiting:
                await future
            assert sorted(engine.seen) == [(1, 9), (1, 10)]
            assert there.model.ragged == ()
            assert there.model._entry is there.model._worker

    asyncio.run(main())


def body(length: int, seed: int = 0) -> dict[str, Any]:
    arrays = inputs_of([length], length, seed=seed)
    kinds = {"int64": "INT64", "int16": "INT16", "float32": "FP32"}
    return {"inputs": [tensor(s.name, kinds[s.dtype], arrays[s.name].shape, arrays[s.name].tolist()) for s in INPUTS]}


def together(server: Running, engine: Masked, *lengths: int) -> list[Reply]:
    """The answers to requests of these lengths that wait at the same time, which say how they came about."""
    path, headers = "/v2/models/m/infer", {"Tauten-Explain": "1"}
    with ThreadPoolExecutor(len(lengths) + 1) as pool:
        engine.gate.clear()
        first = pool.submit(ask, server.port, "POST", path, body(40))
        assert engine.entered.acquire(timeout=WAIT_S)
        rest = [pool.submit(ask, server.port, "POST", path, body(length, length), headers) for length in lengths]
        until(lambda: server.waiting() == len(lengths))
        engine.gate.set()
        assert first.result().status == 200
        return [one.result() for one in rest]


def figures(server: Running) -> dict[str, float]:
    lines = ask(server.port, "GET", "/metrics").body.decode().splitlines()
    return {line.split("{")[0]: float(line.split()[-1]) for line in lines if "positions{" in line}


def test_two_requests_of_a_bucket_share_a_batch_over_http() -> None:
    engine = Masked()
    with running(engine, run_in="thread") as server:
        replies = together(server, engine, 9, 13, 20)
        for reply, length in zip(replies, (9, 13, 20), strict=True):
            assert reply.json()["outputs"][0]["data"] == alone(inputs_of([length], length, seed=length))
        told = [(reply.headers["tauten-batch-rows"], reply.headers["tauten-padded-columns"]) for reply in replies]
        assert told == [("2", "4"), ("2", "0"), ("1", "0")]
        config = ask(server.port, "GET", "/v2/models/m/config").json()
        assert [entry.get("allow_ragged_batch") for entry in config["input"]] == [True, True, True, None]
        assert figures(server) == {"tauten_positions": 82, "tauten_padded_positions": 4}
        (stats,) = ask(server.port, "GET", "/v2/models/m/stats").json()["model_stats"]
        assert stats["padding"] == {"positions": 82, "padded": 4}
        assert stats["execution_count"] == 3


def test_exact_batches_turn_it_off() -> None:
    engine = Masked()
    with running(engine, run_in="thread", exact_batches=True) as server:
        replies = together(server, engine, 9, 13)
        assert [reply.headers["tauten-batch-rows"] for reply in replies] == ["1", "1"]
        assert "ragged" not in ask(server.port, "GET", "/v2/models/m/config").body.decode()
        assert figures(server) == {}
        (stats,) = ask(server.port, "GET", "/v2/models/m/stats").json()["model_stats"]
        assert "padding" not in stats


def test_grpc_says_of_inputs_that_they_may_be_ragged() -> None:
    pytest.importorskip("google.protobuf")
    from google.protobuf.json_format import ParseDict

    from tauten.run.serve.protocol.grpc.messages import MESSAGES

    config = model_config("m", "tauten_onnx", 8, 1, INPUTS, OUTPUTS, ["ids", "mask"])
    message = ParseDict(config, MESSAGES.of("inference.ModelConfig")(), ignore_unknown_fields=True)
    assert [one.allow_ragged_batch for one in message.input] == [True, False, True, False]
