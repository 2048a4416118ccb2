"""Reading an artifact without trusting it: everything is checked before anything is used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tauten.artifact._packed import SUFFIX, Entry, checksums, read_packed
from tauten.artifact.manifest import CHECKSUMS, FILE_NAME, MANIFEST, SCHEMA_VERSION, Manifest
from tauten.artifact.nibbles import unpack_nibbles
from tauten.codecs import CODECS
from tauten.codecs.codec import default_limit
from tauten.core.tensor import Arrays
from tauten.errors import ArtifactError, ConfigError, PluginError

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_CHECKSUMS_BYTES = 64 * 2**10
MAX_GRAPH_BYTES = 512 * 2**20
_BLOCK = 1 << 20
_CHECKSUM_LINE = re.compile(rf"([0-9a-f]{{64}})  ({FILE_NAME})")


@dataclass(frozen=True)
class Artifact:
    """A folder, or a packed file, whose every part was found whole. Make one with ``read_artifact``."""

    path: Path
    manifest: Manifest
    checksums: dict[str, str]
    size_bytes: int
    """What the artifact weighs: the bytes of all its files, manifest and checksums included, or of the packed file."""
    held: Mapping[str, int] | None = None
    """The open files that it is read from, as ``hold`` gives them; those that lie at ``path`` where there are none."""

    def read(self, name: str) -> bytes:
        """The bytes of one of its files, checked again as they are read. Raises ``ArtifactError``."""
        if name == CHECKSUMS:
            return "".join(f"{digest}  {file}\n" for file, digest in sorted(self.checksums.items())).encode()
        if name not in self.checksums:
            raise ArtifactError(f"{self.path}: has no file {_short(name)}")
        return bytes(self._bytes(name))

    def graph(self) -> bytes:
        """The graph file's bytes, checked again as they are read."""
        return bytes(self._bytes(self.manifest.graph))

    def graphs(self) -> tuple[bytes, ...]:
        """The bytes of the graph file, or of the graph files of all stages in order."""
        return tuple(bytes(self._bytes(name)) for name in self.manifest.graphs)

    def weights(self) -> Arrays:
        """The weights by name, decoded; 4-bit ones as int8 numbers from -8 to 7."""
        try:
            codec = CODECS.get(self.manifest.codec)
        except PluginError as fault:
            raise ArtifactError(f"{self.path}: {fault}") from None
        data = self._bytes(self.manifest.weights)
        # The manifest came from where the weights did: what it claims is no limit on its own.
        arrays = codec.decode(data, min(self.manifest.weights_bytes, default_limit(len(data))))
        held = sum(array.nbytes for array in arrays.values())
        if held != self.manifest.weights_bytes:
            raise ArtifactError(
                f"{self.path}: expected {self.manifest.weights_bytes} bytes of decoded weights, got {held}"
            )
        missing = sorted(set(self.manifest.four_bit) - set(arrays))
        if missing:
            raise ArtifactError(f"{self.path}: {MANIFEST} names 4-bit weights that are not there: {missing[:5]}")
        for name, shape in self.manifest.four_bit.items():
            arrays[name] = unpack_nibbles(arrays[name], shape)
        return arrays

    def coded_bytes(self) -> dict[str, int]:
        """What each weight takes in the weights file, by name; nothing where its codec does not tell."""
        tell = getattr(CODECS.get(self.manifest.codec), "coded_bytes", None)
        if tell is None:
            return {}
        told: dict[str, int] = tell(self._bytes(self.manifest.weights), self.manifest.weights_bytes)
        return told

    def _bytes(self, name: str) -> bytearray:
        with _opened(self.path, self.held) as folder:
            # The manifest has no line for itself.
            data = folder.read(name, self.manifest.files.get(name), MAX_MANIFEST_BYTES if name == MANIFEST else None)
        if hashlib.sha256(data).hexdigest() != self.checksums[name]:
            raise ArtifactError(_changed(self.path / name))
        return data


def read_artifact(path: str | os.PathLike[str], held: Mapping[str, int] | None = None) -> Artifact:
    """The artifact in the folder ``path``, or in a packed file whose name ends in ``.tauten``.

    With ``held``, it is read from these open files and not from what lies there by now (see ``hold``). Raises
    ``ArtifactError`` where it is neither, a file is missing, changed, larger or smaller than said, a link or outside
    the folder, or where the schema version is one that this Tauten does not know.
    """
    path = Path(path)
    # Opened once: all files are then of one artifact, even where another takes its place meanwhile.
    with _opened(path, held) as folder:
        sums = folder.read(CHECKSUMS, limit=MAX_CHECKSUMS_BYTES)
        digests = _parse_checksums(path, sums)
        if MANIFEST not in digests:
            raise ArtifactError(f"{path / CHECKSUMS}: expected a line for {MANIFEST}, found none")
        raw = folder.read(MANIFEST, limit=MAX_MANIFEST_BYTES)
        document = _parse(path, raw)
        # The version comes before the checksum: a newer Tauten's artifact deserves the message that says so.
        version = document.get("schema_version")
        if type(version) is not int or version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path / MANIFEST}: expected schema_version {SCHEMA_VERSION}, got {_short(version)}: "
                "made by another version of Tauten"
            )
        if hashlib.sha256(raw).hexdigest() != digests[MANIFEST]:
            raise ArtifactError(_changed(path / MANIFEST))
        try:
            manifest = Manifest.from_json(document)
        except ConfigError as fault:
            raise ArtifactError(f"{path / MANIFEST}: {fault}") from None
        _check_files(folder, manifest, digests)
        whole = folder.whole_bytes or sum(manifest.files.values()) + len(raw) + len(sums)
    return Artifact(path, manifest, digests, whole, held)


def hold(artifact: Artifact) -> dict[str, int]:
    """Open every file of ``artifact``, by name; a packed one as "". The caller closes the descriptors.

    Another artifact that takes this one's place leaves them as they are: ``read_artifact`` finds this one in them, and
    so does a process that inherits them. They are held to its checksums only then, since a file that is overwritten
    where it lies changes under them. Linux only. Raises ``ArtifactError`` where a file has gone.
    """
    path, packed = artifact.path, artifact.path.suffix == SUFFIX and not artifact.path.is_dir()
    opened: dict[str, int] = {}
    try:
        for name in ("",) if packed else (*artifact.checksums, CHECKSUMS):
            opened[name] = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as fault:
        for descriptor in opened.values():
            os.close(descriptor)
        raise ArtifactError(f"{path}: cannot be read: {fault.strerror}") from None
    return opened


def _parse_checksums(path: Path, raw: bytes | bytearray) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in raw.split(b"\n")[:-1]:
        match = _CHECKSUM_LINE.fullmatch(line.decode("ascii", "replace"))
        if not match or match[2] in found:
            raise ArtifactError(f"{path / CHECKSUMS}: expected lines of '<sha256>  <file>', got {_short(line)}")
        found[match[2]] = match[1]
    if not raw.endswith(b"\n"):
        raise ArtifactError(f"{path / CHECKSUMS}: ends in the middle of a line")
    return found


def _parse(path: Path, raw: bytes | bytearray) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        # An escaped half of a character passes as JSON and fails later, wherever it is first printed.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as fault:
        raise ArtifactError(f"{path / MANIFEST}: expected JSON: {_short(fault)}") from None
    if not isinstance(document, dict):
        raise ArtifactError(f"{path / MANIFEST}: expected a JSON object, got {type(document).__name__}")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _check_files(folder: _Folder | _Packed, manifest: Manifest, checksums: dict[str, str]) -> None:
    path = folder.path
    expected = {*manifest.files, MANIFEST}
    if expected != set(checksums):
        odd = sorted(expected ^ set(checksums))
        raise ArtifactError(f"{path}: {MANIFEST} and {CHECKSUMS} do not name the same files: {odd[:5]}")
    for role in (*manifest.graphs, manifest.weights):
        if role not in manifest.files:
            raise ArtifactError(f"{path / MANIFEST}: names {role!r}, which is not among its files")
    if max(manifest.files[name] for name in manifest.graphs) > MAX_GRAPH_BYTES:
        raise ArtifactError(f"{path}: expected a graph of at most {MAX_GRAPH_BYTES} bytes")
    for name, size in manifest.files.items():
        digest = hashlib.sha256()
        for block in folder.blocks(name, size):
            digest.update(block)
        if digest.hexdigest() != checksums[name]:
            raise ArtifactError(_changed(path / name))


def _changed(path: Path) -> str:
    return f"{path}: its bytes are not those that were written (sha256 differs): damaged or changed; make it again"


def _short(value: object) -> str:
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@contextmanager
def _opened(path: Path, held: Mapping[str, int] | None) -> Iterator[_Folder | _Packed]:
    if held is not None:
        # Each is opened anew: a position that is shared with others who read it would be moved by them.
        files = {name: f"/proc/self/fd/{descriptor}" for name, descriptor in held.items()}
        yield _Packed.open(path, files[""]) if "" in files else _Folder(path, -1, files=files)
        return
    if path.suffix == SUFFIX and not path.is_dir():
        yield _Packed.open(path)
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (OSError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else fault
        raise ArtifactError(f"{path}: expected an artifact (a folder with {MANIFEST}): {why}") from None
    try:
        yield _Folder(path, descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Folder:
    """An open folder, whose regular files are read, links not followed; or ``files`` that somebody holds open."""

    path: Path
    descriptor: int
    whole_bytes: int = 0
    files: Mapping[str, str] | None = None

    def read(self, name: str, size: int | None = None, limit: int | None = None) -> bytearray:
        """All bytes of a file that must have ``size`` bytes, and no more than ``limit``."""
        found = bytearray()
        for block in self.blocks(name, size, limit):
            found += block
        return found

    def blocks(self, name: str, size: int | None = None, limit: int | None = None) -> Iterator[bytes]:
        """The same, a block at a time; never more bytes than the file had when it was opened."""
        path = self.path / name
        try:
            if self.files is not None:
                opened = os.open(self.files.get(name, ""), os.O_RDONLY | os.O_NONBLOCK)
            else:
                # Without blocking: a pipe would wait for somebody to write.
                opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self.descriptor)
        except OSError as fault:
            why = "it is a link" if fault.errno == errno.ELOOP else fault.strerror
            raise ArtifactError(f"{path}: cannot be read: {why}") from None
        yield from _blocks(path, opened, size, limit)


@dataclass(frozen=True)
class _Packed:
    """A packed artifact in memory, whose files are unpacked when they are read."""

    path: Path
    entries: dict[str, Entry]
    whole_bytes: int

    @classmethod
    def open(cls, path: Path, file: str | None = None) -> _Packed:
        try:
            opened = os.open(file or path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError) as fault:
            why = fault.strerror if isinstance(fault, OSError) else fault
            raise ArtifactError(f"{path}: cannot be read: {why}") from None
        data = b"".join(_blocks(path, opened, None, None))
        try:
            return cls(path, read_packed(data), len(data))
        except ArtifactError as fault:
            raise ArtifactError(f"{path}: {fault}") from None

    def read(self, name: str, size: int | None = None, limit: int | None = None) -> bytearray:
        """All bytes of a file that must have ``size`` bytes, and no more than ``limit``."""
        if name == CHECKSUMS:
            return bytearray(checksums(self.entries))
        entry = self.entries.get(name)
        if entry is None:
            raise ArtifactError(f"{self.path}: expected a file {name!r} in it, found none")
        _check_size(self.path / name, entry.size, size, limit)
        try:
            return bytearray(entry.read())
        except ArtifactError as fault:
            raise ArtifactError(f"{self.path}: {fault}") from None

    def blocks(self, name: str, size: int | None = None, limit: int | None = None) -> Iterator[bytes]:
        """The same, for those who want it in blocks."""
        yield bytes(self.read(name, size, limit))


def _blocks(path: Path, opened: int, size: int | None, limit: int | None) -> Iterator[bytes]:
    """The bytes of an open file, which is closed after."""
    try:
        with open(opened, "rb", buffering=0) as file:
            found = os.fstat(opened)
            if not stat.S_ISREG(found.st_mode):
                raise ArtifactError(f"{path}: expected a regular file")
            _check_size(path, found.st_size, size, limit)
            left = found.st_size
            while left:
                block = file.read(min(_BLOCK, left))
                if not block:
                    raise ArtifactError(f"{path}: ended {left} bytes early")
                left -= len(block)
                yield block
    except OSError as fault:
        raise ArtifactError(f"{path}: cannot be read: {fault.strerror}") from None


def _check_size(path: Path, found: int, size: int | None, limit: int | None) -> None:
    if size is not None and found != size:
        raise ArtifactError(f"{path}: expected {size} bytes, found {found}")
    if limit is not None and found > limit:
        raise ArtifactError(f"{path}: expected at most {limit} bytes, found {found}")
