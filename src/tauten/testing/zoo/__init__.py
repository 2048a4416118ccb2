"""Common architectures at small size, to hold the graph of coupled channels, passes and lowerings against.

Those of ``transformers`` are built from configurations when they are asked for, with random weights; nothing is
downloaded, and importing this needs no ``transformers``.
"""

from __future__ import annotations

from tauten.testing.zoo.entry import ZooModel
from tauten.testing.zoo.handmade import HANDMADE
from tauten.testing.zoo.transformers_text import TEXT
from tauten.testing.zoo.transformers_vision import VISION

__all__ = ["HANDMADE", "TEXT", "VISION", "ZOO", "ZooModel"]

ZOO: tuple[ZooModel, ...] = (*HANDMADE, *VISION, *TEXT)
