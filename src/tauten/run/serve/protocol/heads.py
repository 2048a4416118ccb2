"""Request heads that came before: clients that keep a connection send the same bytes in front of every body."""

from __future__ import annotations

from typing import Final

import httptools

from tauten.run.serve.protocol.messages import Head

_MOST: Final = 1024
_MOST_BYTES: Final = 2048
_PLAIN: Final = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"trailer"))


class Heads:
    """Heads by their bytes. Only what the parser has taken as a whole head is in it, so equal bytes are that head."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.get = self._known.get

    def learn(self, data: bytes, head: Head) -> None:
        """Remember that ``data``, which ends with an empty line, was read as ``head``; not where its body is unclear.

        A full table is emptied: clients that never repeat themselves shall not fill the memory.
        """
        if len(data) > _MOST_BYTES or not head.keep_alive or head.old or _PLAIN & head.headers.keys():
            return
        if not _is_head(data):
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[data] = head


class _Watch:
    def __init__(self) -> None:
        self.complete = False

    def on_headers_complete(self) -> None:
        self.complete = True


def _is_head(data: bytes) -> bool:
    """Whether the parser sees the head end with the last byte of ``data``, and not before."""
    watch = _Watch()
    parser = httptools.HttpRequestParser(watch)
    try:
        parser.feed_data(data[:-1])
        early = watch.complete
        parser.feed_data(data[-1:])
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return False
    return watch.complete and not early
