"""``tauten evaluate``: measures an artifact on data, as it would run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tauten.cli.console import console
from tauten.cli.output import JSON, emit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from tauten.artifact.read import Artifact
    from tauten.cli._data import Judged
    from tauten.core.measure import Measure
    from tauten.run.engines.engine import Engine

BATCHES = (1, 8, 16, 32)
STARTS = 3
"""Fresh processes in which loading and memory are measured."""


class Split(StrEnum):
    """The batches of a task that can be judged by."""

    test = "test"
    validate = "validate"
    calibrate = "calibrate"


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder.")],
    task: Annotated[str | None, typer.Option(metavar="FILE.py:FUNCTION", help="A task file: its data, metric.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Arrays by input name, and `labels`; instead of a task.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="A metric's name. Default: the task's, or accuracy with --data.")
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Which batches of the task. Default: test where it has them.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="ARTIFACT", help="The original, for metrics that compare with it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Engine threads. Default: the artifact's target.")] = None,
    latency: Annotated[
        bool, typer.Option(help="Measure latency, throughput, load and memory too, in fresh processes.")
    ] = True,
    seconds: Annotated[float, typer.Option(min=0.05, help="Measured time of latency.")] = 1.0,
    as_json: JSON = False,
) -> None:
    """Measure quality, size, latency, throughput, load time and memory of an artifact.

    Example: `tauten evaluate build/digits/best --task digits.py:task`
    """
    from tauten.artifact.read import read_artifact
    from tauten.cli._data import from_npz, from_task
    from tauten.errors import ConfigError
    from tauten.run.engines import load

    if (task is None) == (data is None):
        raise ConfigError("expected one of --task FILE.py:FUNCTION and --data FILE.npz")
    if data and split:
        raise ConfigError("--split chooses batches of a task; --data has one set of them")
    found = read_artifact(artifact)
    threads = threads or found.manifest.target.threads
    engine = load(found, threads=threads)
    if task:
        judged = from_task(task, split.value if split else None, metric, reference)
    else:
        judged = from_npz(data or Path(), found.manifest, metric, reference)
    measures = _measure(found, engine, judged, threads, seconds if latency else None)
    document = _document(found, engine, judged, measures)
    emit(document, as_json, lambda screen: _show(screen, found, judged, measures))


def _measure(
    artifact: Artifact, engine: Engine, judged: Judged, threads: int, seconds: float | None
) -> dict[str, Measure]:
    from tauten.run.measure.memory import measure_fresh
    from tauten.run.measure.quality import measure_quality
    from tauten.run.measure.session import measure_together
    from tauten.run.measure.size import measure_size

    batch = artifact.manifest.target.batch
    with console.status("running the data through the artifact"):
        quality = measure_quality(engine, judged.batches, judged.metric, judged.reference, batch=batch)
    measures = {"quality": quality.measure, "size_bytes": measure_size(artifact)}
    if seconds is not None:
        sample = next(iter(judged.batches))[0]
        with console.status("measuring latency and throughput") as status:
            timing = measure_together(
                {artifact.manifest.name: artifact.path},
                sample,
                threads=threads,
                batches=BATCHES,
                seconds=seconds,
                progress=lambda what, share: status.update(f"{what} ({share:.0%})"),
            )
            status.update("starting it anew")
            measures |= measure_fresh(artifact.path, sample, threads=threads, repeats=STARTS)
        measures |= timing[artifact.manifest.name].measures
    return measures


def _document(artifact: Artifact, engine: Engine, judged: Judged, measures: Mapping[str, Measure]) -> dict[str, Any]:
    from tauten.cli._measures import nested

    metric = judged.metric
    return {
        "artifact": str(artifact.path),
        "name": artifact.manifest.name,
        "engine": {"engine": artifact.manifest.engine, **engine.describe()},
        "quality_on": judged.on,
        "metric": {"name": judged.metric_name, "unit": metric.unit, "better": metric.better},
        "measures": nested(measures),
    }


def _show(screen: Console, artifact: Artifact, judged: Judged, measures: Mapping[str, Measure]) -> None:
    from tauten.cli._measures import measures_table, plain

    screen.print(plain(f"{artifact.manifest.name} ({artifact.path}): {judged.metric_name} on {judged.on}"))
    screen.print(measures_table(measures, screen.width))
