"""The memory that a module takes to answer one batch, measured.

On a GPU by CUDA's own counter. On a processor in a forked process: a fork has the module without anything being written
or read, what it allocates does not burden the process that asks, and where memory ends it alone is killed. The fork
runs on one thread, for OpenMP's other threads do not live on in it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from tauten.core.rows import count_rows
from tauten.core.tensor import Array
from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.model.run import call
from tauten.make.model.training.memory import PeakMemory, resident_mib, trim

_PATIENCE_S: Final = 600.0
_RESIDENT: Final = "resident memory of a forked process, one thread"
_CUDA: Final = "CUDA allocations"


@dataclass(frozen=True)
class Peak:
    """``weights_mib`` are parameters and buffers, ``work_mib`` is the most that lay above them during a call.

    ``work_mib`` is ``None`` where the system does not tell, and infinite where the process that measured was killed.
    """

    weights_mib: float
    work_mib: float | None
    rows: int
    how: str

    @property
    def mib(self) -> float | None:
        """Weights and work together."""
        return None if self.work_mib is None else self.weights_mib + self.work_mib

    def to_notes(self) -> dict[str, Any]:
        """As JSON, rounded to a tenth of a MiB, which is finer than systems count."""
        known = self.work_mib is not None and math.isfinite(self.work_mib)
        work = round(self.work_mib or 0.0, 1) if known else None
        return {"weights_mib": round(self.weights_mib, 3), "work_mib": work}


def measure_peak(model: Model, inputs: Mapping[str, Array]) -> Peak:
    """The peak of answering ``inputs``, in evaluation mode, after one call to warm up."""
    module = model.module.eval()
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))

    def answer() -> None:
        with torch.inference_mode():
            call(module, model.inputs, model.outputs, inputs)

    rows = count_rows(model.inputs, inputs)
    if device.type == "cuda":
        return Peak(weights_mib(module), _on_cuda(answer, device), rows, _CUDA)
    return Peak(weights_mib(module), _in_fork(answer), rows, _RESIDENT)


def compare(before: Peak, after: Peak) -> dict[str, Any]:
    """Both for the notes of a pass, under ``peak``."""
    return {"before": before.to_notes(), "after": after.to_notes(), "rows": after.rows, "how": after.how}


def weights_mib(module: nn.Module) -> float:
    """Parameters and buffers, each storage counted once."""
    seen = {}
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values()) / 2**20


def _on_cuda(answer: Callable[[], None], device: torch.device) -> float:
    answer()
    torch.cuda.synchronize(device)
    start = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    answer()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - start) / 2**20


def _in_fork(answer: Callable[[], None]) -> float | None:
    """What resident memory grew by, in MiB; ``None`` where there is no fork or ``/proc``, infinite where it was killed.

    Raises ``PassError`` with what ``answer`` raised.
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
        _tell(answer, writing)
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
        raise PassError(f"the module does not run where its memory is measured: {found['error']}")
    grown: float = found["mib"]
    return grown


def _tell(answer: Callable[[], None], writing: int) -> None:
    """In the fork: measure, write, end. Never returns."""
    try:
        torch.set_num_threads(1)
        answer()
        trim()
        peak = PeakMemory(torch.device("cpu"))
        start = resident_mib()
        answer()
        end = peak.mib()
        told: dict[str, Any] = {"mib": max(0.0, (end or 0.0) - (start or 0.0))}
    except BaseException as fault:  # noqa: BLE001 - whatever it is, the fork must not go on as if it were the caller
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
