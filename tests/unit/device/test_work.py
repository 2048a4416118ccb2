"""The memory that a piece of work takes, whatever the process did before."""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from tauten.make.model.training.work import work_mib

MIB = 1 << 20
THRESHOLDS = (-3, -1)
"""glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD."""


def of_32_mib_beside_a_hole_of_100() -> float | None:
    """What 32 MiB of work are told to take, where the heap holds 100 MiB that earlier work has freed."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    for what in THRESHOLDS:
        library.mallopt(what, 1 << 30)
    hole = library.malloc(100 * MIB)
    library.memset(hole, 1, 100 * MIB)
    library.malloc(MIB)  # what is in use above it keeps the heap from shrinking
    library.free(hole)
    return work_mib(lambda: torch.ones(32 * MIB, dtype=torch.int8), torch.device("cpu"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of another C library is another")
def test_a_hole_that_earlier_work_left_in_the_heap_hides_nothing() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        assert fresh.submit(of_32_mib_beside_a_hole_of_100).result() == pytest.approx(32, abs=3)
