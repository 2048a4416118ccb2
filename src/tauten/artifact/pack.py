"""An artifact as a single file, ``model.tauten``, for shipping; ``read_artifact`` reads it as it reads the folder."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from tauten.artifact._packed import SUFFIX, write_packed
from tauten.artifact._replace import replacing, sync
from tauten.artifact.manifest import CHECKSUMS, MANIFEST
from tauten.artifact.read import Artifact, read_artifact
from tauten.artifact.recode import recode
from tauten.errors import ArtifactError, ConfigError


def pack(artifact: Artifact, path: str | os.PathLike[str], codec: str | None = None) -> Path:
    """Write ``artifact`` as the file ``path``, whole or not at all; ``codec`` codes its weights anew first.

    Raises ``ConfigError`` for a name that does not end in ``.tauten``, ``ArtifactError`` where the artifact is damaged
    or the file cannot be written, ``PluginError`` for an unknown codec.
    """
    target = Path(path)
    if target.suffix != SUFFIX:
        raise ConfigError(f"{target}: expected the name of a file that ends in {SUFFIX}")
    if target.is_dir():
        raise ArtifactError(f"{target}: a folder is there; it is left alone")
    if codec is None or codec == artifact.manifest.codec:
        data = _packed(artifact)
    else:
        with tempfile.TemporaryDirectory(prefix="tauten-") as folder:
            data = _packed(recode(artifact, codec, Path(folder) / "recoded"))
    _write(target, data)
    return target


def unpack(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Artifact:
    """Write the artifact in the file ``path`` to ``folder``, whole or not at all, and read it.

    Raises ``ArtifactError`` where the file is damaged, hostile or of another version, or the folder cannot be written.
    """
    if Path(path).suffix != SUFFIX:
        raise ArtifactError(f"{path}: expected a file that ends in {SUFFIX}")
    # Held to being an artifact before anything is written.
    artifact = read_artifact(path)
    with replacing(Path(folder)) as fresh:
        for name in (*artifact.checksums, CHECKSUMS):
            _write_through(fresh / name, artifact.read(name))
    return read_artifact(folder)


def _packed(artifact: Artifact) -> bytes:
    return write_packed({name: artifact.read(name) for name in (*artifact.manifest.files, MANIFEST)})


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_through(fresh, data)
            fresh.replace(path)
            sync(path.parent)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as fault:
        raise ArtifactError(f"{path}: cannot be written: {fault.strerror or fault}") from fault


def _write_through(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
