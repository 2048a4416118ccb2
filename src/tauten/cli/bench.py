"""``tauten bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tauten.cli.console import console
from tauten.cli.output import JSON, emit

if TYPE_CHECKING:
    from tauten.run.load.scenario import LoadResult

INTERRUPTED = 130


def command(
    url: Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="The model's name on the server.")],
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: clients that each wait for their answer (8 by default).", min=1)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests a second on average, at random times (Poisson).")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure, after the warm-up.")] = 5.0,
    warmup: Annotated[float, typer.Option(help="Seconds at the start that are not counted.")] = 0.5,
    batch: Annotated[int, typer.Option(help="Size of the batch dimension in each request.", min=1)] = 1,
    inputs: Annotated[
        Path | None, typer.Option(help="A .npz file with an array for each input; random ones by default.")
    ] = None,
    binary: Annotated[bool, typer.Option("--binary/--json-body", help="How tensors travel, both ways.")] = True,
    connections: Annotated[int, typer.Option(help="Open loop: connections at most.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Fixes the random inputs and start times.", min=0)] = 0,
    as_json: JSON = False,
) -> None:
    """Put load on a model that is served, and measure requests a second and latencies.

    A closed loop (`--concurrency`) finds what the server can do; an open loop (`--rate`) what clients feel at a given
    rate: latency then counts from the moment a request was due. Ctrl-C shows what was measured so far.

    Example: `tauten bench http://127.0.0.1:8000 --model digits --concurrency 8 --seconds 5`
    """
    from tauten.errors import ServeError
    from tauten.run.load.generator import load_test
    from tauten.run.load.payload import load_npz
    from tauten.run.load.scenario import Scenario

    scenario = Scenario(
        url=url,
        model=model,
        concurrency=8 if concurrency is None and rate is None else concurrency,
        rate=rate,
        seconds=seconds,
        warmup_s=warmup,
        batch=batch,
        binary=binary,
        connections=connections,
        seed=seed,
    )
    arrays = load_npz(inputs) if inputs is not None else None
    if not as_json:
        how = f"{scenario.rate:g} requests/s" if scenario.rate is not None else f"{scenario.concurrency} clients"
        console.print(f"{scenario.loop} loop, {how}, {seconds:g} s (Ctrl-C ends early)")
    result = load_test(scenario, inputs=arrays, until_interrupt=True)
    emit(result.to_json(), as_json, lambda out: _show(out, result))
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)
    if not result.requests:
        raise ServeError(f"no request was answered well: {result.errors or 'none was sent in time'}")


def _show(out: Console, result: LoadResult) -> None:
    from rich.table import Table

    scenario = result.scenario
    table = Table("measure", "value", title=f"{scenario.model} at {scenario.url}")
    table.columns[1].justify = "right"
    for name, figure in result.rows():
        table.add_row(name, figure)
    out.print(table)
