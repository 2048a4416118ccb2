"""``tauten inspect``: what an artifact says of itself, after everything in it was checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tauten.cli.output import JSON, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table

    from tauten.artifact.layers import Layer
    from tauten.artifact.manifest import Stage
    from tauten.artifact.read import Artifact
    from tauten.core.record import Record
    from tauten.core.tensor import TensorSpec


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder or file.")],
    profile: Annotated[
        bool, typer.Option(help="Run it, to see what really computes in few bits and where the time goes.")
    ] = True,
    as_json: JSON = False,
) -> None:
    """Check an artifact's every byte and show what is in it: files, inputs, recipe, measures, layers and precisions.

    Example: `tauten inspect build/digits/best`
    """
    from tauten.artifact.layers import layers
    from tauten.artifact.read import read_artifact

    found = read_artifact(artifact)
    rows = layers(found, coded=True)
    running = _running(found) if profile else {}
    emit(_document(found, rows, running), as_json, lambda console: _show(console, found, rows, running))


def _running(artifact: Artifact) -> dict[str, Any]:
    """What the engine says of itself, how long it took to load, and the time by precision; or why it cannot run here.

    Loading is decoding the weights, too.
    """
    import time

    from tauten.errors import EngineError, ExtraMissing
    from tauten.run.engines import load
    from tauten.run.measure.precision import time_precisions

    try:
        start = time.perf_counter()
        engine = load(artifact)
        load_ms = (time.perf_counter() - start) * 1e3
        times = time_precisions(engine)
        return {"engine": engine.describe(), "load_ms": load_ms, "times": times and times.to_json()}
    except (EngineError, ExtraMissing) as fault:
        return {"not_run": str(fault)}


def _fallbacks(artifact: Artifact) -> dict[str, str]:
    """Layers that stayed in float though the recipe quantizes, and why, as the lowering noted."""
    for record in reversed(artifact.manifest.history):
        notes = record.notes.get("quantization")
        kept = notes.get("float") if isinstance(notes, dict) else None
        if isinstance(kept, dict):
            return {str(name): str(why) for name, why in kept.items()}
    return {}


def _document(artifact: Artifact, rows: Sequence[Layer], running: dict[str, Any]) -> dict[str, Any]:
    from tauten.cli._measures import nested

    document = artifact.manifest.to_json()
    document.update(
        path=str(artifact.path),
        checksums=artifact.checksums,
        verified=True,
        size_bytes=artifact.size_bytes,
        files=_files(artifact),
        measures=nested(artifact.manifest.measures),
        layers=[row.to_json() for row in rows],
        weights_total=_total(artifact, rows),
        running=running,
        fallbacks=_fallbacks(artifact),
    )
    return document


def _total(artifact: Artifact, rows: Sequence[Layer]) -> dict[str, float]:
    """All weights together: their numbers, their bytes as coded on disk and when decoded, bits and zeros a number."""
    manifest = artifact.manifest
    elements = sum(row.elements for row in rows)
    on_disk = manifest.files[manifest.weights]
    return {
        "elements": elements,
        "file_bytes": on_disk,
        "decoded_bytes": manifest.weights_bytes,
        "bits_per_weight": 8 * on_disk / elements if elements else 0.0,
        "entropy": sum(row.elements * (row.entropy or 0.0) for row in rows) / elements if elements else 0.0,
        "zeros": sum(row.elements * row.zeros for row in rows) / elements if elements else 0.0,
    }


def _files(artifact: Artifact) -> dict[str, int]:
    """All files by size, those that the manifest cannot name, itself and the checksums, included."""
    from tauten.artifact.manifest import CHECKSUMS, MANIFEST

    return {**artifact.manifest.files, **{name: len(artifact.read(name)) for name in (CHECKSUMS, MANIFEST)}}


def _show(console: Console, artifact: Artifact, rows: Sequence[Layer], running: dict[str, Any]) -> None:
    from tauten.cli._measures import measures_table

    manifest = artifact.manifest
    console.print(_summary(artifact))
    console.print(_borders(manifest.inputs, manifest.outputs))
    if manifest.stages:
        console.print(_stages(manifest.stages))
    if manifest.measures:
        console.print(measures_table(manifest.measures, console.width))
    if manifest.history:
        console.print(_history(manifest.history))
    if rows:
        console.print(_layers(rows, _total(artifact, rows)))
    if kept := _fallbacks(artifact):
        console.print(_kept(kept))
    if running:
        _show_running(console, running)


def _kept(kept: dict[str, str]) -> RenderableType:
    from tauten.cli._measures import plain

    table = _table("Left in float", "layer", "reason")
    for name, why in kept.items():
        table.add_row(plain(name), plain(why))
    return table


def _show_running(console: Console, running: dict[str, Any]) -> None:
    from tauten.cli._measures import plain

    if "not_run" in running:
        console.print(plain(f"Not run here: {running['not_run']}"), soft_wrap=True)
        return
    console.print(f"Loaded, weights decoded, in {running['load_ms']:.1f} ms (once, with what was imported for it).")
    times = running["times"]
    if times is None:
        console.print("The engine does not tell what its operations take.")
        return
    total = sum(times["milliseconds"].values())
    table = _table("Where the time goes, batch 1", "operation", "kind", "precision", "ms ", "share ")
    for one in times["operations"]:
        share = f"{one['milliseconds'] / total:.1%}"
        table.add_row(plain(one["name"]), plain(one["kind"]), one["precision"], f"{one['milliseconds']:.4f}", share)
    console.print(table)
    parts = ", ".join(f"{name or 'not told'} {spent / total:.1%}" for name, spent in times["milliseconds"].items())
    console.print(f"In low precision: {times['low_share']:.1%} of the measured time ({parts}).", soft_wrap=True)


def _table(title: str, *headings: str) -> Table:
    """A table; a heading that ends in a blank stands over numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading.rstrip(), justify="right" if heading.endswith(" ") else "left")
    return table


def _summary(artifact: Artifact) -> RenderableType:
    from rich.table import Table

    from tauten.cli._measures import plain

    manifest = artifact.manifest
    target = manifest.target
    files = ", ".join(f"{name} {size:,} B" for name, size in _files(artifact).items())
    lines = {
        "name": manifest.name,
        "made": f"{manifest.created}, by Tauten {manifest.tauten}",
        "engine": manifest.engine,
        "target": f"{target.name}: {target.device}, threads {target.threads}, batch at most {target.batch}",
        **({"settings": _settings(manifest.settings)} if manifest.settings else {}),
        "size": f"{artifact.size_bytes:,} B: {files}",
        "recipe": _recipe(manifest.recipe),
        "codec": f"{manifest.codec}, {manifest.weights_bytes:,} B of weights when decoded",
        "checksums": f"sha256 of all {len(artifact.checksums)} files agree",
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for label, text in lines.items():
        grid.add_row(label, plain(text))
    return grid


def _settings(settings: dict[str, Any]) -> str:
    """How the engine is asked to run it: ``batches 1, 16; precision bf16; padding mask=mask, multiple=8``."""
    return "; ".join(f"{name} {', '.join(_parts(value))}" for name, value in settings.items())


def _parts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}={one}" for name, one in value.items()]
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _recipe(recipe: dict[str, Any]) -> str:
    steps = recipe.get("passes")
    names = [_pass(step) for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    return f"{recipe.get('name', 'not said')}: {' → '.join(names) or 'no passes'}"


def _pass(step: dict[str, Any]) -> str:
    parameters = ", ".join(f"{name}={value}" for name, value in step.items() if name != "pass")
    return f"{step.get('pass')}({parameters})"


def _borders(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> RenderableType:
    from tauten.cli._measures import plain

    table = _table("Inputs and outputs", "", "name", "dtype", "shape")
    for side, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            table.add_row(side, plain(spec.name), spec.dtype, plain(spec.shape_text))
    return table


def _stages(stages: Sequence[Stage]) -> RenderableType:
    from tauten.cli._measures import plain

    table = _table("Stages", "graph", "leaves on features of", "that are sure by", "from ", "expected share ")
    for stage in stages:
        table.add_row(
            plain(stage.graph),
            plain(stage.at) if stage.decides else "the whole model",
            plain(stage.confidence),
            "" if stage.threshold is None else f"{stage.threshold:.4g}",
            "" if stage.share is None else f"{stage.share:.1%}",
        )
    return table


def _history(history: Sequence[Record]) -> RenderableType:
    from tauten.cli._measures import plain

    table = _table("History", "pass", "parameters", "seed ", "seconds ")
    for record in history:
        parameters = ", ".join(f"{name}={value}" for name, value in record.parameters.items())
        table.add_row(plain(record.name), plain(parameters), str(record.seed), f"{record.seconds:.2f}")
    return table


def _layers(rows: Sequence[Layer], total: dict[str, float]) -> RenderableType:
    from tauten.cli._measures import plain

    table = _table("Layers", "weight", "shape", "dtype", "zeros ", "entropy ", "bits/w ", "bytes ", "decoded ")
    for row in rows:
        shape = "x".join(str(size) for size in row.shape) or "scalar"
        # Most weights are named after their layer; where one is not, both are told.
        name = row.weight if row.weight.startswith(row.name) else f"{row.name}: {row.weight}"
        table.add_row(
            plain(name),
            shape,
            row.dtype,
            f"{row.zeros:.1%}",
            _bits(row.entropy),
            _bits(row.bits_per_weight),
            "" if row.coded_bytes is None else f"{row.coded_bytes:,}",
            f"{row.bytes:,}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{total['elements']:,}",
        "",
        f"{total['zeros']:.1%}",
        _bits(total["entropy"]),
        _bits(total["bits_per_weight"]),
        f"{total['file_bytes']:,}",
        f"{total['decoded_bytes']:,}",
    )
    return table


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
