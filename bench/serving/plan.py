"""What is measured: which servers take turns at which load, in how many rounds.

A machine that is lent has faster and slower minutes. So servers that are compared are up at the same time, the others
idle while one is measured, and take turns of about a second; a ratio is taken within a turn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

RAW: Final = "raw"
"""ONNX Runtime in a loop, without a server; each turn with each of ``BATCHES``."""
BATCHES: Final = (1, 8, 32)
LIMIT: Final = "limit"
"""A server in C that computes nothing: what the load generator reaches."""
CONNECTIONS: Final = 64
"""Of an open loop."""
POISSON: Final = "poisson-4000"
START_S: Final = {"litserve": 4.0, "bentoml": 8.0, "mlserver": 4.0, "mosec": 2.5}
"""Starting and stopping, to foretell how long a run takes; ``OTHER_START_S`` of those that are not named."""
OTHER_START_S: Final = 1.5
FIRST_WARMUP_S: Final = 1.0
"""Of a server's first turn at a load, where clients connect and a server learns; ``WARMUP_S`` of the others."""
WARMUP_S: Final = 0.25

T = TypeVar("T")


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

    def __str__(self) -> str:
        return f"{self.model}-{self.mode}-{self.load}"


@dataclass(frozen=True)
class Row:
    """A load, and the servers that take turns at it."""

    point: Point
    servers: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Rows whose servers are up together, started once a round. A turn of a slow model is longer than of others."""

    name: str
    rows: tuple[Row, ...]
    rounds: int = 5
    turns: int = 4
    longer: float = 1.0

    @property
    def servers(self) -> list[str]:
        return list(dict.fromkeys(server for row in self.rows for server in row.servers))


MAIN: Final = ("tauten", "granian", "mosec", RAW)
OTHERS: Final = ("tauten", "granian", "granian-asgi", "fastapi", "litserve", "mlserver", "bentoml")
SIZES: Final = (4, 256, 4096, 65_536, 1_048_576, 16_777_216)


def _s(mode: str, load: str, *servers: str) -> Row:
    return Row(Point("lenet", mode, load), servers)


def _m(load: str, *servers: str) -> Row:
    return Row(Point("minilm", "binary", load), servers)


def _null(size: int, load: str) -> Row:
    return Row(Point(f"null-{size}", "binary", load, size), ("tauten-null",))


PLAN: Final = (
    Group("S", (
        _s("binary", "c8", *MAIN), _s("binary", "c32", *MAIN), _s("binary", "c64", *MAIN),
        _s("json", "c32", "tauten", "granian", RAW), _s("binary", POISSON, "tauten", "granian", "mosec"),
        _s("raw", "c32", "tauten", RAW),
    )),
    Group("M", (_m("c8", *MAIN), _m("c16", "tauten", "mosec", RAW), _m("c32", *MAIN)), turns=2, longer=3.0),
    Group("others", (_s("binary", "c32", *OTHERS),), rounds=3),
    # Tauten alone.
    Group("limit", tuple(Row(Point("limit", "binary", load, 3136), (LIMIT,)) for load in ("c8", "c32")), 3, 2),
    Group("cache", (_s("binary", "c32", "tauten-cache", RAW),), 3, 2),
    Group("null", tuple(_null(3136, load) for load in ("c1", "c8", "c32", "c64")), 3, 2),
    *(Group(f"null-{size}", (_null(size, "c8"),), 3, 2) for size in SIZES),
    Group("instances", (_m("c32", "tauten-1-instances", "tauten-2-instances"),), 3, 2, 3.0),
)  # fmt: skip


def chosen(plan: Sequence[Group], servers: Collection[str], points: Collection[str]) -> list[Group]:
    """The part of ``plan`` of those servers and those points (or groups, models, loads); all where none are named."""
    found = []
    for group in plan:
        rows = []
        for row in group.rows:
            names = {str(row.point), row.point.model, row.point.load, group.name}
            kept = tuple(one for one in row.servers if not servers or one in servers)
            if kept and (not points or names & set(points)):
                rows.append(replace(row, servers=kept))
        if rows:
            found.append(replace(group, rows=tuple(rows)))
    return found


def turned(items: Sequence[T], by: int) -> list[T]:
    """The same items, another one first; every other time backwards."""
    at = by % max(len(items), 1)
    found = [*items[at:], *items[:at]]
    return found[::-1] if by % 2 else found


def slots(group: Group) -> int:
    """Measurements in a round."""
    return group.turns * sum(len(row.servers) + (len(BATCHES) - 1) * (RAW in row.servers) for row in group.rows)


def foretold_s(plan: Sequence[Group], rounds: int, seconds: float) -> float:
    """How long measuring ``rounds`` rounds of ``plan`` takes, about."""
    total = 0.0
    for group in plan:
        once = sum(START_S.get(server, OTHER_START_S) for server in group.servers)
        for row in group.rows:
            measured = seconds * group.longer
            warmup = FIRST_WARMUP_S if row.point.slow else (FIRST_WARMUP_S + (group.turns - 1) * WARMUP_S) / group.turns
            for server in row.servers:
                slot = len(BATCHES) * measured * 0.6 if server == RAW else measured + warmup + 0.1
                once += group.turns * slot
        total += min(rounds, group.rounds) * once
    return total
