"""Counts of servers that have died, so that the sums of all who share a port do not go back.

Whoever is asked for the metrics of all leaves in their folder what each has counted. That stands for one that is dead,
and whoever takes its place puts it to what is over. So nothing is lost that was ever told.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tauten.run.serve.one_view import OF_A_PROCESS, merged_metrics

_KINDS: Final = ("counter", "histogram", "untyped")
"""The kinds of what only grows: counters by the names of V2 servers lack the ending that a counter must have."""


class Past:
    """What the server ``index`` of those in ``folder`` writes there and reads, for all of them."""

    def __init__(self, folder: Path, index: int) -> None:
        self._folder = folder
        self._index = index

    def begin(self) -> None:
        """This server counts from 0: what was told of the one before it is over."""
        told = self._path(self._index, "told")
        over = merged_metrics([(0, _read(told)), (0, self.over(self._index))])
        self._write(self._path(self._index, "over"), over)
        told.unlink(missing_ok=True)

    def note(self, number: int, text: bytes) -> None:
        """``text`` are the metrics of the living server ``number``."""
        self._write(self._path(number, "told"), counts_of(text))

    def over(self, number: int) -> bytes:
        """What those have counted that were the server ``number`` before."""
        return _read(self._path(number, "over"))

    def told(self, number: int) -> bytes:
        """What was last told of the server ``number``, which does not answer."""
        return _read(self._path(number, "told"))

    def _path(self, number: int, what: str) -> Path:
        return self._folder / f"{number}.{what}"

    def _write(self, path: Path, text: bytes) -> None:
        fresh = self._folder / f"{self._index}.new"
        fresh.write_bytes(text)
        os.replace(fresh, path)


def counts_of(text: bytes) -> bytes:
    """Of metrics in Prometheus' text format those that only grow, without what is of a process.

    >>> counts_of(b"# TYPE a counter\\na 1\\n# TYPE b gauge\\nb 2\\n")
    b'# TYPE a counter\\na 1\\n'
    """
    kept, grows = [], False
    for line in text.decode().splitlines(keepends=True):
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            grows = kind in _KINDS and not name.startswith(OF_A_PROCESS)
        elif line.startswith("#"):
            continue
        if grows:
            kept.append(line)
    return "".join(kept).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
