"""``tauten compare``: strategies side by side, before and after recovery."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tauten.cli._making import choose_target, need_torch, read_task, watched
from tauten.cli.output import JSON, emit
from tauten.cli.tables import number
from tauten.errors import ConfigError, TautenError

if TYPE_CHECKING:
    from rich.console import Console

    from tauten.make.search.comparison import Comparison
    from tauten.make.search.result import Entry


ROOMY = 120
_COSTS = ("size_bytes", "latency_p50_ms", "latency_p95_ms")


class NothingMade(TautenError):
    """Every point of a comparison was refused."""


def command(
    task: Annotated[str, typer.Argument(help="The task: FILE.py:function, or package.module:function.")],
    passes: Annotated[
        str, typer.Option(help="Strategies, with commas between: any pass with a ratio or a share.")
    ] = "magnitude,structured,dynamic",
    ratios: Annotated[str, typer.Option(help="How much each takes away, with commas between.")] = "0.3,0.5,0.7,0.9",
    recover: Annotated[
        int | None, typer.Option(help="Epochs of training after each cut; 0 for none. Default: those of level medium.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Make each candidate in eight bits too.")] = False,
    target: Annotated[
        str, typer.Option(help="Where it will run: server-cpu, gpu, mobile, iot, or a .toml file.")
    ] = "server-cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result. Default: build/ and the task's name.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the engine, in place of the target's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: JSON = False,
) -> None:
    """Hold pruning strategies against each other: quality, bytes and time of each at each ratio, with pictures.

    Example: `tauten compare digits.py:task --passes magnitude,structured,dynamic --ratios 0.3,0.5,0.7,0.9`

    The same command again goes on where an interrupted run stopped.
    """
    chosen = choose_target(target, threads)
    numbers = _numbers(ratios)
    need_torch("compare")
    from tauten.make.search.compare import compare

    task_, origin, folder = read_task(task, out)
    named = [name.strip() for name in passes.split(",") if name.strip()]
    with watched(folder) as progress:
        found = compare(
            task_,
            chosen,
            named,
            numbers,
            recover=recover,
            int8=int8,
            out=folder,
            seed=seed,
            observer=progress,
            origin=origin,
        )
    emit(found.to_json(), as_json, lambda page: show(page, found, folder))
    if not any(point.stages for point in found.points):
        # The answer was shown above, with every reason; the exit code says it to programs.
        raise typer.Exit(NothingMade.exit_code)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"ratios: expected numbers with commas between, got {text!r}") from None


def show(page: Console, found: Comparison, folder: Path) -> None:
    """The table, what each strategy saves, and what was refused."""
    roomy = page.width >= ROOMY
    page.print(_table(found, roomy))
    for point in found.points:
        if point.saving and not roomy:
            text = f"{escape(point.strategy)} {point.ratio:g}: {escape(point.saving.text)}"
            page.print(text, soft_wrap=True)
        for stage, reason in point.refused.items():
            text = f"[yellow]{escape(point.strategy)} {point.ratio:g}[/] ({stage}) not made: {escape(reason)}"
            page.print(text, soft_wrap=True)
    for caveat in found.caveats:
        page.print(f"[yellow]Note:[/] {escape(caveat)}", soft_wrap=True)
    page.print(f"Report: {escape(str(folder))}/compare.html   Pictures: {escape(str(folder))}/pictures", soft_wrap=True)


def _table(found: Comparison, roomy: bool) -> Table:
    """A row a point; a terminal that is not ``roomy`` is told below what each saves, so that figures stay whole."""
    stages = {"cut": "cut"}
    if found.recover:
        stages["recovered"] = "recovered"
    if found.int8:
        stages["int8"] = "int8"
    table = Table(title=f"{escape(found.task)}: quality and cost of each strategy", title_justify="left")
    costs = _COSTS if roomy else _COSTS[:2]
    for heading in ("strategy", "ratio", *stages.values(), "size", "smaller", *("p50", "p95")[: len(costs) - 1]):
        named = heading == "strategy"
        table.add_column(heading, justify="left" if named else "right", no_wrap=not named, overflow="fold")
    if roomy:
        table.add_column("in measured time")
    else:
        table.box, table.padding, table.show_edge = SIMPLE_HEAD, 0, False
    originals = [("PyTorch eager", found.baseline), (f"{found.target.engine} fp32", found.engine_baseline)]
    if found.control:
        originals.append((f"{found.target.engine} int8", found.control))
    for name, entry in originals:
        empty = [""] * (len(stages) - 1)
        size, *latencies = (_number(entry, key) for key in costs)
        table.add_row(f"[dim]{escape(name)}[/]", "", _number(entry, "quality"), *empty, size, "", *latencies)
    for point in found.points:
        qualities = [
            "refused" if stage in point.refused else _number(point.stages.get(stage), "quality") for stage in stages
        ]
        size, *latencies = (_number(point.shipped, key) for key in costs)
        smaller = f"{point.compression['engine_baseline']:.3g}×" if point.compression else ""
        saves = [escape(point.saving.text)] if point.saving and roomy else []
        table.add_row(escape(point.strategy), f"{point.ratio:g}", *qualities, size, smaller, *latencies, *saves)
    return table


def _number(entry: Entry | None, key: str) -> str:
    measure = entry.measure(key) if entry else None
    return number(measure) if measure else ""
