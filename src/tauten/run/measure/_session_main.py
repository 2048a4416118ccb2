"""The process of ``measure_together``: loads every artifact and runs them in turn."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from tauten.artifact.read import read_artifact
from tauten.core.rows import count_rows, has_batch, resize_rows, take_rows
from tauten.core.tensor import Arrays
from tauten.errors import TautenError
from tauten.run.engines import load
from tauten.run.engines.engine import Engine
from tauten.run.measure._child import now_ns, open_messages, read_spec, write_arrays
from tauten.run.measure._rounds import Nanoseconds, run_rounds

THROUGHPUT_SHARE = 0.3
"""The share of a batch size's measured time, against that of latency."""
_THROUGHPUT_ROUNDS = 10


def main(folder: Path) -> None:
    """Load, run in turn, and leave the durations of all calls."""
    send = open_messages()
    spec, sample = read_spec(folder)
    engines: dict[str, Engine] = {}
    most: dict[str, int] = {}
    try:
        for index, (name, path) in enumerate(spec["artifacts"].items()):
            send({"what": f"loading {name}", "share": 0.05 * index / len(spec["artifacts"])})
            try:
                engines[name], most[name] = _open(Path(path), spec["threads"])
            except TautenError as fault:
                send({"error": f"{name}: {fault}"})
                return
        taken = _measure(engines, most, sample, spec, send)
    except TautenError as fault:
        send({"error": str(fault)})
        return
    write_arrays(folder, _pack(list(engines), taken))


def _open(path: Path, threads: int) -> tuple[Engine, int]:
    artifact = read_artifact(path)
    engine = load(artifact, threads=threads)
    return engine, artifact.manifest.target.batch if has_batch(engine.inputs) else 1


def _measure(
    engines: Mapping[str, Engine],
    most: Mapping[str, int],
    sample: Arrays,
    spec: Mapping[str, Any],
    send: Callable[[dict[str, Any]], None],
) -> dict[tuple[str, int], list[Nanoseconds]]:
    """Durations by name and batch; batch 1 always, the others as far as an artifact goes."""
    largest = max(most.values())
    batches = [batch for batch in sorted({1, *spec["batches"]}) if batch <= largest]
    weights = [1.0 if batch == 1 else THROUGHPUT_SHARE for batch in batches]
    taken: dict[tuple[str, int], list[Nanoseconds]] = {}
    # What is alive now stays alive: no collection falls into a measured call.
    gc.collect()
    gc.freeze()
    gc.disable()
    for index, batch in enumerate(batches):
        calls = {name: in_turn(engine, sample, batch) for name, engine in engines.items() if batch <= most[name]}
        done, weight = sum(weights[:index]) / sum(weights), weights[index] / sum(weights)

        def tell(share: float, batch: int = batch, done: float = done, weight: float = weight) -> None:
            send({"what": f"running all in turn, batch {batch}", "share": 0.05 + 0.95 * (done + weight * share)})

        kind = {"steady": spec["steady"]} if batch == 1 else {"rounds": _THROUGHPUT_ROUNDS}
        found = run_rounds(calls, seconds=spec["seconds"] * weights[index], clock=now_ns, progress=tell, **kind)
        taken.update({(name, batch): rounds for name, rounds in found.items()})
        gc.collect()
    return taken


def in_turn(engine: Engine, sample: Arrays, batch: int) -> Callable[[], object]:
    """Calls the engine on ``batch`` rows of the sample, each time on the next ones.

    A network that decides by its input how much to compute takes another time for each, so that one row again and
    again would measure nothing but that row.
    """
    first = resize_rows(engine.inputs, sample, batch)
    starts = range(batch, count_rows(engine.inputs, sample) - batch + 1, batch)
    others = [take_rows(engine.inputs, sample, range(at, at + batch)) for at in starts]
    inputs = cycle([first, *others])
    return lambda: engine(next(inputs))


def _pack(names: list[str], taken: Mapping[tuple[str, int], list[Nanoseconds]]) -> Arrays:
    """Two arrays for each pair: all durations, and how many each round has."""
    packed: Arrays = {}
    for (name, batch), rounds in taken.items():
        key = f"{names.index(name)}_{batch}"
        packed[f"ns_{key}"] = np.concatenate(rounds)
        packed[f"counts_{key}"] = np.asarray([len(values) for values in rounds], dtype=np.int64)
    return packed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
