"""``tauten export``: an artifact for another engine, or as the plain file that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tauten.cli._making import need_torch
from tauten.cli.console import console
from tauten.cli.output import JSON, emit


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder.")],
    out: Annotated[Path, typer.Argument(help="A folder for --engine, or a file: model.onnx, model.xml, model.pte.")],
    engine: Annotated[
        str | None, typer.Option(help="Write an artifact for this engine: openvino, from one for onnx.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Write an artifact for another engine, or as a plain file for tools that know nothing of Tauten.

    Example: `tauten export build/digits/best digits.onnx`

    Example: `tauten export build/digits/best build/digits-openvino --engine openvino`

    Another engine's artifact is run beside the first, and refused where its answers differ. A graph says less than the
    model did: what cannot be converted is made from the model, with `tauten optimize TASK --engine ENGINE`.
    """
    need_torch("export")
    from tauten.artifact.read import read_artifact
    from tauten.make.convert import convert, write_file

    found = read_artifact(artifact)
    with console.status("converting"):
        made = write_file(found, out) if engine is None else convert(found, engine, out)
    document = {"path": str(made.path), "bytes": made.bytes, "sqnr_db": made.sqnr_db, "engine": engine}
    told = "" if engine is None else f", answers as before to {made.sqnr_db:.1f} dB"
    emit(document, as_json, lambda page: page.print(f"{made.path}: {made.bytes:,} bytes{told}", soft_wrap=True))
