"""What all tests share: processes that do not fight over the cores, the longest files first, and a word of what is left
out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

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


LEFT_OUT: Final = pytest.StashKey[int]()
"""How many slow tests ``-m`` left out; every process of a run counts the same."""


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        stash = slow[0].config.stash
        stash[LEFT_OUT] = stash.get(LEFT_OUT, 0) + len(slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    told = getattr(session.config, "workeroutput", None)
    if told is not None:  # a process of pytest-xdist, whose controller collects nothing itself
        told["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    told = getattr(node, "workeroutput", None) or {}  # none where the process died
    stash = node.config.stash
    stash[LEFT_OUT] = max(stash.get(LEFT_OUT, 0), told.get("left_out", 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    count = config.stash.get(LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(f"slow tests left out: {count} (`make test-all` runs them too)")


def _place(nodeid: str) -> int:
    return next((place for place, start in enumerate(LONGEST) if nodeid.startswith(start)), len(LONGEST))
