"""``tauten unpack``: the artifact in a file that ``tauten pack`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tauten.cli.console import console
from tauten.cli.output import JSON, emit


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE.tauten", help="The packed artifact.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")],
    as_json: JSON = False,
) -> None:
    """Write the artifact in a packed file to a folder, after everything in it was checked.

    Example: `tauten unpack digits.tauten -o build/digits-shipped`

    An artifact that is there is replaced in one step; anything else that is there is left alone, with an error.
    """
    from tauten.artifact.pack import unpack

    with console.status("unpacking"):
        made = unpack(file, out)
    document = {"path": str(made.path), "name": made.manifest.name, "bytes": made.size_bytes, "verified": True}
    emit(document, as_json, lambda page: page.print(f"{made.path}: {made.size_bytes:,} bytes", soft_wrap=True))
