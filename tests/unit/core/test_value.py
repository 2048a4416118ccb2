"""Values: frozen, validated where they are built, equal after JSON, and clear about what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.core.record import Record
from tauten.core.target import Target
from tauten.core.value import Value
from tauten.errors import ConfigError, TaskError


class Inner(Value):
    size: int = 1


class Outer(Value):
    raises = TaskError
    inner: Inner = Inner()
    share: float = 0.5


def record(**fields: object) -> Record:
    return Record(**{"name": "p", "parameters": {}, "seed": 0, "seconds": 0, "before": "", "after": "", **fields})


def test_a_value_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().size = 2


@pytest.mark.parametrize("build", [lambda: Inner(size="big"), lambda: Inner.from_json({"size": "big"})])
def test_a_fault_names_the_value_the_field_the_rule_and_what_came(build) -> None:
    with pytest.raises(ConfigError, match=r"^Inner: size: .*valid integer.*\(got 'big'\)$"):
        build()


def test_a_fault_inside_another_value_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Outer.from_json({"inner": {"size": "big"}})
    assert str(caught.value).count("valid integer") == 1
    assert str(caught.value).startswith("Outer: inner: Inner: size: ")


def test_a_subclass_raises_its_own_error() -> None:
    for build in (lambda: Outer(share="x"), lambda: Outer.from_json({"share": "x"})):
        with pytest.raises(TaskError):
            build()


def test_unknown_fields_and_other_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="colour"):
        Inner.from_json({"colour": 1})
    for document in (None, [], "x", 3):
        with pytest.raises(ConfigError, match="Inner"):
            Inner.from_json(document)


def test_many_faults_are_cut_short() -> None:
    with pytest.raises(ConfigError, match="and 92 more") as caught:
        Inner.from_json({f"field{index}": 1 for index in range(100)})
    assert len(str(caught.value)) < 1000


def test_a_long_value_is_cut_short() -> None:
    with pytest.raises(ConfigError) as caught:
        Inner(size="x" * 10_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_hold_are_refused(odd: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        Outer(share=odd)
    with pytest.raises(ConfigError, match=r"notes.*deep\.0.*finite"):
        record(notes={"deep": [odd]})


@pytest.mark.parametrize("odd", [object(), np.float32(1), np.zeros(2), Path("x"), {1, 2}, b"x"])
def test_notes_hold_only_what_json_can(odd: object) -> None:
    with pytest.raises(ConfigError, match=r"value\.why: expected what JSON can hold, got a"):
        record(notes={"why": odd})


def test_notes_nested_without_end_are_refused() -> None:
    endless: dict[str, object] = {}
    endless["again"] = endless
    with pytest.raises(ConfigError, match="nested deeper"):
        record(notes=endless)


def test_notes_take_the_form_that_json_gives_back() -> None:
    made = record(notes={"shape": (1, 2), 3: "three", "np": np.float64(0.5)})
    assert made.notes == {"shape": [1, 2], "3": "three", "np": 0.5}
    assert type(made.notes["np"]) is float


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.floats(0, 1e9))
def test_a_record_is_equal_after_json(notes: dict[str, object], seconds: float) -> None:
    made = record(notes=notes, seconds=seconds)
    assert Record.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made


@given(st.integers(1, 1024), st.integers(1, 10**6), st.sampled_from(["cpu", "cuda"]))
def test_a_target_is_equal_after_json(threads: int, batch: int, device: str) -> None:
    made = Target(name="mine", threads=threads, batch=batch, device=device, precisions=("int8",))
    assert Target.from_json(json.loads(json.dumps(made.to_json()))) == made
