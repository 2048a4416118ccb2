"""The page of commands tells of every verb and option that there is, and of no other."""

from __future__ import annotations

import re

import pytest
import typer

from tauten.cli.main import app
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
VERBS = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_verb_has_its_section() -> None:
    assert re.findall(r"^## `tauten (\w+)", PAGE, re.MULTILINE) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_of_a_verb_are_told(verb: str) -> None:
    section = re.split(r"^## ", PAGE.split(f"## `tauten {verb}")[1], maxsplit=1, flags=re.MULTILINE)[0]
    told = set(re.findall(r"`(--[\w-]+)", section))
    options = VERBS[verb].params
    there = {name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}
    assert told == there - {"--help"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_printed_as_it_is_written(verb: str) -> None:
    # Help is read as Markdown, which leaves out what looks like a tag.
    assert not [option.name for option in VERBS[verb].params if re.search(r"<\w", getattr(option, "help", None) or "")]
