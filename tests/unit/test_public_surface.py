"""What ``import tauten`` offers: a name comes or goes only with a change of this list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tauten
from tauten.errors import TautenError

NAMES = (Path(__file__).parent / "public_surface.txt").read_text("utf-8").split()


def test_the_surface_is_the_one_that_is_pinned() -> None:
    assert sorted(tauten.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(tauten, name).__doc__
    assert name in dir(tauten)


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        _ = tauten.optimise  # type: ignore[attr-defined]


def test_importing_it_loads_neither_half_nor_a_backend() -> None:
    code = "import sys, tauten; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "onnxruntime", "numpy", "pydantic", "typer", "tauten.make", "tauten.run"}
    assert heavy.isdisjoint(loaded)


def test_every_error_is_of_one_tree() -> None:
    errors = [getattr(tauten, name) for name in NAMES if isinstance(getattr(tauten, name), type)]
    raised = [kind for kind in errors if issubclass(kind, BaseException)]
    assert len(raised) > 5
    assert all(issubclass(kind, TautenError) for kind in raised)
