"""``tauten optimize``: a task and a budget in, a measured artifact out."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tauten.cli.output import JSON, console, emit
from tauten.core.target import Budget, find_target
from tauten.errors import BudgetNotMet, ExtraMissing

if TYPE_CHECKING:
    from rich.console import Console

    from tauten.make.search.recipe import Recipe

DEFAULT_DROP = 0.5


def command(
    task: Annotated[str, typer.Argument(help="The task: FILE.py:function, or package.module:function.")],
    target: Annotated[
        str, typer.Option(help="Where it will run: server-cpu, gpu, mobile, iot, or a .toml file.")
    ] = "server-cpu",
    max_drop: Annotated[
        float | None,
        typer.Option(
            help=f"Points of the metric that may be lost. Without limits {DEFAULT_DROP}, for metrics in percent."
        ),
    ] = None,
    max_bytes: Annotated[str | None, typer.Option(help="Bytes of the artifact at most: 50KB, 2MB, 512KiB.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="p95 latency at batch 1 at most.")] = None,
    max_memory_mib: Annotated[float | None, typer.Option(help="Peak memory of a fresh process at most.")] = None,
    level: Annotated[
        str, typer.Option(help="How hard to try: low, medium, high, or a .json file of recipes.")
    ] = "medium",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result. Default: build/ and the task's name.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the engine, in place of the target's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the level's recipes and stop.")] = False,
    as_json: JSON = False,
) -> None:
    """Prune, quantize and measure a model, and keep the best artifact within the budget.

    Example: `tauten optimize digits.py:task --max-drop 0.5 --max-bytes 200KB --out build/digits`

    The same command again goes on where an interrupted run stopped. Exit code 3: nothing holds the budget.
    """
    chosen = find_target(target)
    if threads is not None:
        chosen = type(chosen).from_json({**chosen.to_json(), "threads": threads})
    limits: dict[str, Any] = {
        "max_drop": max_drop,
        "max_bytes": max_bytes,
        "max_latency_ms": max_latency_ms,
        "max_memory_mib": max_memory_mib,
    }
    budget = None if all(limit is None for limit in limits.values()) else Budget(**limits)
    _need_torch()
    from tauten.make.search.levels import find_level

    recipes = find_level(level, chosen.engine)
    if dry_run:
        emit([recipe.to_json() for recipe in recipes], as_json, lambda page: _show_recipes(page, recipes))
        return
    _run(task, chosen.to_json(), budget, level, out, seed, as_json)


def _run(
    reference: str,
    target: dict[str, Any],
    budget: Budget | None,
    level: str,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    from tauten.cli.progress import LiveProgress
    from tauten.cli.tables import show_result
    from tauten.cli.task import load_task
    from tauten.core.target import Target
    from tauten.make.search.levels import LEVELS, find_level
    from tauten.make.search.optimize import optimize

    task = load_task(reference)
    where = Target.from_json(target)
    folder = out or Path("build") / task.name
    recipes = level if level in LEVELS else find_level(level, where.engine)
    signal.signal(signal.SIGTERM, _interrupt)
    with LiveProgress(console) as progress:
        try:
            result = optimize(
                task, where, budget, recipes, out=folder, seed=seed, observer=progress, origin=_text(reference)
            )
        except KeyboardInterrupt:
            console.print(
                f"Interrupted. {progress.finished} finished candidates are kept in {folder}: "
                "the same command goes on from there.",
                soft_wrap=True,
            )
            raise
    emit(result.to_json(), as_json, lambda page: show_result(page, result, str(folder)))
    if not result.met:
        # The answer, not an accident: it was shown above, and the exit code says it to programs.
        raise typer.Exit(BudgetNotMet.exit_code)


def _show_recipes(page: Console, recipes: tuple[Recipe, ...]) -> None:
    for recipe in recipes:
        steps = [
            f"{step.name}({', '.join(f'{key}={value!r}' for key, value in step.to_json().items() if key != 'pass')})"
            for step in recipe.passes
        ]
        page.print(f"{recipe.name}: {' → '.join([*steps, f'lower to {recipe.lowering}'])}", soft_wrap=True)


def _text(reference: str) -> str:
    """The task file's text: an edited task file is another task."""
    path = Path(reference.rpartition(":")[0] or reference)
    return path.read_text("utf-8") if path.suffix == ".py" and path.is_file() else reference


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _need_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise ExtraMissing("tauten optimize (torch is not installed)", "optimize")
    if find_spec("onnxscript") is None:
        raise ExtraMissing("tauten optimize (onnxscript is not installed)", "optimize")
