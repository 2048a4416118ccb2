"""Tauten's pick against the tools of the field: five models, batch 1 and 16, one thread and two, in turn.

Every contender has a process of its own, so that no runtime's threads or settings reach another. They are loaded
together and take turns, a slot each a round; a ratio is taken within a round. Fidelity is told beside each speed:
signal to quantization noise against PyTorch fp32, on samples that no quantizer and no choice has seen.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np

from bench._latency_models import CACHE, MODELS, subject
from bench._measured import measured_as_all, measured_now, read_document, tell_measured
from bench._ours import OURS, SAME, sqnr_db
from bench._peers import PEERS
from bench._results import RESULTS, write

COMMAND = "python -m bench.latency"
CELLS = [(threads, batch) for threads in (1, 2) for batch in (1, 16)]
ROUNDS = 12
SLOT_S = 0.12
LOOKS = 3
NEAR = 1.1
"""What is slower by less, in a few looks, may be the fastest in the end."""
REST_S = 0.02
"""Between two slots, so that threads which spin for a while after their work are at rest."""
YARDSTICK = "PyTorch eager"
PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "torchao", "transformers", "numpy")


class Child:
    """A contender's process."""

    def __init__(self, model: str, name: str, folder: Path) -> None:
        self.name = name
        folder.mkdir(parents=True)
        self._log = (folder / "log").open("wb")
        command = [sys.executable, "-m", "bench._contender", model, name, str(folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.fault = ""

    def ask(self, do: str, **more: object) -> dict[str, Any]:
        """The reply; one with ``error`` is kept as ``fault``."""
        self.tell(do, **more)
        return self.reply(do)

    def tell(self, do: str, **more: object) -> None:
        """Ask without waiting for the reply."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **more}), file=self._process.stdin, flush=True)

    def reply(self, do: str) -> dict[str, Any]:
        """What was answered to ``do``."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in reply:
            self.fault = f"{do}: {reply['error']}"
            print(f"  {self.name}: {self.fault}", flush=True)
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


@dataclass(frozen=True)
class Seat:
    """One of those that take turns: a child, with the one of its picks that is meant."""

    name: str
    child: Child
    pick: str = "pick"

    def ask(self, do: str, **more: object) -> dict[str, Any]:
        return self.child.ask(do, pick=self.pick, **more)


def compare(model: str, folder: Path) -> dict[str, Any]:
    """All rows of a model, and what preparing cost each contender."""
    module = subject(model)
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(model, name, folder / f"{index}")) for index, name in enumerate([*PEERS, OURS])
        ]
        prepared: dict[str, Any] = {}
        for child in children:
            reply = child.ask("prepare")
            prepared[child.name] = {key: round(value, 1) for key, value in reply.items() if key != "error"}
            print(f"{model}: {child.name} prepared: {reply}", flush=True)
        rows = [_cell(model, children, threads, batch, folder) for threads, batch in CELLS]
    faults = {child.name: child.fault for child in children if child.fault}
    return {"rows": rows, "prepared": prepared, "faults": faults, "classes": module.classes}


def _cell(model: str, children: list[Child], threads: int, batch: int, folder: Path) -> dict[str, Any]:
    peers = [child for child in children if child.name != OURS and not child.fault]
    ours = next(child for child in children if child.name == OURS)
    # Compilers take minutes; loading is not timed.
    for child in peers:
        child.tell("load", threads=threads, batch=batch)
    for child in peers:
        child.reply("load")
    peers = [child for child in peers if not child.fault]
    # The floor of what ours may lose is what the fastest peer loses, seen on the samples that choices are made on;
    # where several may turn out to be the fastest, what the most faithful of them loses.
    looks = [{child.name: child.ask("time", seconds=SLOT_S)["ms"] for child in peers} for _ in range(LOOKS)]
    first = {child.name: median(look[child.name] for look in looks) for child in peers}
    near = [name for name, ms in first.items() if ms <= NEAR * min(first.values())]
    seats = [Seat(child.name, child) for child in peers]
    validated = _fidelity(seats, "validate", folder)
    picked = ours.ask("load", threads=threads, batch=batch, floor_db=max(validated[name]["sqnr_db"] for name in near))
    everyone = [*seats, Seat(OURS, ours)]
    # Where the fastest leaves nothing out, it is the fastest of those that leave nothing out.
    if picked["what"]["pick"]["less"]:
        everyone.append(Seat(SAME, ours, "same"))
    times: dict[str, list[float]] = {seat.name: [] for seat in everyone}
    for index in range(ROUNDS):
        turn = everyone[index % len(everyone) :] + everyone[: index % len(everyone)]
        for seat in turn:
            time.sleep(REST_S)
            times[seat.name].append(seat.ask("time", seconds=SLOT_S)["ms"])
    fidelity = _fidelity(everyone, "judge", folder)
    best = min((seat.name for seat in seats), key=lambda name: median(times[name]))
    against = {
        name: _against(picked["what"][kind], times[name], times[best], fidelity[name])
        for name, kind in ((OURS, "pick"), (SAME, "same"))
        if name in times
    }
    row = {
        "model": model,
        "batch": batch,
        "threads": threads,
        **against[OURS],
        "best_peer": best,
        "best_peer_ms": median(times[best]),
        "fidelity_peer_db": fidelity[best]["sqnr_db"],
        "agreement_peer": fidelity[best]["agreement"],
        "same": against.get(SAME, against[OURS]),
        "all": {
            seat.name: {
                "ms": median(times[seat.name]),
                "over_eager": median(e / t for e, t in zip(times[YARDSTICK], times[seat.name], strict=True)),
                **fidelity[seat.name],
            }
            for seat in everyone
        },
        "tried": picked["tried"],
    }
    for told in (row, row["same"]):
        print(
            f"{model} threads {threads} batch {batch}: {told['ours']} {told['ours_ms']:.3f} ms, {best} "
            f"{row['best_peer_ms']:.3f} ms, ratio {_spread(told)}, "
            f"{told['fidelity_ours_db']:.1f} against {row['fidelity_peer_db']:.1f} dB",
            flush=True,
        )
    return row


def _against(what: dict[str, Any], mine: list[float], best: list[float], fidelity: dict[str, Any]) -> dict[str, Any]:
    """A pick beside the best of the others, round by round."""
    ratios = [peer / own for peer, own in zip(best, mine, strict=True)]
    return {
        "ours": what["name"],
        "ours_less": what["less"],
        "ours_threads": what["threads"],
        "ours_bytes": what["bytes"],
        "ours_seconds": what["seconds"],
        "ours_ms": median(mine),
        "ratio": median(ratios),
        "ratio_low": _quantile(ratios, 0.1),
        "ratio_high": _quantile(ratios, 0.9),
        "fidelity_ours_db": fidelity["sqnr_db"],
        "agreement_ours": fidelity["agreement"],
    }


def _spread(row: dict[str, Any], mark: str = "") -> str:
    return f"{mark}{row['ratio']:.2f}{mark} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"


def _fidelity(children: list[Seat], split: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Signal to noise in dB against PyTorch fp32, and in percent how often the first place is the same."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for child in children:
        path = folder / "answers.npy"
        child.ask("answer", split=split, path=str(path))
        found[child.name] = np.load(path)
    right = found[YARDSTICK]
    return {
        name: {"sqnr_db": round(sqnr_db(right, came), 2), "agreement": round(_agreement(right, came), 2)}
        for name, came in found.items()
    }


def _agreement(right: np.ndarray[Any, Any], came: np.ndarray[Any, Any]) -> float:
    """Of classifiers, how often both put the same class first; of embeddings, how often both have the same nearest."""
    if right.shape[-1] <= 16:
        return float((right.argmax(-1) == came.argmax(-1)).mean() * 100)
    nearest = [_nearest(array) for array in (right, came)]
    return float((nearest[0] == nearest[1]).mean() * 100)


def _nearest(embeddings: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    likeness = embeddings @ embeddings.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(1)


def _quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share))


def main() -> None:
    found: dict[str, Any] = {}
    for model in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            found[model] = compare(model, Path(folder))
        (CACHE / f"latency-{model}.json").write_text(json.dumps({**found[model], "measured": measured_now()}))
    collect()


def collect() -> None:
    """The figures file, from what the models' runs left; a model without such keeps the figures that it has there."""
    earlier = read_document("latency")
    found = {model: _left(model) or _kept(model, earlier) for model in MODELS}
    qat = json.loads((RESULTS / "qat.json").read_text())["figures"]
    figures = {
        "rows": [row for model in MODELS for row in found[model]["rows"]],
        "qat4": {key: qat[key] for key in ("mnist_drop_points", "harder_drop_points")},
        **{key: {model: found[model][key] for model in MODELS} for key in ("prepared", "faults", "measured")},
        "packages": {name: _version(name) for name in PACKAGES},
        "processor": platform.processor() or platform.machine(),
    }
    write("latency", COMMAND, [0], figures)


def _left(model: str) -> dict[str, Any]:
    path = CACHE / f"latency-{model}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _kept(model: str, document: dict[str, Any]) -> dict[str, Any]:
    figures = document["figures"]
    return {
        "rows": [row for row in figures["rows"] if row["model"] == model],
        "prepared": figures["prepared"][model],
        "faults": figures["faults"][model],
        "measured": figures.get("measured", {}).get(model, measured_as_all(document)),
    }


def table(figures: dict[str, Any]) -> str:
    """One row a model, number of threads and batch."""
    lines = [
        "| model | threads | batch | Tauten's pick | best other | times | times, all arithmetic | dB, Tauten's | "
        "dB, other's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        # Rows from before anything was left out have one pick.
        same = row.get("same", row)
        lines.append(
            f"| {row['model']} | {row['threads']} | {row['batch']} | {row['ours']}: {row['ours_ms']:.3g} ms "
            f"| {row['best_peer']}: {row['best_peer_ms']:.3g} ms | {_spread(row, '**')} "
            f"| {_spread(same)} | {row['fidelity_ours_db']:.1f} | {row['fidelity_peer_db']:.1f} |"
        )
    return "\n".join([*lines, "", *tell_measured(figures.get("measured", {}))])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
