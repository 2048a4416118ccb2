"""A folder that takes another's place in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tauten.artifact.manifest import MANIFEST
from tauten.errors import ArtifactError

_SUFFIX: Final = ".partial"
_ABANDONED_S: Final = 3600.0
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder beside ``path`` that takes its place when the block ends well, and is removed when it does not.

    On Linux the two are exchanged in one step: whenever the writer is killed, ``path`` is the old folder or the new
    one. Elsewhere there is a moment between two renames in which ``path`` is not there; the old folder then lies
    beside it. What a killed writer left is removed by a later one.

    Raises ``ArtifactError`` where the disk refuses, or where ``path`` is something other than an artifact or an empty
    folder: that is left alone.
    """
    # A link to an artifact stays a link: what it points to is replaced.
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        fresh = _beside(path)
        fresh.mkdir()
        try:
            yield fresh
            sync(fresh)
            _take_place(fresh, path)
            sync(path.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as fault:
        raise ArtifactError(f"{path}: cannot be written: {fault.strerror or fault}") from fault


def sync(folder: Path) -> None:
    """Make the names in ``folder`` last through a power cut."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_replaceable(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir() or (not (path / MANIFEST).is_file() and any(path.iterdir())):
        raise ArtifactError(f"{path}: expected an artifact, an empty folder or nothing; what is there is left alone")


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{secrets.token_hex(8)}{_SUFFIX}"


def _take_place(fresh: Path, path: Path) -> None:
    """Put ``fresh`` where ``path`` is; afterwards ``fresh`` is what was there, or nothing."""
    if not path.exists():
        fresh.rename(path)
    elif not _exchange(fresh, path):
        old = _beside(path)
        path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders by Linux's ``renameat2``; false where the system or the file system has none."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sweep(path: Path) -> None:
    """Remove what killed writers left of ``path``, once it is so old that none of them can still be at work."""
    now = time.time()
    for entry in path.parent.iterdir():
        if entry.name.startswith(f".{path.name}.") and entry.name.endswith(_SUFFIX) and entry.is_dir():
            middle = entry.name[len(path.name) + 2 : -len(_SUFFIX)]
            if "." not in middle and now - entry.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(entry, ignore_errors=True)
