"""Which answers are kept: a policy without I/O and without a clock.

S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP 2023), counted in
bytes in place of objects::

    new ──► small (10 %) ──asked twice──► main (90 %) ──not asked──► gone
               └──────not──────► ghosts (keys alone) ──asked again──► main

Answers that are asked for once pass through ``small`` and leave ``main`` to those that come again, which a plain LRU
would drop for them. A hit moves nothing: it counts.
"""

from __future__ import annotations

from collections import OrderedDict
from sys import getsizeof
from typing import Final

from tauten.core.tensor import Array

Value = tuple[Array, ...]
"""An answer: an array for each of the model's outputs, read-only, with memory of its own."""

ENTRY_BYTES: Final = 480
"""What an entry takes beside its arrays: its key, its places in queues, and Python's objects."""
ARRAY_BYTES: Final = 160
"""What an array takes beside its elements."""
GHOST_BYTES: Final = 200
"""What a key takes whose answer is gone."""

_MOST_USES: Final = 3
_ENOUGH_USES: Final = 2
_LARGEST_SHARE: Final = 4


class _Entry:
    __slots__ = ("expires_ns", "nbytes", "owner", "uses", "value")

    def __init__(self, value: Value, nbytes: int, expires_ns: int, owner: object) -> None:
        self.value = value
        self.nbytes = nbytes
        self.expires_ns = expires_ns
        self.owner = owner
        self.uses = 0


class Memory:
    """Answers by key, at most ``max_bytes`` of them, none older than ``max_age_ns``.

    Times are nanoseconds of one clock. ``bytes`` is what is taken now, ``evictions`` counts answers that had to make
    room.
    """

    def __init__(self, max_bytes: int, max_age_ns: int) -> None:
        self.max_bytes = max_bytes
        self.max_age_ns = max_age_ns
        self.bytes = 0
        self.evictions = 0
        self._small_bytes = 0
        self._small: OrderedDict[bytes, _Entry] = OrderedDict()
        self._main: OrderedDict[bytes, _Entry] = OrderedDict()
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def get(self, key: bytes, now_ns: int) -> Value | None:
        """The answer under ``key``, or ``None``."""
        entry = self._main.get(key)
        if entry is None:
            entry = self._small.get(key)
            if entry is None:
                return None
        if entry.expires_ns <= now_ns:
            self._remove(key)
            return None
        if entry.uses < _MOST_USES:
            entry.uses += 1
        return entry.value

    def put(self, key: bytes, value: Value, now_ns: int, *, age_ns: int = 0, owner: object = None) -> bool:
        """Keep ``value``, which is ``age_ns`` old already, for ``owner``.

        Says whether it was kept: not where it is too old, or would take more than a quarter of all room.
        """
        if key in self._small or key in self._main:
            self._remove(key)
        nbytes = ENTRY_BYTES
        for array in value:
            nbytes += ARRAY_BYTES + array.nbytes
            if array.dtype.hasobject:  # elements of bytes, each an object of its own
                nbytes += sum(map(getsizeof, array.flat))
        if nbytes > self.max_bytes // _LARGEST_SHARE or age_ns >= self.max_age_ns:
            return False
        known = key in self._ghosts
        if known:
            del self._ghosts[key]
            self.bytes -= GHOST_BYTES
        while self.bytes + nbytes > self.max_bytes:
            self._evict(now_ns)
        entry = _Entry(value, nbytes, now_ns + self.max_age_ns - age_ns, owner)
        self.bytes += nbytes
        if known:
            self._main[key] = entry
        else:
            self._small[key] = entry
            self._small_bytes += nbytes
        return True

    def drop(self, owner: object) -> None:
        """Forget all that was kept for ``owner``."""
        for queue in (self._small, self._main):
            for key in [key for key, entry in queue.items() if entry.owner is owner]:
                self._remove(key)

    def _remove(self, key: bytes) -> None:
        entry = self._main.pop(key, None)
        if entry is None:
            entry = self._small.pop(key, None)
            if entry is None:
                return
            self._small_bytes -= entry.nbytes
        self.bytes -= entry.nbytes

    def _evict(self, now_ns: int) -> None:
        """Make one step towards more room: an answer or a ghost goes, or an answer moves on."""
        if len(self._ghosts) > len(self._small) + len(self._main):
            self._ghosts.popitem(last=False)
            self.bytes -= GHOST_BYTES
        elif self._small and (self._small_bytes > self.max_bytes // 10 or not self._main):
            self._evict_small(now_ns)
        else:
            self._evict_main(now_ns)

    def _evict_small(self, now_ns: int) -> None:
        key, entry = self._small.popitem(last=False)
        self._small_bytes -= entry.nbytes
        if entry.expires_ns <= now_ns:
            self.bytes -= entry.nbytes
        elif entry.uses >= _ENOUGH_USES:
            entry.uses = 0
            self._main[key] = entry
        else:
            self.bytes += GHOST_BYTES - entry.nbytes
            self.evictions += 1
            self._ghosts[key] = None

    def _evict_main(self, now_ns: int) -> None:
        key, entry = self._main.popitem(last=False)
        if entry.uses and entry.expires_ns > now_ns:
            entry.uses -= 1
            self._main[key] = entry
            return
        self.bytes -= entry.nbytes
        self.evictions += entry.expires_ns > now_ns
