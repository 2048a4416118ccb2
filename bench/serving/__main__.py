"""The inference server beside its peers, server and client on a core each: rate, latency, processor time, memory."""

from __future__ import annotations

import argparse
import os

from bench._results import write
from bench.serving.environments import check_own, python
from bench.serving.figures import collected
from bench.serving.generator import compiled
from bench.serving.loaded import model_of
from bench.serving.models import FOLDER
from bench.serving.plan import PLAN, RAW, chosen, foretold_s, slots
from bench.serving.process import CLIENT_CORE
from bench.serving.rounds import Store, measure
from bench.serving.servers import SERVERS

ROUNDS, SECONDS = 5, 1.0
QUICK_SECONDS = 0.4


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at most so many rounds ({ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of a turn ({SECONDS:g}), longer for M")
    parser.add_argument("--servers", type=_names, default=set(), help="these alone, such as tauten,granian,raw")
    parser.add_argument("--points", type=_names, default=set(), help="these points, groups, models or loads alone")
    parser.add_argument("--quick", action="store_true", help="one round of short turns; no figures are written")
    parser.add_argument("--fresh", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--list", action="store_true", help="say what would be measured, and how long it takes")
    given = parser.parse_args()
    rounds, seconds = (1, QUICK_SECONDS) if given.quick else (given.rounds, given.seconds)
    plan = chosen(PLAN, given.servers, given.points)
    unknown = given.servers - {*SERVERS, RAW}
    if unknown or not plan:
        raise SystemExit(f"nothing to measure: {sorted(unknown or given.points)}; servers: {', '.join(SERVERS)}, {RAW}")
    minutes = foretold_s(plan, rounds, seconds) / 60
    count = sum(min(rounds, group.rounds) * slots(group) for group in plan)
    print(f"{count} turns of {seconds:g} s in {rounds} rounds: about {minutes:.0f} minutes", flush=True)
    if given.list:
        for group in plan:
            print(f"{group.name}: {min(rounds, group.rounds)} rounds, {group.turns} turns each")
            for row in group.rows:
                print(f"  {row.point!s:<28} {', '.join(row.servers)}")
        return
    path = FOLDER / ("measured-quick.jsonl" if given.quick else "measured.jsonl")
    if given.fresh and not given.servers and not given.points:
        path.unlink(missing_ok=True)
    store = Store(path, {"seconds": seconds})
    if given.fresh:
        store.forget(plan)
    check_own()
    compiled("load")
    compiled("answer")
    for group in plan:
        for row in group.rows:
            model_of(row.point)
        for name in group.servers:
            python("granian" if name == RAW else SERVERS[name].environment)
    cores = os.sched_getaffinity(0)
    if not {0, CLIENT_CORE} <= cores:
        raise SystemExit(f"expected cores 0 and {CLIENT_CORE}, one for the server and one for the client, got {cores}")
    os.sched_setaffinity(0, {CLIENT_CORE})
    faults = measure(plan, rounds, seconds, store)
    os.sched_setaffinity(0, cores)  # the machine's description counts them
    figures = collected(store.records, faults)
    if given.quick:
        from bench.serving.tables import table

        print(table(figures))
        return
    # The seed of a round draws when its requests of an open loop are due.
    write("serving", "python -m bench.serving", list(range(rounds)), figures)


def _names(text: str) -> set[str]:
    return set(text.split(","))


if __name__ == "__main__":
    main()
