"""``tauten demo``: the whole way on real data, in about a minute."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tauten.cli.console import console
from tauten.cli.output import JSON, emit
from tauten.core.target import Budget
from tauten.errors import BudgetNotMet, ExtraMissing, ServeError

if TYPE_CHECKING:
    from rich.console import Console

    from tauten.make.search.result import Result

ACCURATE = Budget(max_drop=0.5)
SMALL = Budget(max_bytes=50_000)
RECIPES = ("int8", "cut-0.5-int8", "structured-0.7-int8", "structured-0.85-int8")
"""Of level medium, those that are worth a look on this model: a demo is over before one loses interest.

Without ``fp32``: on the engine that is the untouched model, which is measured beside them.
"""


def command(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("build/demo"),
    seconds: Annotated[float, typer.Option(help="How long the served winner is put under load.", min=0.5)] = 3.0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JSON = False,
) -> None:
    """Train a small CNN on scanned digits, optimize it for two budgets, serve the winner and put it under load.

    Example: `tauten demo --out build/demo`
    """
    if find_spec("sklearn") is None or find_spec("torch") is None:
        raise ExtraMissing("tauten demo", "demo")
    out.mkdir(parents=True, exist_ok=True)
    task_file = out / "digits.py"
    task_file.write_bytes((files("tauten") / "examples" / "digits.py").read_bytes())
    console.print(f"The task is {task_file}: a file like it is all that your own model needs.")
    console.print(f"\n[bold]Budget 1: at most {ACCURATE.max_drop} points lost[/]")
    accurate = _optimize(task_file, ACCURATE, out / "accurate", seed)
    # The second budget asks another question of the same candidates: what is finished is taken over.
    _share_work(out / "accurate", out / "small")
    console.print(f"\n[bold]Budget 2: at most {SMALL.max_bytes:,} bytes, as good as that allows[/]")
    small = _optimize(task_file, SMALL, out / "small", seed)
    load: dict[str, Any] | None = None
    if accurate.best:
        console.print("\n[bold]Serve the winner and put it under load[/]")
        with _serving(out / "accurate" / "best") as url:
            load = _bench(url, accurate.task, seconds)
    document = {
        "task_file": str(task_file),
        "accurate": {"out": str(out / "accurate"), **_summary(accurate)},
        "small": {"out": str(out / "small"), **_summary(small)},
        "load": load,
    }
    emit(document, as_json, lambda page: _show(page, accurate, small, load, out))
    if not (accurate.met and small.met):
        raise typer.Exit(BudgetNotMet.exit_code)


def _optimize(task_file: Path, budget: Budget, out: Path, seed: int) -> Result:
    from tauten.cli.progress import LiveProgress
    from tauten.cli.task import load_task
    from tauten.make.search.evaluator import Sampling
    from tauten.make.search.levels import find_level
    from tauten.make.search.optimize import optimize

    with LiveProgress(console) as progress:
        return optimize(
            load_task(f"{task_file}:task"),
            budget=budget,
            level=[recipe for recipe in find_level("medium") if recipe.name in RECIPES],
            out=out,
            seed=seed,
            sampling=Sampling(seconds=0.3),
            observer=progress,
            origin=task_file.read_text("utf-8"),
        )


def _share_work(source: Path, target: Path) -> None:
    for folder in ("candidates", ".state"):
        shutil.copytree(source / folder, target / folder, dirs_exist_ok=True)


@contextmanager
def _serving(artifact: Path) -> Iterator[str]:
    """A real server on a free port, as ``tauten serve`` starts it; ended with SIGTERM as an operator would."""
    process = subprocess.Popen(
        [*_tauten("serve"), str(artifact), "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        document = json.loads(line) if line.startswith("{") and line.rstrip().endswith("}") else None
        if document is None:
            raise ServeError(f"tauten serve {artifact}: expected a line that says it is ready, got {line!r}")
        yield str(document["url"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        if process.stdout:
            process.stdout.close()


def _bench(url: str, model: str, seconds: float) -> dict[str, Any]:
    arguments = [url, "--model", model, "--concurrency", "8", "--seconds", str(seconds), "--json"]
    done = subprocess.run([*_tauten("bench"), *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ServeError(f"tauten bench {url} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    if found["latency_ms"] is None:
        raise ServeError(f"tauten bench {url}: no request was answered; failures: {found['errors']}")
    return found


def _tauten(verb: str) -> list[str]:
    return [sys.executable, "-m", "tauten.cli.main", verb]


def _summary(result: Result) -> dict[str, Any]:
    return {
        "met": result.met,
        "best": result.best.name if result.best else None,
        "improvements": {
            against: {key: gain.to_json() for key, gain in gains.items()}
            for against, gains in result.improvements.items()
        },
        "test": result.test.to_json() if result.test else None,
    }


def _show(page: Console, accurate: Result, small: Result, load: dict[str, Any] | None, out: Path) -> None:
    from tauten.cli.tables import show_result

    for result, name in ((accurate, "accurate"), (small, "small")):
        show_result(page, result, str(out / name))
        page.print()
    if load:
        took = load["latency_ms"]
        page.print(
            f"Served over HTTP, 8 connections: {load['requests_per_s']:,.0f} requests/s, "
            f"p50 {took['p50']:.2f} ms, p99 {took['p99']:.2f} ms, {sum(load['errors'].values())} errors"
        )
    page.print(f"Next: open {out / 'accurate' / 'report.html'}, or change {out / 'digits.py'} and run tauten optimize")
