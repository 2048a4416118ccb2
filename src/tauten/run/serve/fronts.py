"""Several whole servers behind one port, for many cores: each takes connections and computes by itself.

The system gives each new connection to one of them (``SO_REUSEPORT``). This process takes none: it starts them, passes
signals on, and starts again what dies. It is the one that must not fail, so it loads no engine and runs no event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tauten.errors import ServeError, TautenError

log = logging.getLogger("tauten.serve")

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_LIVED_S: Final = 30.0


@dataclass(frozen=True)
class Front:
    """One of ``count`` servers, as it is told to itself.

    ``folder`` is where they find each other. ``ready`` is a descriptor to write a byte to once requests are taken, and
    ``life`` one that ends when the process that started them does. ``again`` says that one before it has ended.
    """

    index: int
    count: int
    port: int
    folder: Path
    ready: int
    life: int
    again: bool = False

    def is_ready(self, stop: Callable[[], object]) -> None:
        """Tell that requests are taken. In the running event loop ``stop`` is called if the first process has gone."""
        with contextlib.suppress(BrokenPipeError):  # nobody waits for one that was started again
            os.write(self.ready, b"1")
        os.close(self.ready)
        loop = asyncio.get_running_loop()

        def gone() -> None:
            loop.remove_reader(self.life)
            stop()

        loop.add_reader(self.life, gone)


class Fronts:
    """``count`` servers, each of which runs ``serve`` in a process of its own until it returns an exit code."""

    def __init__(self, count: int, host: str, port: int, serve: Callable[[Front], int]) -> None:
        self._count = count
        self._serve = serve
        self._reserved = _reserve(host, port)
        self.port = int(self._reserved.getsockname()[1])
        self._folder = Path(tempfile.mkdtemp(prefix="tauten-fronts-"))
        self._life = os.pipe()
        self._children: dict[int, int] = {}  # process -> index
        self._started: dict[int, float] = {}
        self._pauses = [0.0] * count
        self._due: dict[int, float] = {}  # index -> when to start it again

    def run(self, told: Callable[[], None]) -> int:
        """Start all, call ``told`` once all take requests, and go on until a signal ends them; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if not self._start_all():
                return self._stop()
            told()
            return self._watch()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._reserved.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start_all(self) -> bool:
        waiting = {self._start(index) for index in range(self._count)}
        good = True
        while waiting and good and signal.sigtimedwait((signal.SIGTERM, signal.SIGINT), 0) is None:
            for reading in select.select(waiting, (), (), 0.2)[0]:
                good = good and bool(os.read(reading, 1))  # nothing where it has ended
                waiting.remove(reading)
                os.close(reading)
        for reading in waiting:
            os.close(reading)
        return good and not waiting

    def _start(self, index: int) -> int:
        """Start one; a descriptor that tells when it is ready."""
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.close(reading)
            os.close(self._life[1])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            code = 1
            try:
                again = index in self._started
                front = Front(index, self._count, self.port, self._folder, writing, self._life[0], again)
                code = self._serve(front)
            except TautenError as fault:
                log.error("server %d of %d: %s", index + 1, self._count, fault)
                code = fault.exit_code
            except BaseException:
                log.exception("server %d of %d failed", index + 1, self._count)
            finally:
                logging.shutdown()
                os._exit(code)
        os.close(writing)
        self._children[process] = index
        self._started[index] = time.monotonic()
        return reading

    def _watch(self) -> int:
        """Until a signal to stop."""
        while True:
            pause = min((when - time.monotonic() for when in self._due.values()), default=3600.0)
            found = signal.sigtimedwait(_SIGNALS, max(0.0, pause))
            number = None if found is None else found.si_signo
            if number in (signal.SIGTERM, signal.SIGINT):
                return self._stop()
            if number == signal.SIGHUP:
                self._send(signal.SIGHUP)
            for index in self._ended():
                self._plan(index)
            for index in [index for index, when in self._due.items() if when <= time.monotonic()]:
                del self._due[index]
                os.close(self._start(index))

    def _ended(self) -> Iterator[int]:
        """Those that have ended since it was asked last."""
        while self._children:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            index = self._children.pop(process, None)
            if index is not None:
                log.error("server %d of %d ended (%s)", index + 1, self._count, os.waitstatus_to_exitcode(status))
                yield index

    def _plan(self, index: int) -> None:
        """Start one again: at once after a long life, and later each time after a short one."""
        short = time.monotonic() - self._started[index] < _LIVED_S
        self._pauses[index] = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._pauses[index])) if short else 0.0
        self._due[index] = time.monotonic() + self._pauses[index]

    def _stop(self) -> int:
        """Let all finish what they have begun; a second signal ends them at once. 0 where all ended well."""
        self._send(signal.SIGTERM)
        codes = []
        while self._children:
            found = signal.sigtimedwait(_SIGNALS, 1.0)
            if found is not None and found.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._send(signal.SIGKILL)
            while self._children:
                process, status = os.waitpid(-1, os.WNOHANG)
                if not process:
                    break
                if self._children.pop(process, None) is not None:
                    codes.append(os.waitstatus_to_exitcode(status))
        return 0 if not any(codes) and len(codes) == self._count else 1

    def _send(self, number: signal.Signals) -> None:
        for process in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)


def _reserve(host: str, port: int) -> socket.socket:
    """A socket that holds the port for those who share it, and takes no connection.

    Raises ``ServeError`` where that cannot be.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ServeError("this system cannot share a port between processes: use one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind, protocol)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Without it a port that another server, of whoever, shares would be shared with it unseen.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
        reserved.bind(address)
    except OSError as fault:
        raise ServeError(f"cannot listen on port {port} on {host}: {fault.strerror or fault}") from None
    return reserved
