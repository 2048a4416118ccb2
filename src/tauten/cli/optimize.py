"""``tauten optimize``: a task and a budget in, a measured artifact out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tauten.cli._making import choose_target, need_torch, read_task, watched
from tauten.cli.output import JSON, emit
from tauten.core.target import AUTO, Budget, Target
from tauten.errors import BudgetNotMet

if TYPE_CHECKING:
    from rich.console import Console

    from tauten.make.model.task import Task
    from tauten.make.search.recipe import Recipe

DEFAULT_DROP = 0.5


def command(
    task: Annotated[str, typer.Argument(help="The task: FILE.py:function, or package.module:function; or MODEL.onnx.")],
    target: Annotated[
        str, typer.Option(help="Where it will run: server-cpu, gpu, mobile, iot, or a .toml file.")
    ] = "server-cpu",
    max_drop: Annotated[
        float | None,
        typer.Option(
            help=f"Points of the metric that may be lost. Without limits {DEFAULT_DROP}, for metrics in percent."
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Bytes of all files of the artifact at most: 10KB, 2MB, 1.5MiB."),
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="p95 latency at batch 1 at most.")] = None,
    max_memory_mib: Annotated[float | None, typer.Option(help="Peak memory of a fresh process at most.")] = None,
    level: Annotated[
        str, typer.Option(help="How hard to try: low, medium, high, or a .json file of recipes.")
    ] = "medium",
    strategy: Annotated[
        str, typer.Option(help="What to try: listed, the level's recipes; adapt, cuts by measured latency.")
    ] = "listed",
    engine: Annotated[
        str | None,
        typer.Option(
            help="One of the target's engines, by default its first; auto measures those installed and keeps the best."
        ),
    ] = None,
    codec: Annotated[
        str,
        typer.Option(
            help="How weights are stored: plain, zstd, huffman, arithmetic; auto codes them where --max-bytes asks."
        ),
    ] = AUTO,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Samples for MODEL.onnx: an array for each input, and `labels` if any."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="Quality of MODEL.onnx. Default: accuracy with labels, else fidelity."),
    ] = None,
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

    The best model of at most 10,000 bytes: `tauten optimize digits.py:task --max-bytes 10KB`

    A model that is a file already: `tauten optimize model.onnx --calibrate samples.npz --level low`

    The same command again goes on where an interrupted run stopped. Exit code 3: nothing holds the budget.
    """
    chosen = choose_target(target, threads)
    limits: dict[str, Any] = {
        "max_drop": max_drop,
        "max_bytes": max_bytes,
        "max_latency_ms": max_latency_ms,
        "max_memory_mib": max_memory_mib,
    }
    budget = None if all(limit is None for limit in limits.values()) else Budget(**limits)
    need_torch("optimize")
    from tauten.make.search.aim import weights_left
    from tauten.make.search.levels import LEVELS, check_codec, find_level

    check_codec(codec)
    left = weights_left(budget.max_bytes) if budget and budget.max_bytes else None
    recipes = find_level(level, chosen.lowering(engine), codec=codec, weights_bytes=left)
    if dry_run:
        emit([recipe.to_json() for recipe in recipes], as_json, lambda page: _show_recipes(page, recipes))
        return
    read = read_task(task, out, calibrate, metric)
    _run(read, chosen, budget, level if level in LEVELS else recipes, strategy, engine, codec, seed, as_json)


def _run(
    read: tuple[Task, str, Path],
    target: Target,
    budget: Budget | None,
    level: str | tuple[Recipe, ...],
    strategy: str,
    engine: str | None,
    codec: str,
    seed: int,
    as_json: bool,
) -> None:
    from tauten.cli.tables import show_result
    from tauten.make.search.optimize import optimize

    task, origin, folder = read
    with watched(folder) as progress:
        result = optimize(
            task,
            target,
            budget,
            level,
            out=folder,
            seed=seed,
            strategy=strategy,
            engine=engine,
            codec=codec,
            observer=progress,
            origin=origin,
        )
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
        told = " ".join((recipe.lowering, *(f"{name}={value}" for name, value in recipe.options.items())))
        steps.append(f"lower to {told}")
        if recipe.codec != "plain":
            steps.append(f"code by {recipe.codec}")
        page.print(f"{recipe.name}: {' → '.join(steps)}", soft_wrap=True)
