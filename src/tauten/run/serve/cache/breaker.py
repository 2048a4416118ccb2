"""When to leave alone what does not answer: a policy without I/O and without a clock."""

from __future__ import annotations


class Breaker:
    """Allows an attempt until one fails, then none for ``first_ns``, and twice as long each further time."""

    def __init__(self, first_ns: int = 100_000_000, longest_ns: int = 10_000_000_000) -> None:
        self._first_ns = first_ns
        self._longest_ns = longest_ns
        self._pause_ns = 0
        self._until_ns = 0

    @property
    def broken(self) -> bool:
        """Whether the last attempt failed."""
        return self._pause_ns > 0

    def allows(self, now_ns: int) -> bool:
        """Whether it is worth trying."""
        return now_ns >= self._until_ns

    def failed(self, now_ns: int) -> None:
        """An attempt failed. Those that began together and fail together count once."""
        if now_ns >= self._until_ns:
            self._pause_ns = min(2 * self._pause_ns, self._longest_ns) if self._pause_ns else self._first_ns
            self._until_ns = now_ns + self._pause_ns

    def succeeded(self) -> None:
        """An attempt succeeded: all is well again."""
        self._pause_ns = self._until_ns = 0
