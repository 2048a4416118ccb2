"""One contender in a process of its own: prepares, loads, answers and is timed, each when it is told to.

Reads a JSON object a line from standard input and answers each with one on standard output. Run by ``bench.latency``:
``python -m bench._contender MODEL CONTENDER FOLDER``.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench._latency_models import Subject, subject
from bench._ours import OURS, Ours
from bench._peers import PEERS, Call, Peer
from tauten.core.tensor import Array, Arrays


class Contender:
    """What the lines ask for, by name."""

    def __init__(self, model: Subject, peer: Peer | Ours) -> None:
        self.model = model
        self.peer = peer
        self.calls: dict[str, Call] = {}
        self.batch = 1

    def prepare(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.peer.prepare()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": time.perf_counter() - started, "peak_mib": peak}

    def load(self, threads: int, batch: int, floor_db: float | None = None) -> dict[str, Any]:
        self.batch = batch
        if isinstance(self.peer, Ours):
            picked = self.peer.pick(threads, batch, floor_db)
            self.calls = {kind: call for kind, (call, _) in picked.items()}
            return {"what": {kind: told for kind, (_, told) in picked.items()}, "tried": self.peer.tried}
        self.calls = {"pick": self.peer.load(threads, batch)}
        return {}

    def answer(self, split: str, path: str, pick: str = "pick") -> dict[str, Any]:
        np.save(path, answers(self.calls[pick], getattr(self.model, split), self.batch))
        return {}

    def time(self, seconds: float, pick: str = "pick") -> dict[str, Any]:
        """Mean milliseconds a call over calls of about ``seconds``, each on the next rows."""
        call, inputs = self.calls[pick], list(slices(self.model.judge, self.batch))[:8]
        # Where a call may take as long as its texts are, each contender has all of them equally often.
        turn = len(inputs) if self.model.named else 1
        for arrays in inputs[:2]:
            call(arrays)
        done, started = 0, time.perf_counter_ns()
        until = started + int(seconds * 1e9)
        while time.perf_counter_ns() < until or done < 2 or done % turn:
            call(inputs[done % len(inputs)])
            done += 1
        return {"ms": (time.perf_counter_ns() - started) / done / 1e6, "calls": done}


def slices(arrays: Arrays, batch: int) -> Iterator[Arrays]:
    """Whole batches, in order."""
    count = len(next(iter(arrays.values())))
    for at in range(0, count - batch + 1, batch):
        yield {name: np.ascontiguousarray(array[at : at + batch]) for name, array in arrays.items()}


def answers(call: Call, arrays: Arrays, batch: int) -> Array:
    """The first output on all samples."""
    return np.concatenate([np.asarray(call(part)).copy() for part in slices(arrays, batch)])


def main() -> None:
    name, contender, folder = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    # What libraries print must not stand between the replies.
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    model = subject(name)
    kinds: dict[str, Callable[[Subject, Path], Peer | Ours]] = {**PEERS, OURS: Ours}
    served = Contender(model, kinds[contender](model, Path(folder)))
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                reply = getattr(served, asked.pop("do"))(**asked)
        except Exception as fault:  # noqa: BLE001 - a tool that cannot take the model is a finding, of whatever class
            reply = {"error": f"{type(fault).__name__}: {str(fault)[:300]}"}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
