"""An idle instance takes the next batch; where none is idle, calls gather until one is."""

from __future__ import annotations

from collections.abc import Sequence

from tauten.run.serve.balancer import Balancer

__all__ = ["Pull"]


class Pull(Balancer):
    """The first idle instance, whatever the depth.

    Nothing waits behind a batch that takes long, and batches grow while all are busy. The first, so that under a light
    load the same few stay warm and the others sleep.
    """

    def pick(self, outstanding: Sequence[int | None]) -> int | None:
        return outstanding.index(0) if 0 in outstanding else None
