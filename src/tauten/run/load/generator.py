"""Runs a scenario against a server."""

from __future__ import annotations

import asyncio
import selectors
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, repeat
from time import perf_counter
from urllib.parse import quote

from tauten.core.tensor import Arrays, check_arrays
from tauten.errors import ServeError
from tauten.run.load.arrivals import arrivals, summarize
from tauten.run.load.client import Address, Client, encode_post, get_json
from tauten.run.load.payload import random_inputs, read_specs, rows
from tauten.run.load.scenario import LoadResult, Scenario
from tauten.run.serve.protocol.v2 import HEADER_LENGTH, decode_response, encode_request

_VARIANTS = 16  # different bodies, so that a server that remembers answers is not measured by its memory alone
_BUSY = (429, 503)  # a server under load already; the measurement will say how often
_RECONNECT_S = 0.02


async def run_load(
    scenario: Scenario, *, inputs: Arrays | None = None, stop: asyncio.Event | None = None
) -> LoadResult:
    """Put ``scenario`` on its server and measure.

    ``inputs`` are sent with every request; without them, random ones that fit the model's metadata. When ``stop`` is
    set the test ends early with what was measured so far. Raises ``ServeError`` where the server cannot be reached,
    does not know the model or refuses the first request, ``InputError`` for ``inputs`` that do not fit the model.
    """
    address = Address.parse(scenario.url)
    path = f"/v2/models/{quote(scenario.model, safe='')}"
    specs = read_specs(await get_json(address, path, scenario.timeout_s))
    if inputs is not None:
        check_arrays(specs, inputs)
    bodies = (
        [inputs]
        if inputs is not None
        else [random_inputs(specs, scenario.batch, scenario.seed + number) for number in range(_VARIANTS)]
    )
    requests = [encode_post(address, f"{path}/infer", encode_request(body, binary=scenario.binary)) for body in bodies]
    run = _Run(scenario, address, requests, rows(bodies[0], specs), stop or asyncio.Event())
    await run.check_first()
    return await run.measure()


class _Run:
    """One measurement.

    Times are seconds since its start. What was due before ``warmup_s`` is not counted; what is due after the end is
    not sent. Requests that were due in time and are late are still sent for a while, since leaving them out would
    leave out the worst latencies.
    """

    def __init__(
        self, scenario: Scenario, address: Address, requests: Sequence[bytes], rows: int, stop: asyncio.Event
    ) -> None:
        self._scenario = scenario
        self._address = address
        self._first = requests[0]
        self._requests = cycle(requests)
        self._rows = rows
        self._stop = stop
        self._end = scenario.warmup_s + scenario.seconds
        self._latencies_ms: list[float] = []
        self._errors: Counter[str] = Counter()
        self._in_time = 0  # answered well between warm-up and end, whenever they were due
        self._open = 0  # due in time and sent, but neither answered nor failed yet
        self._sent = self._received = 0

    async def check_first(self) -> None:
        """Send one request, so that one that cannot work is an error and not a column of failures."""
        client = Client(self._address)
        try:
            async with asyncio.timeout(self._scenario.timeout_s):
                answer = await client.send(self._first)
        except TimeoutError:
            raise ServeError(f"no answer to the first request within {self._scenario.timeout_s:g} seconds") from None
        except OSError as fault:
            raise ServeError(f"the first request failed: {fault}") from None
        finally:
            client.close()
        if answer.status in _BUSY:
            return
        if answer.status != 200:
            text = answer.body[:500].decode("utf-8", "replace")
            raise ServeError(f"the first request was refused with status {answer.status}: {text}")
        length = answer.headers.get(HEADER_LENGTH.lower().encode("ascii"))
        decode_response(answer.body, None if length is None else int(length))

    async def measure(self) -> LoadResult:
        """Run until the end, or until ``stop``."""
        scenario = self._scenario
        self._started = perf_counter()
        schedule: Iterator[float | None]
        if scenario.rate is None:
            schedule, clients = repeat(None), scenario.concurrency or 1
        else:
            schedule, clients = arrivals(scenario.rate, self._end, scenario.seed), scenario.connections
        stopping = asyncio.create_task(self._stop.wait())
        waiting = {asyncio.create_task(self._client(schedule)) for _ in range(clients)}
        everyone = tuple(waiting)
        try:
            while waiting and not stopping.done():
                done, rest = await asyncio.wait({*waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                waiting = {task for task in waiting if task in rest}
                for task in done - {stopping}:
                    task.result()
        finally:
            interrupted = bool(waiting)
            stopping.cancel()
            for task in everyone:
                task.cancel()
            await asyncio.gather(*everyone, stopping, return_exceptions=True)
        seconds, end = scenario.seconds, self._end
        if interrupted:
            end = min(self._end, self._now())
            seconds = max(0.0, end - scenario.warmup_s)
        if scenario.rate is not None:
            # What no client came to: the server held all of them until the patience ended.
            self._open += sum(1 for due in schedule if due is not None and scenario.warmup_s <= due < end)
        return self._result(seconds, interrupted)

    def _now(self) -> float:
        return perf_counter() - self._started

    async def _client(self, schedule: Iterator[float | None]) -> None:
        """One connection. All of an open loop share one schedule: whoever is free takes the next start."""
        client = Client(self._address)
        patience = self._end + min(self._scenario.seconds, self._scenario.timeout_s)
        try:
            for due in schedule:
                now = self._now()
                if due is None:
                    due = now
                elif due > now:
                    await asyncio.sleep(due - now)
                if due >= self._end:
                    return
                await self._one(client, due)
                if self._now() > patience:
                    return
        finally:
            client.close()

    async def _one(self, client: Client, due: float) -> None:
        scenario, request = self._scenario, next(self._requests)
        counted = due >= scenario.warmup_s
        self._open += counted
        received, failure = 0, None
        try:
            async with asyncio.timeout(scenario.timeout_s):
                answer = await client.send(request)
            received = answer.received_bytes
            failure = None if answer.status == 200 else str(answer.status)
        except TimeoutError:
            failure = "timeout"
        except OSError:
            failure = "connection"
        ended = self._now()
        self._in_time += failure is None and scenario.warmup_s <= ended < self._end
        if counted:
            self._open -= 1
            self._sent += len(request)
            self._received += received
            if failure is None:
                self._latencies_ms.append((ended - due) * 1000)
            else:
                self._errors[failure] += 1
        if failure == "connection":
            await asyncio.sleep(_RECONNECT_S)

    def _result(self, seconds: float, interrupted: bool) -> LoadResult:
        per_s = self._in_time / seconds if seconds else 0.0
        return LoadResult(
            scenario=self._scenario,
            seconds=seconds,
            requests=len(self._latencies_ms),
            requests_per_s=per_s,
            rows_per_s=per_s * self._rows,
            latency_ms=summarize(self._latencies_ms),
            errors=dict(self._errors),
            unfinished=self._open,
            sent_bytes=self._sent,
            received_bytes=self._received,
            interrupted=interrupted,
        )


def load_test(scenario: Scenario, *, inputs: Arrays | None = None, until_interrupt: bool = False) -> LoadResult:
    """``run_load`` in an event loop of its own.

    With ``until_interrupt``, Ctrl-C ends the test early with what was measured so far (in the main thread only).
    """

    async def main() -> LoadResult:
        stop = asyncio.Event()
        if until_interrupt:
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        return await run_load(scenario, inputs=inputs, stop=stop)

    with asyncio.Runner(loop_factory=_loop_factory(scenario)) as runner:
        return runner.run(main())


def _loop_factory(scenario: Scenario) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop that fits: for an open loop one with exact timers, for a closed one the fastest."""
    if scenario.loop == "open":
        # epoll and libuv count whole milliseconds, which would be charged to the server; select counts microseconds.
        return lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
