"""Arrays to bytes and back: one file a codec, encode and decode side by side.

::

    Codec
    ├── plain       safetensors, which any tool reads
    ├── zstd        byte planes and Zstandard: fast        ┐
    ├── huffman     canonical codes and runs of zeros      ├ one format (``container``)
    └── arithmetic  context mixing: the smallest files     ┘
"""

from __future__ import annotations

from tauten.codecs.codec import Codec
from tauten.core.registry import Registry

CODECS: Registry[Codec] = Registry("codec", "tauten.codecs", besides=("codec", "container"))
