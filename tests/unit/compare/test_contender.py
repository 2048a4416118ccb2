"""How a strategy is named."""

from __future__ import annotations

import pytest

from tauten.make.search.contender import find_contender
from tauten.make.search.recipe import pass_from_json


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("magnitude", {"pass": "prune.magnitude", "ratio": 0.5}),
        ("prune.magnitude", {"pass": "prune.magnitude", "ratio": 0.5}),
        ("structured:criterion=l1", {"pass": "prune.structured", "ratio": 0.5, "criterion": "l1"}),
        ("dynamic", {"pass": "dynamic.early_exit", "share": 0.5}),
        ("early_exit:exits=1", {"pass": "dynamic.early_exit", "share": 0.5, "exits": 1}),
    ],
)  # fmt: skip
def test_a_name_is_a_pass_and_its_ratio_or_share(text: str, made: dict[str, object]) -> None:
    assert find_contender(text).at(0.5) == pass_from_json(made)


def test_its_candidates_have_names_that_folders_can_have() -> None:
    assert find_contender(" structured:criterion=l1 ").name(0.5) == "structured-criterion-l1-0.5"
    assert find_contender("prune.magnitude").name(0.25) == "prune.magnitude-0.25"
