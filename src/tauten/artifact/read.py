"""Reading an artifact without trusting it: everything is checked before anything is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauten.artifact.manifest import CHECKSUMS, MANIFEST, SCHEMA_VERSION, Manifest
from tauten.codecs import CODECS
from tauten.core.tensor import Arrays
from tauten.errors import ArtifactError, ConfigError, PluginError

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_CHECKSUMS_BYTES = 64 * 2**10
MAX_GRAPH_BYTES = 512 * 2**20
_BLOCK = 1 << 20
_CHECKSUM_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})")


@dataclass(frozen=True)
class Artifact:
    """A directory whose every file was found whole. Make one with ``read_artifact``."""

    path: Path
    manifest: Manifest
    checksums: dict[str, str]

    def graph(self) -> bytes:
        """The graph file's bytes, checked again as they are read."""
        return self._bytes(self.manifest.graph)

    def weights(self) -> Arrays:
        """The weights by name, decoded."""
        try:
            codec = CODECS.get(self.manifest.codec)
        except PluginError as fault:
            raise ArtifactError(f"{self.path}: {fault}") from None
        arrays = codec.decode(self._bytes(self.manifest.weights))
        held = sum(array.nbytes for array in arrays.values())
        if held != self.manifest.weights_bytes:
            raise ArtifactError(
                f"{self.path}: expected {self.manifest.weights_bytes} bytes of decoded weights, got {held}"
            )
        return arrays

    @property
    def size_bytes(self) -> int:
        """What the artifact weighs: the bytes of all its files, manifest and checksums included."""
        names = [*self.manifest.files, MANIFEST, CHECKSUMS]
        return sum((self.path / name).stat().st_size for name in names)

    def _bytes(self, name: str) -> bytes:
        data = _read(self.path, name, self.manifest.files[name])
        if hashlib.sha256(data).hexdigest() != self.checksums[name]:
            raise ArtifactError(_changed(self.path / name))
        return data


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """The artifact in the folder ``path``.

    Raises ``ArtifactError`` where the folder is none, a file is missing, changed, larger or smaller than said, a link
    or outside the folder, or where the schema version is one that this Tauten does not know.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: expected an artifact (a folder with {MANIFEST}), found no folder")
    checksums = _read_checksums(folder)
    if MANIFEST not in checksums:
        raise ArtifactError(f"{folder / CHECKSUMS}: expected a line for {MANIFEST}, found none")
    raw = _read(folder, MANIFEST, None, MAX_MANIFEST_BYTES)
    document = _parse(folder, raw)
    # The version comes before the checksum: a newer Tauten's artifact deserves the message that says so.
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{folder / MANIFEST}: expected schema_version {SCHEMA_VERSION}, got {document.get('schema_version')!r}: "
            "made by another version of Tauten"
        )
    if hashlib.sha256(raw).hexdigest() != checksums[MANIFEST]:
        raise ArtifactError(_changed(folder / MANIFEST))
    try:
        manifest = Manifest.from_json(document)
    except ConfigError as fault:
        raise ArtifactError(f"{folder / MANIFEST}: {fault}") from None
    _check_files(folder, manifest, checksums)
    return Artifact(folder, manifest, checksums)


def _read_checksums(folder: Path) -> dict[str, str]:
    text = _read(folder, CHECKSUMS, None, MAX_CHECKSUMS_BYTES).decode("ascii", "replace")
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = _CHECKSUM_LINE.fullmatch(line)
        if not match or match[2] in found:
            raise ArtifactError(f"{folder / CHECKSUMS}: expected lines of '<sha256>  <file>', got {line[:80]!r}")
        found[match[2]] = match[1]
    return found


def _parse(folder: Path, raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise ArtifactError(f"{folder / MANIFEST}: expected JSON: {fault}") from None
    if not isinstance(document, dict):
        raise ArtifactError(f"{folder / MANIFEST}: expected a JSON object, got {type(document).__name__}")
    return document


def _check_files(folder: Path, manifest: Manifest, checksums: dict[str, str]) -> None:
    expected = {*manifest.files, MANIFEST}
    if expected != set(checksums):
        odd = sorted(expected ^ set(checksums))
        raise ArtifactError(f"{folder}: {MANIFEST} and {CHECKSUMS} do not name the same files: {odd}")
    for role in (manifest.graph, manifest.weights):
        if role not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST}: names {role!r}, which is not among its files")
    if manifest.files[manifest.graph] > MAX_GRAPH_BYTES:
        raise ArtifactError(f"{folder}: expected a graph of at most {MAX_GRAPH_BYTES} bytes")
    for name, size in manifest.files.items():
        digest = hashlib.sha256()
        for block in _blocks(folder, name, size):
            digest.update(block)
        if digest.hexdigest() != checksums[name]:
            raise ArtifactError(_changed(folder / name))


def _changed(path: Path) -> str:
    return f"{path}: its bytes are not those that were written (sha256 differs): damaged or changed; make it again"


def _read(folder: Path, name: str, size: int | None, limit: int | None = None) -> bytes:
    return b"".join(_blocks(folder, name, size, limit))


def _blocks(folder: Path, name: str, size: int | None, limit: int | None = None) -> Iterator[bytes]:
    """The bytes of one regular file inside ``folder``, never more than said."""
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as fault:
        raise ArtifactError(f"{path}: cannot be read: {fault.strerror} (missing, or a link)") from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError(f"{path}: expected a regular file")
        if size is not None and found.st_size != size:
            raise ArtifactError(f"{path}: expected {size} bytes, found {found.st_size}")
        if limit is not None and found.st_size > limit:
            raise ArtifactError(f"{path}: expected at most {limit} bytes, found {found.st_size}")
        left = found.st_size
        while left:
            block = file.read(min(_BLOCK, left))
            if not block:
                raise ArtifactError(f"{path}: ended {left} bytes early")
            left -= len(block)
            yield block
