"""Half the channels of every network of the zoo cut: what is verified, refused and why, and what ONNX makes of it."""

from __future__ import annotations

import math
import sys
import time
import warnings
from typing import Any

import numpy as np
from torch import nn

from bench._results import write
from tauten.core.target import Target
from tauten.errors import PassError, TautenError
from tauten.make.lower import LOWERINGS
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.testing.zoo import ZOO
from tauten.testing.zoo.cut import Cut, cut
from tauten.testing.zoo.entry import ZooModel

SEED = 0
RATIOS = (0.3, 0.5)
TOLERANCE = 1e-4


def main() -> None:
    names = sys.argv[1:]
    rows = [look(entry) for entry in ZOO if not names or entry.name in names]
    verdicts = [row["verdict"] for row in rows]
    figures = {
        **{verdict: verdicts.count(verdict) for verdict in ("verified", "refused", "failed")},
        "largest_difference": max(row.get("difference") or 0.0 for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "models": rows,
    }
    if names:
        print(table(figures))
    else:
        write("zoo", "python -m bench.zoo", [SEED], figures)


def look(entry: ZooModel) -> dict[str, Any]:
    """Cut, compare, and lower one network. Seconds are of processor time, for the cut and the comparison."""
    started = time.process_time()
    try:
        found = cut(entry, RATIOS, SEED)
    except PassError as fault:  # nothing of it can be pruned, and it is said why
        row: dict[str, Any] = {"verdict": "refused", "refused": {"": str(fault)}}
    except Exception as fault:  # noqa: BLE001 - one that breaks is a failure in the table, not its end
        row = {"verdict": "failed", "refused": {"": f"{type(fault).__name__}: {fault}"}}
    else:
        row = _row(found)
    row = {"model": entry.name, **row, "seconds": round(time.process_time() - started, 2)}
    print(row["model"], row["verdict"], f"{row['seconds']} s", flush=True)
    if row["verdict"] == "verified":
        row["onnx"] = _onnx(entry, found.small)
        if row["onnx"] != "runs":
            row["onnx_before"] = _onnx(entry, found.module)
    return row


def _row(found: Cut) -> dict[str, Any]:
    before, after = found.parameters
    verdict = "refused" if not found.groups else "verified" if found.difference <= TOLERANCE else "failed"
    return {
        "verdict": verdict,
        "parameters_before": before,
        "parameters_after": after,
        "groups": found.groups,
        "groups_found": found.found,
        "difference": found.difference if math.isfinite(found.difference) else None,
        "refused": found.refused,
    }


def _onnx(entry: ZooModel, module: nn.Module) -> str:
    """``runs``, where the graph answers as the module; else what the lowering says."""
    task = Task(
        model=module,
        inputs=entry.inputs,
        calibrate=[entry.example(batch=4, seed=SEED)],
        metric=lambda *_: 0.0,
        validate=[],
    )
    try:
        model = to_model(task)
        LOWERINGS.get("onnx")(model, Target(name="here"), Context(task, model.module))
    except TautenError as fault:
        return str(fault).splitlines()[0][:200]
    return "runs"


def table(figures: dict[str, Any]) -> str:
    """One row a network."""
    told = ", ".join(f"{figures[verdict]} {verdict}" for verdict in ("verified", "refused", "failed"))
    lines = [
        f"{len(figures['models'])} networks: {told}; largest difference {figures['largest_difference']:.1e}.",
        "",
        "| network | parameters kept | groups | difference | ONNX | not pruned |",
        "|---|---|---|---|---|---|",
    ]
    for row in figures["models"]:
        kept, groups, difference = "100 %", "0", ""
        if row.get("groups"):
            kept = f"{100 * row['parameters_after'] / row['parameters_before']:.0f} %"
            groups = f"{row['groups']} of {row['groups_found']}"
            difference = _told(row["difference"])
        onnx = row.get("onnx", "")
        if onnx not in ("", "runs"):
            onnx = "not before either" if row["onnx_before"] != "runs" else "fails"
        lines.append(f"| {row['model']} | {kept} | {groups} | {difference} | {onnx} | {_why(row['refused'])} |")
    return "\n".join(lines)


def _told(difference: float | None) -> str:
    if difference is None:
        return "not comparable"
    return f"{difference:.0e}" if difference else "0"


def _why(refused: dict[str, str]) -> str:
    """Reasons, each once, with how many layers it holds for; where in the model it is lies in the file."""
    short = [_short(why) for why in refused.values()]
    counts = {why: short.count(why) for why in dict.fromkeys(short)}
    return "; ".join(why if count == 1 else f"{why} ({count})" for why, count in counts.items()).replace("|", "/")


def _short(why: str) -> str:
    operation, _, rest = why.partition(" at ")
    reason = rest.partition(": ")[2] or rest.partition(" ")[2] if rest else ""
    return f"{operation}: {reason}" if reason else why


if __name__ == "__main__":
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")
    main()
