"""One view over the metrics of servers that share a port: whichever is asked asks the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_ANSWER_S: Final = 2.0
_MOST_BYTES: Final = 16 * 2**20
_OF_A_PROCESS: Final = ("process_", "python_")


class Siblings:
    """Tells the others its own metrics over a socket in ``folder``, and gathers theirs."""

    def __init__(self, index: int, count: int, folder: Path) -> None:
        self._index = index
        self._paths = [folder / f"{number}.sock" for number in range(count)]
        self._server: asyncio.Server | None = None
        self._own: Callable[[], bytes] = bytes

    async def start(self, own: Callable[[], bytes]) -> None:
        """Answer the others with what ``own`` says."""
        self._own = own
        path = self._paths[self._index]
        path.unlink(missing_ok=True)  # of one that was killed
        self._server = await asyncio.start_unix_server(self._tell, path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._paths[self._index].unlink(missing_ok=True)

    async def metrics(self) -> bytes:
        """The metrics of all that answer, as if they were one server's."""
        others = [number for number in range(len(self._paths)) if number != self._index]
        texts = await asyncio.gather(*(self._ask(self._paths[number]) for number in others))
        found = dict(zip(others, texts, strict=True))
        found[self._index] = self._own()
        return merged((number, text) for number, text in sorted(found.items()) if text is not None)

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(self._own())
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _ask(self, path: Path) -> bytes | None:
        """What one says; ``None`` where it does not, since it is starting again."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MOST_BYTES)
                try:
                    return await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None


def merged(texts: Iterable[tuple[int, bytes]]) -> bytes:
    """Metrics in Prometheus' text format, added up by name and labels; what is of a process gets its number as a label.

    >>> print(merged([(0, b"# TYPE a gauge\\na 1\\nprocess_b 2\\n"), (1, b"# TYPE a gauge\\na 3\\n")]).decode(), end="")
    # TYPE a gauge
    a 4.0
    process_b{process="0"} 2.0
    """
    lines: dict[str, float | None] = {}
    for number, text in texts:
        for line in text.decode().splitlines():
            if line.startswith("#"):
                lines.setdefault(line, None)
                continue
            name, _, value = line.rpartition(" ")
            if name.startswith(_OF_A_PROCESS):
                plain, brace, labels = name.partition("{")
                name = f'{plain}{{process="{number}"' + (f",{labels}" if brace else "}")
            lines[name] = (lines.get(name) or 0.0) + float(value)
    return _grouped(lines)


def _grouped(lines: dict[str, float | None]) -> bytes:
    """The lines, those of one family together, as the format asks for."""
    families: dict[str, list[str]] = {}
    family = ""
    for name, value in lines.items():
        if value is None:
            family = name.split(" ")[2] if name.count(" ") > 1 else name
            families.setdefault(family, []).append(name)
        else:
            plain = name.partition("{")[0]
            # A histogram's samples are named after their family, with an ending.
            stems = (plain, *(plain.removesuffix(end) for end in ("_bucket", "_count", "_sum", "_total", "_created")))
            own = next((stem for stem in stems if stem in families), family)
            families.setdefault(own, []).append(f"{name} {value}")
    return "".join(f"{line}\n" for members in families.values() for line in members).encode()
