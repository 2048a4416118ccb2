"""The memory that a piece of work takes, measured.

On a GPU by CUDA's own counter. On a processor in a forked process: a fork has all modules without anything being
written or read, what it allocates does not burden the process that asks, and where memory ends it alone is killed. The
fork runs on one thread, for OpenMP's other threads do not live on in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from tauten.errors import PassError
from tauten.make.model.training.memory import PeakMemory, frugal, resident_mib

_PATIENCE_S: Final = 600.0


def work_mib(work: Callable[[], object], device: torch.device) -> float | None:
    """By how much memory grows, at most, while ``work`` is done for the second time: what of it is alive at once.

    ``None`` where the system does not tell, infinite where memory did not suffice. On a processor, ``work`` leaves no
    trace here; on a GPU it is done in this process. Raises ``PassError`` with what it raised.
    """
    return _on_cuda(work, device) if device.type == "cuda" else _in_fork(work)


def how(device: torch.device) -> str:
    """What was measured, for notes."""
    return "CUDA allocations" if device.type == "cuda" else "resident memory of a forked process, one thread"


def _on_cuda(work: Callable[[], object], device: torch.device) -> float:
    try:
        work()
        torch.cuda.synchronize(device)
        start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return float("inf")
    return (torch.cuda.max_memory_allocated(device) - start) / 2**20


def _in_fork(work: Callable[[], object]) -> float | None:
    """What resident memory grew by, in MiB; ``None`` where there is no fork or ``/proc``, infinite where it was killed.

    Raises ``PassError`` with what ``work`` raised.
    """
    if not hasattr(os, "fork") or not Path("/proc/self/status").exists():
        return None
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork of a process with threads. This one takes no lock that another thread of
        # Python may hold: it computes on its own thread, writes to its pipe and exits.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        _tell(work, writing)
    os.close(writing)
    try:
        text = _read(reading)
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not text:
        return float("inf")
    found = json.loads(text)
    if "error" in found:
        raise PassError(f"what is measured does not run: {found['error']}")
    grown: float = found["mib"]
    return grown


def _tell(work: Callable[[], object], writing: int) -> None:
    """In the fork: measure, write, end. Never returns."""
    try:
        torch.set_num_threads(1)
        with frugal():
            work()  # a fork has not the pages of files that its parent has: they come with the first time
            start = resident_mib()
            peak = PeakMemory(torch.device("cpu"))
            work()
            end = peak.mib()
        told: dict[str, Any] = {"mib": max(0.0, (end or 0.0) - (start or 0.0))}
    except MemoryError:
        os._exit(1)
    except BaseException as fault:  # noqa: BLE001 - whatever it is, the fork must not go on as if it were the caller
        if "allocate memory" in str(fault):  # PyTorch's allocator raises a RuntimeError
            os._exit(1)
        told = {"error": f"{type(fault).__name__}: {fault}"[:2000]}
    with contextlib.suppress(BaseException):
        os.write(writing, json.dumps(told).encode())
    os._exit(0)


def _read(reading: int) -> bytes:
    """All that the fork writes; nothing where it is killed or says nothing for too long."""
    text = b""
    while select.select([reading], [], [], _PATIENCE_S)[0]:
        block = os.read(reading, 1 << 16)
        if not block:
            return text
        text += block
    return b""
