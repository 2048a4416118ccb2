from __future__ import annotations

import pytest

from tauten.core.target import Target
from tauten.errors import RecipeError
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.search.builder import CandidateBuilder
from tauten.make.search.recipe import Recipe, pass_from_json
from tests.unit.optimize.task import task, unlabelled

INT8 = Recipe("int8", (pass_from_json({"pass": "quantize.post_training"}),))
FLOAT = Recipe("float")
TRAINED = Recipe("trained", (pass_from_json({"pass": "distill.recover"}),))


def builder(target: Target, labelled: bool = True) -> CandidateBuilder:
    brought = task() if labelled else unlabelled()
    model = to_model(brought)
    return CandidateBuilder(model, target, Context(brought, model.module))


def test_a_precision_that_the_target_lacks_is_refused_either_way() -> None:
    with pytest.raises(RecipeError, match="runs in int8, and target float-only has"):
        builder(Target(name="float-only", precisions=("float32",))).check(INT8)
    with pytest.raises(RecipeError, match="runs in float32, and target tiny has"):
        builder(Target(name="tiny", precisions=("int8",))).check(FLOAT)
    builder(Target(name="tiny", precisions=("int8",))).check(INT8)
    four = pass_from_json({"pass": "quantize.weight_only", "bits": 4, "layers": [["head", "float32"]]})
    with pytest.raises(RecipeError, match="runs in int4, and target tiny has"):
        builder(Target(name="tiny", precisions=("int8",))).check(Recipe("four", (four,)))
    with pytest.raises(RecipeError, match="runs in float32, and target tiny has"):
        builder(Target(name="tiny", precisions=("int4",))).check(Recipe("four", (four,)))


def test_sixteen_bits_are_a_precision_of_the_target() -> None:
    half = Recipe("half", (pass_from_json({"pass": "device.half", "dtype": "bfloat16"}),))
    with pytest.raises(RecipeError, match="runs in bfloat16, and target float-only has"):
        builder(Target(name="float-only", precisions=("float32", "float16"))).check(half)
    builder(Target(name="brain", precisions=("bfloat16",))).check(half)


def test_training_without_train_data_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"distill\.recover trains, but the task has no train data"):
        builder(Target(name="any"), labelled=False).check(TRAINED)
    builder(Target(name="any")).check(TRAINED)
