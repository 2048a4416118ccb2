"""Counts of servers that have died, so that the sums of all who share a port do not go back.

Whoever is asked for the metrics of all leaves in their folder what each has counted. That stands for one that is dead,
and whoever takes its place puts it to what is over. So nothing is lost that was ever told.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

from tauten.run.serve.one_view import OF_A_PROCESS, merged_metrics

_KINDS: Final = ("counter", "histogram", "untyped")
"""The kinds of what only grows: counters by the names of V2 servers lack the ending that a counter must have."""


class Counted(NamedTuple):
    """``told`` is what a server has counted by when it was asked last, ``over`` what those did that it follows."""

    told: bytes
    over: bytes


class Past:
    """What the server ``index`` of those in ``folder`` writes there and reads, for all of them."""

    def __init__(self, folder: Path, index: int) -> None:
        self._folder = folder
        self._index = index

    def begin(self) -> None:
        """This server counts from 0: what was told of the one before it is over."""
        told, over = self.of(self._index)
        self._write(self._index, Counted(b"", merged_metrics([(0, told), (0, over)])))

    def note(self, number: int, text: bytes) -> None:
        """``text`` are the metrics of the living server ``number``."""
        self._write(number, self.of(number)._replace(told=counts_of(text)))

    def of(self, number: int) -> Counted:
        """What the server ``number`` and those before it have counted."""
        try:
            told, over = json.loads(self._path(number).read_bytes())
        except FileNotFoundError:
            return Counted(b"", b"")
        return Counted(told.encode(), over.encode())

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.counted"

    def _write(self, number: int, counted: Counted) -> None:
        """In one step: who reads must not find the same counts in both, nor in none."""
        fresh = self._folder / f"{self._index}.new"
        fresh.write_text(json.dumps([text.decode() for text in counted]), "utf-8")
        fresh.replace(self._path(number))


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
