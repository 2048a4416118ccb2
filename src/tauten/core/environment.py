"""What a measurement was taken with: versions and machine, as text."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("tauten", "numpy", "onnxruntime", "torch", "onnx", "onnxscript")
_CPUINFO = Path("/proc/cpuinfo")
_FAST = re.compile(r"avx2|avx512f|avx(512)?_vnni|avx512_(bf|fp)16|amx_(int8|bf16|fp16)|asimd(hp|dp)|i8mm|bf16|sve2?")
"""Instructions, as Linux names them, that decide which precision is fast: two processors of one name may differ."""


def environment() -> dict[str, str]:
    """Versions of what a figure depends on, and the processor; what is not installed or not told is left out."""
    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    flags = processor_flags()
    fast = {"instructions": " ".join(sorted(filter(_FAST.fullmatch, flags)))} if flags else {}
    return {**found, "machine": platform.machine(), "cpu": _cpu(), "cores": str(cores()), **fast}


def processor_flags() -> frozenset[str]:
    """What the processor can do, as Linux names it; empty where the system does not tell."""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    return frozenset(found[1].split() if found else ())


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    found = re.search(r"^model name\s*:(.*)$", _cpuinfo(), re.MULTILINE)
    return (found[1].strip() if found else platform.processor()) or "unknown"


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text("utf-8", "replace")
    except OSError:
        return ""
