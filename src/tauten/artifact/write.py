"""Writing an artifact so that it is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tauten.artifact._replace import replacing
from tauten.artifact.manifest import CHECKSUMS, MANIFEST, Manifest
from tauten.artifact.read import Artifact, read_artifact
from tauten.core.measure import Measure
from tauten.errors import ConfigError

SIZE = "size_bytes"
WhatSize = Literal["artifact", "weights"]


def write_artifact(path: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes]) -> Artifact:
    """Write ``files`` and the manifest (its ``files`` are filled in) to the folder ``path``, whole or not at all.

    An artifact that is already there is replaced in one step. Raises ``ConfigError`` for a file's name that is not
    plain, ``ArtifactError`` where the folder cannot be written.
    """
    folder = Path(path)
    sizes = {name: len(data) for name, data in files.items()}
    # Built before anything is written: it holds the names, which say where bytes go, to being plain.
    manifest = Manifest.from_json({**manifest.to_json(), "files": sizes})
    wanted = (*manifest.graphs, manifest.weights)
    if set(wanted) - set(sizes):
        raise ConfigError(f"expected files {' and '.join(map(repr, wanted))}, got {sorted(sizes)}")
    with replacing(folder) as fresh:
        for name, data in files.items():
            _write(fresh / name, data)
        _seal(fresh, manifest)
    return read_artifact(folder)


def write_measures(artifact: Artifact, measures: Mapping[str, Measure], size: WhatSize = "artifact") -> Artifact:
    """The same artifact with ``measures`` added to those in its manifest, and its own ``size_bytes`` among them.

    The graph and the weights keep their bytes: what was measured is what is shipped. ``size`` says what counts:
    all files, or the weights file alone (the yardstick for an untouched PyTorch model).
    """
    manifest = artifact.manifest
    with replacing(artifact.path) as fresh:
        for name in manifest.files:
            _link(artifact.path / name, fresh / name)
        together = {**manifest.measures, **measures}
        _seal(fresh, manifest.model_copy(update={"measures": together}), artifact.checksums, size)
    return read_artifact(artifact.path)


def copy_artifact(artifact: Artifact, path: str | os.PathLike[str]) -> Artifact:
    """The same bytes in another folder."""
    folder = Path(path)
    with replacing(folder) as fresh:
        for name in (*artifact.manifest.files, MANIFEST, CHECKSUMS):
            # Copied, not linked: an edit of one must not reach the other.
            _copy(artifact.path / name, fresh / name)
    return read_artifact(folder)


def _seal(
    folder: Path, manifest: Manifest, known: Mapping[str, str] | None = None, size: WhatSize = "artifact"
) -> None:
    """Write manifest and checksums; a ``size_bytes`` among the measures becomes what the files really weigh."""
    known = known or {}
    others = {name: known.get(name) or _digest(folder / name) for name in manifest.files}
    # Each line of the checksums file: 64 digits, two blanks, the name, a line feed.
    beside = sum(manifest.files.values()) + sum(67 + len(name) for name in (*others, MANIFEST))
    if size == "weights":
        text = _text(_with_size(manifest, manifest.files[manifest.weights], "weights"))
    else:
        # The manifest states a total that holds the manifest: repeat until the total's digits agree with it.
        total = -1
        text = _text(_with_size(manifest, 0, "artifact"))
        while total != beside + len(text):
            total = beside + len(text)
            text = _text(_with_size(manifest, total, "artifact"))
    _write(folder / MANIFEST, text)
    sums = {**others, MANIFEST: hashlib.sha256(text).hexdigest()}
    _write(folder / CHECKSUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_size(manifest: Manifest, total: int, what: WhatSize) -> Manifest:
    on = "files of the artifact" if what == "artifact" else "weights file"
    measure = Measure.exact(total, "bytes", "lower", on=on)
    return manifest.model_copy(update={"measures": {**manifest.measures, SIZE: measure}})


def _text(manifest: Manifest) -> bytes:
    return json.dumps(manifest.to_json(), separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as file, target.open("xb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
