"""The format of a packed artifact, ``model.tauten``: several files in one.

Bytes: the magic number ``TAUTEN`` and the version, 1; the number of files; for each, sorted by name, the length of its
name and the name, whether it is packed by Zstandard (1) or not (0), its size, its size in here, and its SHA-256; then
the files' bytes in that order, and a CRC-32 of all that. Whole numbers are varints (``codecs/_wire.py``). Equal files
always give equal bytes. ``SHA256SUMS`` is not among them: it follows from the others' checksums.

Sizes are held against limits before anything is allocated, checksums before anything is used.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tauten.artifact.manifest import CHECKSUMS, FILE_NAME, MANIFEST
from tauten.codecs._planes import pack, unpack
from tauten.codecs._wire import Reader, varint
from tauten.codecs.codec import default_limit
from tauten.errors import ArtifactError

SUFFIX: Final = ".tauten"
MAGIC: Final = b"TAUTEN"
VERSION: Final = 1
_MOST_FILES: Final = 512
_DIGEST_BYTES: Final = 32
_CHECK_BYTES: Final = 4
_LARGE: Final = 8 * 2**20
_BEST, _QUICK = 19, 9


@dataclass(frozen=True)
class Entry:
    """One file: ``size`` bytes, of which ``stored`` stand in the packed file, by Zstandard or as they are."""

    name: str
    by_zstandard: bool
    size: int
    digest: bytes
    stored: memoryview

    def read(self) -> bytes:
        """The file's bytes. Raises ``ArtifactError`` where they are not those that were packed."""
        data = unpack(self.stored, self.size) if self.by_zstandard else bytes(self.stored)
        if hashlib.sha256(data).digest() != self.digest:
            raise ArtifactError(f"{self.name}: its bytes are not those that were packed (sha256 differs): damaged")
        return data


def write_packed(files: Mapping[str, bytes]) -> bytes:
    """The bytes of a packed file."""
    head = bytearray(MAGIC + bytes([VERSION]) + varint(len(files)))
    bodies = []
    for name, data in sorted(files.items()):
        # Coded weights are as small as they get; what else there is says much twice.
        small = pack(data, _BEST if len(data) <= _LARGE else _QUICK)
        helps = len(small) < len(data)
        bodies.append(small if helps else data)
        head += varint(len(name)) + name.encode("ascii") + bytes([helps])
        head += varint(len(data)) + varint(len(bodies[-1])) + hashlib.sha256(data).digest()
    whole = bytes(head) + b"".join(bodies)
    return whole + zlib.crc32(whole).to_bytes(_CHECK_BYTES, "little")


def read_packed(data: bytes | bytearray, limit_bytes: int | None = None) -> dict[str, Entry]:
    """The files in the bytes of a packed one, by name, none of them unpacked yet.

    ``limit_bytes`` is the most that they may hold together. Raises ``ArtifactError``.
    """
    reader = Reader(memoryview(data)[: max(0, len(data) - _CHECK_BYTES)])
    try:
        found = _entries(reader, default_limit(len(data)) if limit_bytes is None else limit_bytes)
        reader.end("the files")
    except ArtifactError as fault:
        raise ArtifactError(str(fault).removeprefix("weights: ")) from None
    if zlib.crc32(reader.view).to_bytes(_CHECK_BYTES, "little") != data[-_CHECK_BYTES:]:
        raise ArtifactError("its bytes are not those that were written (CRC-32 differs): damaged; copy it again")
    return found


def checksums(entries: Mapping[str, Entry]) -> bytes:
    """The file ``SHA256SUMS`` of them."""
    return "".join(f"{entry.digest.hex()}  {name}\n" for name, entry in sorted(entries.items())).encode()


def _entries(reader: Reader, limit: int) -> dict[str, Entry]:
    magic = bytes(reader.take(min(len(MAGIC), reader.left)))
    if magic != MAGIC:
        raise ArtifactError(f"expected a file that begins with {MAGIC!r}, got {magic!r}")
    version = reader.byte()
    if version != VERSION:
        raise ArtifactError(f"expected version {VERSION}, got {version}: made by another version of Tauten")
    count = reader.varint()
    if count > _MOST_FILES:
        raise ArtifactError(f"expected at most {_MOST_FILES} files, got {count}")
    heads = []
    for _ in range(count):
        heads.append(_head(reader))
        limit -= heads[-1][2]
        if limit < 0:
            raise ArtifactError(f"{heads[-1][0]}: expected files of fewer bytes together")
    names = [head[0] for head in heads]
    if sorted(set(names)) != names or MANIFEST not in names:
        raise ArtifactError(f"expected names in order, each once, {MANIFEST} among them, got {names[:5]}")
    return {
        name: Entry(name, by_zstandard, size, digest, reader.take(stored))
        for name, by_zstandard, size, stored, digest in heads
    }


def _head(reader: Reader) -> tuple[str, bool, int, int, bytes]:
    name = bytes(reader.take(reader.varint())).decode("ascii", "replace")
    if not re.fullmatch(FILE_NAME, name) or name == CHECKSUMS:
        raise ArtifactError(f"expected the plain name of a file, got {name[:80]!r}")
    by_zstandard, size, stored = reader.byte(), reader.varint(), reader.varint()
    if by_zstandard > 1 or (not by_zstandard and size != stored):
        raise ArtifactError(f"{name}: expected a size, and whether it is packed, got {by_zstandard}, {size}, {stored}")
    return name, bool(by_zstandard), size, stored, bytes(reader.take(_DIGEST_BYTES))
