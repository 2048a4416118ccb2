"""What all tests share: processes that do not fight over the cores, and the longest files first."""

from __future__ import annotations

import os
from typing import Final

import pytest

# Before anything imports torch or NumPy, and for the processes that tests start. As many test processes as there are
# cores run side by side: with several threads in each, most of the time goes to waiting for each other.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

LONGEST: Final = (
    "tests/docs/test_docs_run.py",
    "tests/docs/test_pages_alone.py",
    "tests/contracts/test_passes.py",
    "tests/unit/train/",
    "tests/conformance/",
    "tests/held/",
    "tests/unit/serve/",
    "tests/unit/search/",
    "tests/unit/optimize/",
    "tests/unit/test_examples.py",
    "tests/unit/cli/",
)
"""Where the long files are. A file that a process begins last keeps the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.nodeid))


def _place(nodeid: str) -> int:
    return next((place for place, start in enumerate(LONGEST) if nodeid.startswith(start)), len(LONGEST))
