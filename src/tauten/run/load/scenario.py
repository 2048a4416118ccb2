"""What a load test does, and what it found."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tauten.core.value import Value

Count = Annotated[int, Field(ge=0)]


class Scenario(Value):
    """Requests to one model, in a closed or an open loop.

    Closed: ``concurrency`` clients, each sends its next request when the last was answered. Open: requests start at
    random times, ``rate`` a second on average (Poisson), whatever the server does. The first ``warmup_s`` seconds are
    not counted, the next ``seconds`` are. ``batch`` is the size of the batch dimension, ``connections`` how many are
    open at most in an open loop, ``timeout_s`` after how long an answer is no longer waited for.

    >>> Scenario(url="http://127.0.0.1:8000", model="digits", rate=200).loop
    'open'
    """

    url: str
    model: Annotated[str, Field(min_length=1)]
    concurrency: Annotated[int, Field(ge=1, le=1000)] | None = None
    rate: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] | None = None
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 5.0
    warmup_s: Annotated[float, Field(ge=0, le=3600)] = 0.5
    batch: Annotated[int, Field(ge=1)] = 1
    binary: bool = True
    seed: Count = 0
    connections: Annotated[int, Field(ge=1, le=500)] = 64
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0

    @field_validator("url")
    @classmethod
    def _plain_http(cls, url: str) -> str:
        if not url.startswith("http://"):
            raise ValueError("expected a URL such as http://127.0.0.1:8000")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_loop(self) -> Self:
        if (self.concurrency is None) == (self.rate is None):
            raise ValueError("expected either concurrency (closed loop) or rate (open loop)")
        return self

    @property
    def loop(self) -> Literal["closed", "open"]:
        return "closed" if self.rate is None else "open"


class Latency(Value):
    """Milliseconds of the requests that were answered well."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class LoadResult(Value):
    """What a scenario found in its counted part.

    Latency counts from when a request was due: in an open loop that is its scheduled start, so that a server that
    stalls is charged for every request it kept from starting (no coordinated omission; Tene, 2013).
    ``errors`` counts failures by HTTP status, or ``connection`` and ``timeout``. ``seconds`` is the time that was
    counted, ``unfinished`` the requests that were due in it and had no answer when the test ended.
    """

    scenario: Scenario
    seconds: float
    requests: Count
    requests_per_s: float
    rows_per_s: float
    latency_ms: Latency | None
    errors: dict[str, Count] = {}
    unfinished: Count = 0
    sent_bytes: Count
    received_bytes: Count
    interrupted: bool = False

    @property
    def failures(self) -> int:
        """Requests that were not answered well."""
        return sum(self.errors.values())

    def rows(self) -> list[tuple[str, str]]:
        """The result for people, a name and a figure a row."""
        figures: list[tuple[str, Any]] = [
            ("requests", f"{self.requests:,}"),
            ("requests/s", f"{self.requests_per_s:,.1f}"),
            ("rows/s", f"{self.rows_per_s:,.1f}"),
        ]
        if self.latency_ms is not None:
            figures += [(f"{name} ms", f"{value:.3f}") for name, value in self.latency_ms]
        figures += [(f"errors: {kind}", f"{count:,}") for kind, count in sorted(self.errors.items())]
        if self.unfinished:
            figures.append(("unfinished", f"{self.unfinished:,}"))
        figures += [("sent", f"{self.sent_bytes:,} bytes"), ("received", f"{self.received_bytes:,} bytes")]
        return figures
