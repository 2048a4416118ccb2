"""A server in processes of its own: started on one core, watched, stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

CLIENT_CORE = 1
READY_LIMIT_S = 60
STOP_LIMIT_S = 8
_POLL_S = 0.005


class Running:
    """``command`` with all its children, pinned to ``cores``. Ready once ``answers(port)`` is true."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        port: int,
        answers: Callable[[int], bool],
        log: Path,
        cores: str = "0",
    ) -> None:
        self.port = port
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            started = time.perf_counter()
            self._process = subprocess.Popen(
                ["taskset", "-c", cores, *command],
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        try:
            self._wait(answers, started)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.perf_counter() - started

    def _wait(self, answers: Callable[[int], bool], started: float) -> None:
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if answers(self.port):
                    return
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}: {self.told()}")
            if time.perf_counter() - started > READY_LIMIT_S:
                raise RuntimeError(f"the server was not ready within {READY_LIMIT_S} s: {self.told()}")
            time.sleep(_POLL_S)

    def told(self) -> str:
        """The end of what it printed."""
        return self.log.read_text("utf-8", "replace")[-1500:]

    def pids(self) -> list[int]:
        """All its processes."""
        found, waiting = [], [self._process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting.extend(map(int, (task / "children").read_text().split()))
        return found

    def pss_mb(self) -> float:
        """Megabytes of memory of all its processes, what they share counted once."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total / 1e6

    def own_mb(self) -> float:
        """Megabytes of memory that is no file's.

        What tells growth: of the pages of libraries, a process's share grows when others that use them end.
        """
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith(("RssAnon:", "RssShmem:")):
                        total += int(line.split()[1]) * 1024
        return total / 1e6

    def stop(self) -> None:
        """As an operator would; what does not go by itself is killed."""
        family = self.pids()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in family[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    """A port that is free, and whose next one is, too, which some servers open for themselves."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def exchange(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One whole request on a connection of its own: status, headers in small letters, body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, response.read()


def processor_seconds() -> dict[str, float]:
    """Since the machine began: seconds that its cores were busy, and that the host took from them."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
    return {"busy": sum(ticks[:3]) + sum(ticks[5:8]), "stolen": ticks[7] if len(ticks) > 7 else 0.0}
