"""``tauten pack``: an artifact as a single file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tauten.cli.console import console
from tauten.cli.output import JSON, emit


def command(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="The artifact's folder or file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.tauten", help="The file to write.")],
    codec: Annotated[
        str | None,
        typer.Option(help="Code the weights anew: plain, zstd, huffman or arithmetic. Default: as they are."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Write an artifact as one file, for shipping. Weights decode to the same bits, whatever the codec.

    Example: `tauten pack build/digits/best -o digits.tauten --codec arithmetic`

    `evaluate`, `inspect` and `serve` take the file as they take the folder.
    """
    from tauten.artifact.pack import pack
    from tauten.artifact.read import read_artifact

    found = read_artifact(artifact)
    with console.status("packing"):
        made = pack(found, out, codec)
    before, after = found.size_bytes, made.stat().st_size
    document = {"path": str(made), "bytes": after, "artifact_bytes": before, "codec": codec or found.manifest.codec}
    emit(document, as_json, lambda page: page.print(f"{made}: {after:,} bytes for {before:,}", soft_wrap=True))
