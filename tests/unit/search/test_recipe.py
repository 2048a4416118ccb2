from __future__ import annotations

import json
from pathlib import Path

import pytest

from tauten.errors import RecipeError
from tauten.make.search.levels import LEVELS, find_level
from tauten.make.search.recipe import Recipe, Way, pass_from_json


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_survives_a_round_trip_through_a_file(level: str, tmp_path: Path) -> None:
    recipes = find_level(level)
    path = tmp_path / "recipes.json"
    path.write_text(json.dumps([recipe.to_json() for recipe in recipes]))
    assert find_level(str(path)) == recipes


def test_low_trains_nothing_and_each_level_holds_more() -> None:
    low, medium, high = (find_level(level) for level in LEVELS)
    assert not any(recipe.trains for recipe in low)
    assert any(recipe.trains for recipe in medium)
    assert len(low) < len(medium) < len(high)


def test_an_order_that_cannot_work_is_refused_before_any_compute() -> None:
    quantize, prune = (
        pass_from_json({"pass": "quantize.dynamic"}),
        pass_from_json({"pass": "prune.magnitude", "ratio": 0.5}),
    )
    with pytest.raises(RecipeError, match=r"prune\.magnitude needs 'float_weights', but quantize\.dynamic before it"):
        Recipe("wrong", (quantize, prune))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "expected a recipe as an object"),
        ({"name": "x", "passes": [], "loweringg": "onnx"}, "got \\['loweringg'\\]"),
        ({"name": "x", "passes": [{"ratio": 1}]}, 'object with "pass"'),
        ({"name": "x", "passes": [{"pass": "prune.nothing"}]}, "no pass named 'prune.nothing'"),
        ({"name": "x", "passes": [{"pass": "prune.magnitude", "rate": 1}]}, "no parameter \\['rate'\\]"),
        (
            {"name": "x", "passes": [{"pass": "device.half", "name": "x"}]},
            "it has \\['dtype', 'samples', 'tolerance'\\]",
        ),
        (
            {"name": "x", "passes": [{"pass": "compress.rate_distortion", "share": 2}]},
            "^compress.rate_distortion: share: ",
        ),
        ({"name": "x", "passes": [{"pass": "prune.magnitude", "ratio": "lots"}]}, "ratio"),
        ({"name": "x", "passes": [], "lowering": "abacus"}, "no lowering 'abacus'"),
        ({"name": "../x", "passes": []}, "a letter or digit first"),
        ({"name": ".hidden", "passes": []}, "a letter or digit first"),
        ({"name": "x" * 101, "passes": []}, "at most 100"),
    ],
)
def test_a_recipe_that_is_none_says_what_was_expected(document: object, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.from_json(document)


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", "[1]", "[" * 100_000, '[{"name": "a", "passes": []}, {"name": "a", "passes": []}]']
)
def test_a_file_that_holds_no_recipes_is_a_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipes.json"
    path.write_text(text)
    with pytest.raises(RecipeError):
        find_level(str(path))


def test_an_unknown_level_names_those_there_are() -> None:
    with pytest.raises(RecipeError, match="use one of low, medium, high"):
        find_level("extreme")


@pytest.mark.parametrize("name", ["baseline", "engine_baseline", "engine_baseline-onnx", "race-int8-onnx-0"])
def test_a_recipe_cannot_take_the_untouched_models_name(name: str) -> None:
    with pytest.raises(RecipeError, match="the untouched model has this name"):
        find_level([Recipe(name)])


def test_a_recipe_may_leave_its_engine_to_the_run(tmp_path: Path) -> None:
    way = Way("onnx", {"placement": "products"})
    left = Recipe("left", lowering="auto")
    assert Recipe.from_json(left.to_json()) == left
    assert left.on(way) == Recipe("left", lowering="onnx", options={"placement": "products"})
    assert left.on(way).options == {"placement": "products"}
    assert Recipe("mine", lowering="eager").on(way).lowering == "eager"
    with pytest.raises(RecipeError, match="need a lowering that is named"):
        Recipe("left", lowering="auto", options={"placement": "products"})
    path = tmp_path / "recipes.json"
    path.write_text(json.dumps([{"name": "any", "passes": []}, {"name": "own", "passes": [], "lowering": "eager"}]))
    assert [recipe.lowering for recipe in find_level(str(path), "auto")] == ["auto", "eager"]
    assert {recipe.lowering for recipe in find_level("low", "auto")} == {"auto"}
    assert [recipe.to_json()["lowering"] for recipe in find_level(str(path))] == ["onnx", "eager"]
