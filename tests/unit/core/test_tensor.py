"""Specs of arrays, and arrays held against them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.core.tensor import TensorSpec, check_arrays
from tauten.errors import ConfigError, InputError

IMAGE = TensorSpec(name="image", shape=("batch", 3, "side", "side"))
MASK = TensorSpec(name="mask", shape=("batch", "side"), dtype="bool")


def arrays(batch: int = 2, side: int = 4) -> dict[str, np.ndarray]:
    return {"image": np.zeros((batch, 3, side, side), np.float32), "mask": np.zeros((batch, side), bool)}


class Torchlike:
    """Prints as ``torch.float32`` does."""

    def __str__(self) -> str:
        return "torch.float32"


@pytest.mark.parametrize("dtype", ["float32", "torch.float32", np.float32, np.dtype("float32"), Torchlike()])
def test_a_dtype_may_be_said_in_any_of_the_usual_ways(dtype: object) -> None:
    assert TensorSpec(name="x", shape=(1,), dtype=dtype).dtype == "float32"


@pytest.mark.parametrize("dtype", ["complex64", "float", 3, object, "bfloat16"])
def test_other_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        TensorSpec(name="x", shape=(1,), dtype=dtype)


@pytest.mark.parametrize("shape", [(-1,), ("a b",), ("",), (1.5,), 5, ("2x",), (None,)])
def test_other_shapes_are_refused(shape: object) -> None:
    with pytest.raises(ConfigError, match="shape"):
        TensorSpec(name="x", shape=shape)


def test_names_are_bounded() -> None:
    for name in ("", "x" * 201):
        with pytest.raises(ConfigError, match="name"):
            TensorSpec(name=name, shape=())


def test_arrays_that_fit_give_the_named_sizes() -> None:
    assert check_arrays((IMAGE, MASK), arrays(5, 7)) == {"batch": 5, "side": 7}


def _without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in arrays().items() if key != name}


@pytest.mark.parametrize(
    ("given_arrays", "told"),
    [
        (_without("mask"), r"expected inputs \['image', 'mask'\], got \['image'\]"),
        ({**arrays(), "more": np.zeros(1)}, "more"),
        ({**_without("mask"), 7: np.zeros(1)}, "'7'"),
        ({**arrays(), "mask": np.zeros((2, 4), np.uint8)}, "mask: expected dtype bool, got .*uint8"),
        ({**arrays(), "mask": [[True]]}, "mask: expected a NumPy array, got a list"),
        ({**arrays(), "mask": np.zeros((3, 4), bool)}, "mask: dimension 'batch' is 3 here and 2 in another input"),
        ({**arrays(), "mask": np.zeros((2, 4, 1), bool)}, r"mask: expected shape \(batch, side\), got \(2, 4, 1\)"),
        ({**arrays(), "image": np.zeros((2, 3, 4, 5), np.float32)}, "image: expected shape"),
        ({**arrays(), "image": np.zeros((2, 1, 4, 4), np.float32)}, "image: expected shape"),
        (
            {**arrays(), "image": np.zeros((2, 3, 4, 4), np.float32).astype(">f4")},
            "image: expected dtype float32, got >f4",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given_arrays: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_arrays((IMAGE, MASK), given_arrays)


def test_a_scalar_spec_takes_a_scalar_array() -> None:
    assert check_arrays((TensorSpec(name="x", shape=()),), {"x": np.ones((), np.float32)}) == {}


dims = st.one_of(st.integers(0, 6), st.sampled_from(["batch", "tokens"]))


@given(st.lists(dims, max_size=4), st.integers(0, 5), st.integers(0, 5))
def test_a_concrete_shape_fits_its_spec(shape: list, batch: int, tokens: int) -> None:
    spec = TensorSpec(name="x", shape=tuple(shape))
    found = spec.sizes(spec.concrete(batch, tokens=tokens))
    assert found == {name: size for name, size in (("batch", batch), ("tokens", tokens)) if name in shape}
    assert TensorSpec.from_json(spec.to_json()) == spec


def test_the_batch_axis_is_where_the_batch_is() -> None:
    assert IMAGE.batch_axis == 0
    assert TensorSpec(name="x", shape=("tokens", "batch")).batch_axis == 1
    assert TensorSpec(name="x", shape=(3, "tokens")).batch_axis is None
    assert TensorSpec(name="x", shape=("batch",)).shape_text == "(batch,)"
