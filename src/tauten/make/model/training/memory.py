"""The most memory that was in use, and giving back what nobody uses."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

_STATUS = Path("/proc/self/status")
_REFS = Path("/proc/self/clear_refs")
_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
_SMALL = 16 << 10
_LARGE = 32 << 20  # the most that glibc takes


class PeakMemory:
    """The peak from when this is made: of the process' resident memory, or of a GPU's allocations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._earlier: float | None = None
        self._restart()

    def mib(self) -> float | None:
        """The peak so far, or ``None`` where the system does not tell."""
        found = [peak for peak in (self._earlier, self.lately_mib()) if peak is not None]
        return max(found, default=None)

    def lately_mib(self) -> float | None:
        """The peak since the last ``restart``."""
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self._device) / 2**20, 1)
        peak = _status_mib("VmHWM")
        return None if peak is None else round(peak, 1)

    def held_mib(self) -> float | None:
        """What is in use now."""
        return held_mib(self._device)

    def restart(self) -> None:
        """What comes from now on is looked at on its own by ``lately_mib``."""
        self._earlier = self.mib()
        self._restart()

    def _restart(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):
            _REFS.write_text("5")  # Linux: the peak begins anew


def resident_mib() -> float | None:
    """The resident memory of this process now, or ``None`` where the system does not tell."""
    return _status_mib("VmRSS")


def held_mib(device: torch.device) -> float | None:
    """What is in use now, in the measure of ``PeakMemory``."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else resident_mib()


def give_back() -> None:
    """What Python, the C library and PyTorch's cache on a GPU hold without using it goes back to the system."""
    gc.collect()
    trim()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim() -> None:
    """The C library lets go of pages that were freed, which it keeps for the next time; without glibc, nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def frugal(wanted: bool = True) -> Iterator[None]:
    """Larger pieces of memory go back to the system as soon as they are freed; without glibc, nothing changes.

    Resident memory then is what is in use, and not what was in use before. It is slower, for each page that comes anew
    is cleared. Afterwards the C library keeps pieces of up to 32 MiB, as it comes to do by itself in a process that
    frees such.
    """
    if wanted:
        _keep_above(_SMALL)
    try:
        yield
    finally:
        if wanted:
            _keep_above(_LARGE)


def _keep_above(size: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, size)


def free_weights(module: nn.Module) -> float:
    """Let go of the module's parameters and buffers, and give the memory back; returns how many MiB they took.

    For a module that has been lowered and is of no further use but for its structure: its tensors are then of the
    ``meta`` device, with shapes and without numbers, so that it cannot be run. Where something else shares their
    memory, such as an array of the lowered weights, that keeps it.
    """
    freed = 0
    empty: dict[int, nn.Parameter] = {}  # one that is shared stays shared
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or parameter.is_meta:
                continue
            if id(parameter) not in empty:
                freed += parameter.nbytes
                empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            part._parameters[name] = empty[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and not buffer.is_meta:
                freed += buffer.nbytes
                part._buffers[name] = buffer.to("meta")
    give_back()
    return freed / 2**20


def _status_mib(what: str) -> float | None:
    try:
        found = re.search(rf"^{what}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None
