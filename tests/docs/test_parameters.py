"""The page of passes tells every parameter of every pass, with its default."""

from __future__ import annotations

import dataclasses
import re

import pytest

from tauten.make.passes import PASSES
from tests.docs.pages import ROOT

TOLD = dict(
    re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (.*) \|$", (ROOT / "docs" / "passes.md").read_text("utf-8"), re.MULTILINE)
)


@pytest.mark.parametrize("name", PASSES.names())
def test_the_parameters_of_a_pass_are_told(name: str) -> None:
    there = {
        field.name if field.default is dataclasses.MISSING else f"{field.name}={field.default!r}".replace("'", '"')
        for field in dataclasses.fields(PASSES.get(name))
    }
    assert set(re.findall(r"`([^`]+)`", TOLD[name])) == there


def test_no_other_pass_is_told() -> None:
    assert set(TOLD) == set(PASSES.names())
