"""What is cut from a call, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import ArtifactError, ConfigError
from tauten.run.engines import load
from tauten.run.engines._padding import Padding, Shortener, check_borders, find_axes
from tauten.testing.artifacts import tiny_artifact
from tests.unit.engines.test_threads import BORDERS, two_branches

IDS = TensorSpec(name="ids", shape=("batch", "length"), dtype="int64")
MASK = TensorSpec(name="mask", shape=("batch", "length"), dtype="bool")
PAIRS = TensorSpec(name="pairs", shape=("batch", "length", 2, "length"))
ONE = TensorSpec(name="one", shape=("batch", 5))
SPECS = (IDS, MASK, PAIRS, ONE)


def arrays(mask: np.ndarray) -> Arrays:
    batch, length = mask.shape
    return {
        "ids": np.arange(batch * length).reshape(batch, length),
        "mask": mask,
        "pairs": np.zeros((batch, length, 2, length), np.float32),
        "one": np.zeros((batch, 5), np.float32),
    }


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    more=st.integers(0, 9),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_all_that_is_open_stays_and_little_else(lengths: list[int], more: int, multiple: int) -> None:
    size = max(lengths) + more
    given_ = arrays(np.arange(size) < np.array(lengths)[:, np.newaxis])
    came = Shortener(Padding(mask="mask", multiple=multiple), SPECS, ())(given_)
    kept = came["mask"].shape[1]
    assert max(lengths) <= kept <= min(size, max(lengths) + multiple - 1)
    assert came["ids"].shape == (len(lengths), kept)
    assert came["pairs"].shape == (len(lengths), kept, 2, kept)
    assert came["one"].shape == (len(lengths), 5)
    np.testing.assert_array_equal(came["ids"], given_["ids"][:, :kept])
    assert all(array.flags.c_contiguous for array in came.values())


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((2, 20), bool),
        np.arange(20) >= np.array([[15], [2]]),  # padding in front
        np.arange(20) < np.array([[3], [0]]),  # a sample with nothing open
        np.zeros((0, 20), bool),
        np.zeros((1, 0), bool),
    ],
)
def test_a_call_that_cannot_be_shortened_stays_as_it_is(mask: np.ndarray) -> None:
    given_ = arrays(mask)
    assert Shortener(Padding(mask="mask"), SPECS, ())(given_) is given_


def test_without_padding_calls_stay_as_they_are() -> None:
    given_ = arrays(np.arange(20) < np.array([[3]]))
    assert Shortener(None, SPECS, ())(given_) is given_
    assert Shortener(None, SPECS, ()).describe() == {}


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        ("other", "there is no input of that name"),
        ("one", r"it is \(batch, 5\)"),
        ("pairs", r"it is \(batch, length, 2"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_axes(Padding(mask=mask), SPECS)


@pytest.mark.parametrize(
    ("more", "outputs", "told"),
    [
        ((), (TensorSpec(name="tokens", shape=("batch", "length")),), r"\['tokens'\] have it"),
        ((TensorSpec(name="places", shape=("length",), dtype="int64"),), (), r"count samples first: \['places'\]"),
    ],
)
def test_borders_that_cannot_do_without_columns_are_refused(
    more: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check_borders(Padding(mask="mask"), (*SPECS, *more), outputs)


def test_an_artifact_whose_padding_does_not_fit_is_refused(tmp_path: Path) -> None:
    graph = two_branches(tmp_path).graph()
    for index, told in enumerate(({"mask": "x"}, {"mask": 3}, True)):
        asked = {"padding": told}
        made = tiny_artifact(tmp_path / str(index), graph=graph, weights={}, engine="onnx", settings=asked, **BORDERS)
        with pytest.raises(ArtifactError, match="settings: padding"):
            load(made)
