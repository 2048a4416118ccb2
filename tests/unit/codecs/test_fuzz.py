"""A short run of the fuzzer whose million cases are run by ``python -m bench.fuzz_codecs``."""

from __future__ import annotations

from bench.fuzz_codecs import fuzz


def test_hostile_bytes_are_refused_in_bounded_time_and_memory() -> None:
    found = fuzz(1000, seed=7)
    assert found.faults == []
    assert (found.crashes, found.hangs, found.cases) == (0, 0, 1000)
    assert found.refused > 700
    assert min(found.by_target.values()) > 120
