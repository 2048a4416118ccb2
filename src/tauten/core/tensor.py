"""What an array at a model's border looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from tauten.core.value import Value
from tauten.errors import InputError

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]
DType = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
]
Dim = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

BATCH = "batch"


class TensorSpec(Value):
    """Name, element type and shape of one input or output.

    A dimension is a number or a name; a named dimension varies between calls, and the same name means the same size.
    The first dimension named ``"batch"`` counts the samples.

    >>> TensorSpec(name="image", shape=("batch", 1, 8, 8)).sizes({"image": (5, 1, 8, 8)}["image"])
    {'batch': 5}
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    shape: tuple[Dim, ...]
    dtype: DType = "float32"

    @field_validator("dtype", mode="before")
    @classmethod
    def _name_of_dtype(cls, value: object) -> object:
        if isinstance(value, str):
            return value.removeprefix("torch.")
        if isinstance(value, type | np.dtype):
            return np.dtype(value).name
        return str(value).removeprefix("torch.")

    @property
    def batch_axis(self) -> int | None:
        """Where the samples are counted, or ``None`` where the shape has no batch."""
        return self.shape.index(BATCH) if BATCH in self.shape else None

    def sizes(self, shape: Sequence[int]) -> dict[str, int]:
        """The named dimensions' sizes in ``shape``; ``InputError`` where it does not fit."""
        found: dict[str, int] = {}
        fits = len(shape) == len(self.shape)
        for expected, came in zip(self.shape, shape, strict=False):
            fits = fits and (found.setdefault(expected, came) if isinstance(expected, str) else expected) == came
        if not fits:
            raise InputError(f"{self.name}: expected shape {self.shape_text}, got {tuple(shape)}")
        return found

    @property
    def shape_text(self) -> str:
        return "(" + ", ".join(str(dim) for dim in self.shape) + ("," if len(self.shape) == 1 else "") + ")"

    def concrete(self, batch: int = 1, **sizes: int) -> tuple[int, ...]:
        """A shape with numbers only; a named dimension that is not given becomes 1."""
        known = {BATCH: batch, **sizes}
        return tuple(known.get(dim, 1) if isinstance(dim, str) else dim for dim in self.shape)


def check_arrays(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[str, int]:
    """Hold ``arrays`` against ``specs``; returns the sizes of the named dimensions.

    Raises ``InputError`` for a missing or unknown name, another dtype, a shape that does not fit, or a named
    dimension with two sizes.
    """
    names = [spec.name for spec in specs]
    if set(names) != set(arrays):
        raise InputError(f"expected inputs {names}, got {sorted(str(name) for name in arrays)}")
    found: dict[str, int] = {}
    for spec in specs:
        array = arrays[spec.name]
        if not isinstance(array, np.ndarray):
            raise InputError(f"{spec.name}: expected a NumPy array, got a {type(array).__name__}")
        # A dtype's name hides its byte order, which an engine would not notice.
        if array.dtype.name != spec.dtype or not array.dtype.isnative:
            raise InputError(f"{spec.name}: expected dtype {spec.dtype}, got {array.dtype.str} ({array.dtype.name})")
        for dim, size in spec.sizes(array.shape).items():
            if found.setdefault(dim, size) != size:
                raise InputError(f"{spec.name}: dimension {dim!r} is {size} here and {found[dim]} in another input")
    return found
