"""The cache of a whole server: one memory for all its models, and one Redis where the settings say so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from tauten.core.tensor import TensorSpec
from tauten.errors import ConfigError
from tauten.run.serve.cache.cached import Cached, Submits
from tauten.run.serve.cache.frames import Frames
from tauten.run.serve.cache.keys import Keys
from tauten.run.serve.cache.memory import Memory
from tauten.run.serve.cache.remote import Remote
from tauten.run.serve.cache.settings import CacheSettings

SECRET: Final = "TAUTEN_CACHE_SECRET"
"""The environment variable with what servers share: who does not know it can forge neither a key nor an answer."""


class Cache:
    """What a server's models remember. Belongs to one event loop.

    The secret that keys stand on is new for each server that remembers in its own memory. Servers that share a Redis
    take it from the environment variable ``TAUTEN_CACHE_SECRET``, else from the password in the URL; without either,
    whoever may write to that Redis may also put answers there.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self.memory = Memory(settings.max_bytes, int(settings.age_s * 1e9))
        self._remote: Remote | None = None
        self._secret = os.urandom(32)
        if settings.where != "memory":
            from tauten.run.serve.cache.redis import RedisTier

            self._secret = shared_secret(settings.where)
            self._remote = RedisTier(settings.where, age_s=settings.age_s)

    def before(
        self, inner: Submits, identity: Sequence[bytes], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> Cached:
        """What answers calls in place of ``inner`` and remembers its answers.

        ``identity`` tells a model from any other, its earlier and later states included: name, version, digest of the
        artifact, and whatever else its answers depend on beside a request.
        """
        keys = Keys(self._secret, identity, inputs, outputs)
        frames = None if self._remote is None else Frames(self._secret, outputs)
        return Cached(inner, keys, self.memory, self._remote, frames)

    async def open(self) -> None:
        """Connect to what is shared. Where that fails, the server goes on without it."""
        if self._remote is not None:
            await self._remote.open()

    async def close(self) -> None:
        """Let go of what is shared."""
        if self._remote is not None:
            await self._remote.close()


def shared_secret(url: str) -> bytes:
    """What all servers that use the Redis at ``url`` know."""
    try:
        password = urlsplit(url).password
    except ValueError as fault:
        raise ConfigError(f"expected a URL such as redis://127.0.0.1:6379/0: {fault}") from None
    return (os.environ.get(SECRET) or unquote(password or "")).encode()
