"""Arrays to bytes and back: one file a codec, encode and decode side by side."""

from __future__ import annotations

from tauten.codecs.codec import Codec
from tauten.core.registry import Registry

CODECS: Registry[Codec] = Registry("codec", "tauten.codecs", besides=("codec",))
