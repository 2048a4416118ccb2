"""Pages of the documentation that need no other page before them do what they say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.docs.test_docs_run import ALONE, run_page

LONG = ("CONTRIBUTING", "distillation", "importing")
"""Pages that train or make many artifacts."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else []) for name in ALONE])
def test_a_page_does_what_it_says(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    run_page(name, tmp_path_factory)
