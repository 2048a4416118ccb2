"""A gRPC server that is asked for more than it can do, and what clients are told of it; deadlines."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import pytest

from tauten.run.serve.call import Call
from tauten.run.serve.grpc_infer import REFUSALS_A_SECOND
from tauten.run.serve.protocol.grpc.messages import INFERENCE
from tests.unit.serve.grpc_tiny import METHODS, RunningGrpc, ask_grpc, channel_to, ones, running_grpc, status_of
from tests.unit.serve.tiny import WAIT_S, Double, Gated, until

INFER = METHODS["ModelInfer"].path
STREAM = METHODS["ModelStreamInfer"]
DATA = ones().SerializeToString()
SECONDS = 1.5
CLIENTS = 16
BURST = 60


class Full(NamedTuple):
    """A server whose queue is full until its engine's ``gate`` opens."""

    server: RunningGrpc
    engine: Gated
    accepted: list[Any]

    @property
    def refused(self) -> int:
        return self.server.models[0].statistics.failures["REJECTED"]


@contextmanager
def full() -> Iterator[Full]:
    engine = Gated()
    with running_grpc(engine, queue=1, run_in="thread") as server, channel_to(server) as channel:
        try:
            call = channel.unary_unary(INFER)
            first = call.future(DATA)
            engine.wait_entered()
            second = call.future(DATA)
            until(lambda: server.models[0].waiting)
            yield Full(server, engine, [first, second])
        finally:
            engine.gate.set()


def test_refusals_leave_no_faster_than_the_server_can_afford() -> None:
    with full() as overloaded, channel_to(overloaded.server) as channel:
        end = time.monotonic() + SECONDS
        told: Counter[str] = Counter()

        def ask_again_at_once() -> None:
            call = channel.unary_unary(INFER)
            while time.monotonic() < end:
                with pytest.raises(grpc.RpcError) as caught:
                    call(DATA, timeout=WAIT_S)
                told[status_of(caught.value)[0]] += 1

        clients = [threading.Thread(target=ask_again_at_once) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(WAIT_S)
        assert set(told) == {"RESOURCE_EXHAUSTED"}
        # Each client is refused once at the least; all of them together as often as is allowed, and no more.
        assert CLIENTS <= told.total() <= REFUSALS_A_SECOND * (SECONDS + 1)
        assert overloaded.refused == told.total()
        overloaded.engine.gate.set()
        assert all(accepted.result(WAIT_S) for accepted in overloaded.accepted)
        assert ask_grpc(channel, "ModelInfer", ones()).outputs


def test_many_that_come_at_once_are_refused_one_after_the_other() -> None:
    with full() as overloaded, channel_to(overloaded.server) as channel:
        call = channel.unary_unary(INFER)
        began = time.monotonic()
        flood = [call.future(DATA, timeout=WAIT_S) for _ in range(BURST)]
        assert {status_of(one.exception(WAIT_S))[0] for one in flood} == {"RESOURCE_EXHAUSTED"}
        assert 0.9 * BURST / REFUSALS_A_SECOND <= time.monotonic() - began < 5


def test_a_stream_that_is_refused_is_read_no_faster() -> None:
    with full() as overloaded, channel_to(overloaded.server) as channel:
        stream = channel.stream_stream(STREAM.path)(iter(lambda: DATA, None))
        end = time.monotonic() + SECONDS
        told = 0
        for answer in stream:
            assert "the queue is full" in STREAM.response.FromString(answer).error_message
            told += 1
            if time.monotonic() > end:
                break
        stream.cancel()
        assert 1 < told <= REFUSALS_A_SECOND * (SECONDS + 1)


def test_a_client_that_leaves_before_it_is_refused_is_not_waited_for() -> None:
    with full() as overloaded, channel_to(overloaded.server) as channel:
        call = channel.unary_unary(INFER)
        flood = [call.future(DATA, timeout=0.05) for _ in range(CLIENTS)]
        assert {status_of(one.exception(WAIT_S))[0] for one in flood} <= {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
        with pytest.raises(grpc.RpcError) as caught:
            call(DATA, timeout=WAIT_S)
        assert status_of(caught.value)[0] == "RESOURCE_EXHAUSTED"


def test_a_refusal_says_when_to_come_again_and_a_client_that_retries_by_itself_heeds_it() -> None:
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
    }
    config = {"methodConfig": [{"name": [{"service": INFERENCE.service_name}], "retryPolicy": policy}]}
    with full() as overloaded, channel_to(overloaded.server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(DATA, timeout=WAIT_S)
        trailers: Any = caught.value
        assert {("grpc-retry-pushback-ms", "1000"), ("retry-after", "1")} <= {*trailers.trailing_metadata()}
        options: dict[str, Any] = {"grpc.service_config": json.dumps(config)}
        with channel_to(overloaded.server, **options) as patient:
            began = time.monotonic()
            later = patient.unary_unary(INFER).future(DATA, timeout=WAIT_S)
            until(lambda: overloaded.refused == 2)
            overloaded.engine.gate.set()
            assert later.result(WAIT_S)
            assert time.monotonic() - began >= 0.8  # by its own policy it would have come after 10 ms
            assert overloaded.refused == 2


@pytest.mark.parametrize(
    ("rpc_s", "own_us", "latest_s"), [(5, 0, 5), (5, 200_000, 0.2), (5, 9_000_000, 5), (None, 0, 0)]
)
@pytest.mark.parametrize("streams", [False, True])
def test_the_earlier_of_both_deadlines_is_the_call_s(
    monkeypatch: pytest.MonkeyPatch, rpc_s: float | None, own_us: int, latest_s: float, streams: bool
) -> None:
    message = ones()
    if own_us:
        message.parameters["timeout"].int64_param = own_us
    limits_s: list[float] = []
    with running_grpc(Double()) as server, channel_to(server) as channel:
        (model,) = server.models
        submit = model.submit

        def noted(call: Call) -> None:
            limits_s.append((call.deadline_ns - call.arrived_ns) * 1e-9 if call.deadline_ns else 0)
            submit(call)

        monkeypatch.setattr(model, "submit", noted)
        for _ in range(2):  # the second is like one before
            data = message.SerializeToString()
            if streams:
                assert len(list(channel.stream_stream(STREAM.path)(iter([data]), timeout=rpc_s))) == 1
            else:
                assert channel.unary_unary(INFER)(data, timeout=rpc_s)
    assert len(limits_s) == 2
    for limit_s in limits_s:  # gRPC rounds up what is left of its own
        assert latest_s - 1 < limit_s <= 1.02 * latest_s
