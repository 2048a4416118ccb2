"""What is measured: which server, at which points, in how many rounds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

RAW = "raw"
"""ONNX Runtime in a loop, without a server."""
LIMIT = "limit"
"""A server in C that computes nothing: what the load generator reaches."""
POISSON = 4000.0
CONNECTIONS = 64
"""Of an open loop."""
START_S, STOP_S = 1.5, 0.5
"""What starting and stopping a server takes, to foretell how long a run takes; heavy ones take longer."""
HEAVY_START_S = 5.0
WARMUP_S = 1.5
SLOWER = 2
"""How many times as long a point of the slow model is measured."""


@dataclass(frozen=True)
class Point:
    """One load on one model. ``size`` is the bytes of a row where the engine is the null one."""

    model: str
    mode: str
    load: str
    size: int = 0

    @property
    def connections(self) -> int:
        return int(self.load[1:]) if self.load[0] == "c" else CONNECTIONS

    @property
    def rate(self) -> float | None:
        """Requests a second of an open loop."""
        return float(self.load.partition("-")[2]) if self.load.startswith("poisson") else None

    @property
    def slow(self) -> bool:
        """Whether the model takes so long that few batches are answered in a second."""
        return self.model == "minilm"

    @property
    def batch(self) -> int:
        """Rows a call of RAW."""
        return int(self.load[1:])

    def __str__(self) -> str:
        return f"{self.model}-{self.mode}-{self.load}"


@dataclass(frozen=True)
class Visit:
    """A server, started once a round with one model, and the points that it is measured at."""

    server: str
    points: tuple[Point, ...]
    rounds: int

    @property
    def model(self) -> str:
        return self.points[0].model


def _s(mode: str, *loads: str) -> tuple[Point, ...]:
    return tuple(Point("lenet", mode, load) for load in loads)


def _m(*loads: str, mode: str = "binary") -> tuple[Point, ...]:
    return tuple(Point("minilm", mode, load) for load in loads)


POISSON_LOAD = f"poisson-{POISSON:.0f}"
SIZES = (4, 256, 4096, 65_536, 1_048_576, 16_777_216)
HEAVY = ("granian-asgi", "fastapi", "litserve", "mlserver", "bentoml")
"""Measured at one point, in three rounds."""

PLAN: tuple[Visit, ...] = (
    Visit(RAW, _s("raw", "b1", "b8", "b16", "b32"), 5),
    Visit("tauten", (*_s("binary", "c8", "c32", "c64"), *_s("json", "c32"), *_s("binary", POISSON_LOAD),
                     *_s("raw", "c32")), 5),
    Visit("granian", (*_s("binary", "c8", "c32", "c64"), *_s("json", "c32"), *_s("binary", POISSON_LOAD)), 5),
    *(Visit("mosec", _s("binary", load), 5) for load in ("c8", "c32", "c64", POISSON_LOAD)),  # set for each
    Visit(RAW, _m("b1", "b8", "b32", mode="raw"), 5),
    Visit("tauten", _m("c8", "c16", "c32"), 5),
    Visit("granian", _m("c8", "c32"), 5),
    *(Visit("mosec", _m(load), 5) for load in ("c8", "c16", "c32")),
    *(Visit(server, _s("binary", "c32"), 3) for server in HEAVY),
    # Tauten alone.
    Visit(LIMIT, (Point("limit", "binary", "c8", 3136), Point("limit", "binary", "c32", 3136)), 3),
    Visit("tauten-cache", _s("binary", "c32"), 3),
    Visit("tauten-null", tuple(Point("null-3136", "binary", load, 3136) for load in ("c1", "c8", "c32", "c64")), 3),
    *(Visit("tauten-null", (Point(f"null-{size}", "binary", "c8", size),), 3) for size in SIZES),
    *(Visit(f"tauten-{count}-instances", _m("c32"), 3) for count in (1, 2)),
)  # fmt: skip
"""A round is all visits that have so many rounds, in an order that turns from round to round."""


def chosen(plan: Sequence[Visit], servers: Collection[str], points: Collection[str]) -> list[Visit]:
    """The part of ``plan`` of those servers and those points (or models), all where none are named."""
    found = []
    for visit in plan:
        kept = tuple(one for one in visit.points if not points or {str(one), one.model, one.load} & set(points))
        if kept and (not servers or visit.server in servers):
            found.append(replace(visit, points=kept))
    return found


def order(plan: Sequence[Visit], index: int) -> list[Visit]:
    """The visits of round ``index``, each round beginning elsewhere; every other one runs backwards."""
    visits = [visit for visit in plan if index < visit.rounds]
    if not visits:
        return []
    at = index * 3 % len(visits)
    turned = visits[at:] + visits[:at]
    return turned[::-1] if index % 2 else turned


def foretold_s(plan: Sequence[Visit], rounds: int, seconds: float) -> float:
    """How long measuring ``rounds`` rounds of ``plan`` takes, about."""
    total = 0.0
    for visit in plan:
        start = HEAVY_START_S if visit.server in HEAVY or visit.server == "mosec" else START_S
        once = start + STOP_S + sum(seconds * (SLOWER if point.slow else 1) + WARMUP_S for point in visit.points)
        total += min(rounds, visit.rounds) * once
    return total
