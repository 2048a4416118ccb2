"""Measures the plan: round by round, group by group, turn by turn; a row that is finished is not done again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.serving.loaded import Figures, Loaded, Raw
from bench.serving.plan import FIRST_WARMUP_S, RAW, WARMUP_S, Group, Row, foretold_s, turned

Record = dict[str, Any]
Runner = Loaded | Raw
FAULTS = (RuntimeError, OSError, subprocess.SubprocessError)


class Store:
    """What has been measured, a JSON object a line; the first line holds the settings that all lines share."""

    def __init__(self, path: Path, settings: dict[str, float]) -> None:
        self.path = path
        self.records: list[Record] = []
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings) + "\n", "utf-8")
            return
        first, *lines = path.read_text("utf-8").splitlines()
        if json.loads(first) != settings:
            raise SystemExit(f"{path} was measured with {first}, not with {json.dumps(settings)}: begin with --fresh")
        self.records = [json.loads(line) for line in lines]

    def add(self, records: Sequence[Record]) -> None:
        """Keep a row's records, instead of those that it left when a server of it failed."""
        keys = {(one["round"], one["row"]) for one in records}
        kept = [one for one in self.records if (one["round"], one["row"]) not in keys]
        if len(kept) < len(self.records):
            self._replace(kept)
        self.records.extend(records)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))

    def has(self, index: int, group: Group, row: Row) -> bool:
        """Whether all servers of the row were measured in that round."""
        wanted = (index, f"{group.name}/{row.point}")
        found = {one["server"] for one in self.records if (one["round"], one["row"]) == wanted}
        return found >= set(row.servers)

    def forget(self, plan: Sequence[Group]) -> None:
        """What ``plan`` measures is to be measured anew."""
        again = {f"{group.name}/{row.point}" for group in plan for row in group.rows}
        self._replace([one for one in self.records if one["row"] not in again])

    def _replace(self, records: list[Record]) -> None:
        self.records = records
        first = self.path.read_text("utf-8").splitlines()[0]
        self.path.write_text("\n".join([first, *map(json.dumps, self.records)]) + "\n", "utf-8")


def measure(plan: Sequence[Group], rounds: int, seconds: float, store: Store) -> dict[str, str]:
    """Fill ``store``; what went wrong, by server."""
    faults: dict[str, str] = {}
    total = foretold_s(plan, rounds, seconds)
    began, foretold_done = time.monotonic(), 0.0
    for index in range(rounds):
        for group in turned([group for group in plan if index < group.rounds], index * 3):
            rows = [row for row in turned(group.rows, index) if not store.has(index, group, row)]
            if rows:
                spent = (time.monotonic() - began) / 60
                done = f"{foretold_done / total:.0%} after {spent:.1f} min"
                print(f"[round {index + 1} of {rounds}, {done}] {group.name}: {', '.join(group.servers)}", flush=True)
                _round(group, rows, index, seconds * group.longer, store, faults)
            foretold_done += foretold_s([group], 1, seconds)
    return faults


def _round(group: Group, rows: Sequence[Row], index: int, seconds: float, store: Store, faults: dict[str, str]) -> None:
    down: set[str] = set()

    def failed(server: str, fault: Exception) -> None:
        down.add(server)  # for this round; the next one tries again
        faults[server] = str(fault)
        print(f"    {server} failed: {fault}", flush=True)

    with ExitStack() as stack:
        up: dict[tuple[str, str], Runner] = {}
        for row in rows:
            for server in turned(row.servers, index):
                if _key(server, row) not in up and server not in down:
                    try:
                        runner = Raw(row.point) if server == RAW else Loaded(server, row.point)
                        up[_key(server, row)] = stack.enter_context(runner)
                    except FAULTS as fault:
                        failed(server, fault)
        for row in rows:
            records = []
            for turn in range(group.turns):
                warmup = WARMUP_S if turn and not row.point.slow else FIRST_WARMUP_S
                shared = {"round": index, "turn": turn, "row": f"{group.name}/{row.point}"}
                for server in turned([one for one in row.servers if one not in down], index + turn):
                    try:
                        came = up[_key(server, row)].slot(row.point, seconds, warmup, index * group.turns + turn)
                    except FAULTS as fault:
                        failed(server, fault)
                        continue
                    records += [{**shared, "server": server, **figures} for figures in came]
            store.add(records)
            for line in told(records):
                print(f"    {line}", flush=True)


def _key(server: str, row: Row) -> tuple[str, str]:
    """Which process serves: some are set for a load."""
    return server, Raw.variant if server == RAW else Loaded.variant_for(server, row.point)


def told(records: Sequence[Record]) -> list[str]:
    """A line for each server and point: the mean of its turns."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["server"], record["point"]), []).append(record)
    return [_line(server, point, group) for (server, point), group in groups.items()]


def _line(server: str, point: str, group: Sequence[Figures]) -> str:
    def mean(key: str) -> float:
        return float(sum(one.get(key, 0) for one in group) / len(group))

    used = sum(one["cpu_s"] for one in group) / max(sum(one["requests"] for one in group), 1) * 1e6
    line = f"{server:<19} {point:<27} {mean('req_s'):>9,.0f} req/s   p50 {mean('p50_ms'):.3f}"
    line += f"   p99 {mean('p99_ms'):.3f} ms   {used:.0f} us of processor"
    if mean("others_s") > 0.1 * mean("seconds"):
        line += f"   disturbed: {mean('others_s'):.2f} s went elsewhere"
    errors = [one["errors"] for one in group if one["errors"]]
    return line + (f"   ERRORS {errors}" if errors else "")
