"""The most memory that was in use."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """The peak from when this is made: of the process' resident memory, or of a GPU's allocations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):
            _REFS.write_text("5")  # Linux: the peak begins anew

    def mib(self) -> float | None:
        """The peak so far, or ``None`` where the system does not tell."""
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_allocated(self._device) / 2**20, 1)
        try:
            found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        except OSError:
            return None
        return round(int(found[1]) / 1024, 1) if found else None
