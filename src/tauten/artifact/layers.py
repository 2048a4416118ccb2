"""What each layer of an artifact weighs, told from its decoded weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import numpy as np
from pydantic import Field

from tauten.artifact.read import Artifact
from tauten.core.tensor import Array
from tauten.core.value import Value

_QUANTIZED: Final = "_quantized"
_PACKED: Final = "_packed"
"""Ends the name of a weight whose bytes hold two 4-bit numbers each, the first in the low half."""

_COMPANIONS: Final = ("_scale", "_zero_point")
"""What belongs to ``X_quantized``, ``X_packed`` or an 8-bit ``X``: ``X_scale`` and ``X_zero_point``."""


class Layer(Value):
    """One weight, and the module that owns it.

    ``shape``, ``dtype``, ``bits`` (of one number) and ``elements`` are of the stored array; of two numbers a byte,
    ``dtype`` is ``int4`` or ``uint4`` and ``elements`` counts the numbers. ``bytes`` is what they take in the
    file before coding, and the scales and zero points that belong to them. ``zeros`` is the share of numbers, from 0 to
    1, that stand for zero.

    Where they were asked for: ``coded_bytes`` is what both take in the file as coded, ``bits_per_weight`` the same for
    one number, and ``entropy`` the bits that one number would take if it were coded by how often it occurs in this
    weight. A bias that a codec keeps as a column of its layer's weight counts there.
    """

    name: str
    weight: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: str
    bits: Annotated[int, Field(ge=1)]
    bytes: Annotated[int, Field(ge=0)]
    elements: Annotated[int, Field(ge=0)]
    zeros: Annotated[float, Field(ge=0, le=1)]
    coded_bytes: Annotated[int, Field(ge=0)] | None = None
    bits_per_weight: Annotated[float, Field(ge=0)] | None = None
    entropy: Annotated[float, Field(ge=0)] | None = None


def layers(artifact: Artifact, *, coded: bool = False) -> tuple[Layer, ...]:
    """A row for each weight, ordered by layer as people count (``2`` before ``10``).

    The rows' bytes add up to the manifest's ``weights_bytes``. ``coded`` asks for what they take in the file, and for
    their entropy, too. Raises ``ArtifactError`` where the weights cannot be decoded.
    """
    weights = artifact.weights()
    found = [
        _layer(name, array, weights, artifact.manifest.layers, halved=name in artifact.manifest.four_bit)
        for name, array in weights.items()
        if _owner(name, weights) is None
    ]
    if coded:
        found = _as_coded(found, weights, artifact.coded_bytes())
    return tuple(sorted(found, key=lambda layer: (_natural(layer.name), _natural(layer.weight))))


def owner_of(artifact: Artifact, name: str) -> str:
    """The path of the module that a weight of that name belongs to."""
    return _module(name, _parameter(name), artifact.manifest.layers)


class Mask(Value):
    """Where a weight is not zero, as a picture: the matrix ``(first dimension, all others)``, drawn in cells.

    ``rows`` holds a hexadecimal digit a cell: ``0`` where all of its numbers are zero, ``f`` where none is. ``shape``
    is that of the stored array, ``zeros`` the share of numbers, from 0 to 1, that stand for zero.
    """

    layer: str
    weight: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    zeros: Annotated[float, Field(ge=0, le=1)]
    rows: tuple[str, ...]


def masks(artifact: Artifact, *, cells: int = 48, least: float = 0.1) -> tuple[Mask, ...]:
    """A mask for each weight of two and more dimensions of which at least the share ``least`` is zero.

    A dimension of more than ``cells`` is drawn in so many. Ordered as ``layers`` are. Raises ``ArtifactError`` where
    the weights cannot be decoded.
    """
    weights = artifact.weights()
    found = []
    for name, array in weights.items():
        if array.ndim < 2 or not array.size or _owner(name, weights) is not None:
            continue
        if name.endswith(_PACKED) and array.dtype == np.uint8:
            array = _unpacked(array)
        weight = _parameter(name)
        zero = _zero_places(name, array, weights)
        share = float(zero.mean())
        if share < least:
            continue
        layer = _module(name, weight, artifact.manifest.layers)
        density = _shrink(np.logical_not(zero).reshape(len(zero), -1), cells)
        rows = tuple("".join(f"{round(cell * 15):x}" for cell in row) for row in density)
        found.append(Mask(layer=layer, weight=weight, shape=array.shape, zeros=share, rows=rows))
    return tuple(sorted(found, key=lambda mask: (_natural(mask.layer), _natural(mask.weight))))


def _shrink(matrix: Array, cells: int) -> Array:
    """The mean of each of at most ``cells`` times ``cells`` blocks of ``(rows, columns)``."""
    for axis in (0, 1):
        size = matrix.shape[axis]
        if size > cells:
            starts = np.arange(cells) * size // cells
            counts = np.diff([*starts, size])
            sums = np.add.reduceat(matrix.astype(np.float64), starts, axis=axis)
            matrix = sums / np.expand_dims(counts, 1 - axis)
    return matrix.astype(np.float64)


def _owner(name: str, weights: Mapping[str, Array]) -> str | None:
    """The quantized weight that ``name`` is a scale or zero point of, where it is one."""
    for suffix in _COMPANIONS:
        base = name.removesuffix(suffix)
        if name == base:
            continue
        for quantized in (base + _QUANTIZED, base + _PACKED):
            if quantized in weights:
                return quantized
        if base in weights and weights[base].dtype in (np.int8, np.uint8):
            return base
    return None


def _parameter(name: str) -> str:
    """The weight's name without what says how it is stored."""
    return name.removesuffix(_QUANTIZED).removesuffix(_PACKED)


def _layer(name: str, array: Array, weights: Mapping[str, Array], modules: Mapping[str, str], *, halved: bool) -> Layer:
    weight = _parameter(name)
    beside = [
        weights[weight + suffix]
        for suffix in _COMPANIONS
        if weight + suffix in weights and _owner(weight + suffix, weights) == name
    ]
    packed = name.endswith(_PACKED) and array.dtype == np.uint8
    own = (array.size + 1) // 2 if halved else array.nbytes
    return Layer(
        name=_module(name, weight, modules),
        weight=weight,
        shape=array.shape,
        dtype="int4" if halved else "uint4" if packed else array.dtype.name,
        bits=4 if halved or packed else array.dtype.itemsize * 8,
        bytes=own + sum(other.nbytes for other in beside),
        elements=array.size * 2 if packed else array.size,
        zeros=_zeros(name, _unpacked(array) if packed else array, weights),
    )


def _as_coded(rows: list[Layer], weights: Mapping[str, Array], taken: Mapping[str, int]) -> list[Layer]:
    """The same rows, with what they take in the file and their entropy."""
    together: dict[str, int] = {}
    stored: dict[str, str] = {}
    for name in weights:
        owner = _owner(name, weights) or name
        weight = _parameter(owner)
        together[weight] = together.get(weight, 0) + taken.get(name, 0)
        stored[weight] = owner
    found = []
    for row in rows:
        array = weights[stored[row.weight]]
        packed = stored[row.weight].endswith(_PACKED) and array.dtype == np.uint8
        update: dict[str, Any] = {"entropy": _entropy(_unpacked(array) if packed else array)}
        if taken:
            size = together[row.weight]
            update |= {"coded_bytes": size, "bits_per_weight": 8 * size / row.elements if row.elements else 0.0}
        found.append(row.model_copy(update=update))
    return found


def _entropy(array: Array) -> float:
    """Bits a number by how often each value occurs (Shannon, 1948); different bits are different values."""
    if not array.size:
        return 0.0
    counts = np.unique(array.reshape(-1).view(f"u{array.dtype.itemsize}"), return_counts=True)[1]
    return float((counts * np.log2(array.size / counts)).sum() / array.size)


def _module(name: str, weight: str, modules: Mapping[str, str]) -> str:
    return modules.get(name) or modules.get(weight) or weight.rpartition(".")[0] or weight


def _zeros(name: str, array: Array, weights: Mapping[str, Array]) -> float:
    return float(np.count_nonzero(_zero_places(name, array, weights)) / array.size) if array.size else 0.0


def _zero_places(name: str, array: Array, weights: Mapping[str, Array]) -> Array:
    """Which numbers of a weight stand for zero; those of packed weights without a zero point lie around the middle."""
    companion = f"{_parameter(name)}_zero_point"
    if _owner(companion, weights) != name:
        companion = ""
    zero_point = weights.get(companion)
    if name.endswith(_PACKED) and array.ndim == 3:
        if zero_point is None:
            return np.asarray(array == 8)
        # A zero point a block, two a byte, each channel's apart.
        nibbles = _unpacked(zero_point.reshape(len(array), -1))[:, : array.shape[1], None]
        return np.asarray(array == nibbles)
    if name.endswith(_QUANTIZED) and array.dtype == np.uint8 and array.ndim == 3:
        middle = 128 if zero_point is None else zero_point.reshape(len(array), -1, 1)
        return np.asarray(array == middle)
    return _is_zero(array, zero_point)


def _unpacked(packed: Array) -> Array:
    """Two numbers for each byte, the low half first, along the last dimension."""
    whole: Any = packed
    numbers: Array = np.stack([whole & 15, whole >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return numbers


def _is_zero(array: Array, zero_point: Array | None) -> Array:
    """Which numbers stand for zero: booleans in the shape of ``array``."""
    zero: Any = 0
    if zero_point is not None and zero_point.size:
        if (zero_point == zero_point.flat[0]).all():
            zero = zero_point.flat[0]
        else:
            # A zero point a channel: along the first axis that has as many channels.
            axis = next((axis for axis, size in enumerate(array.shape) if size == zero_point.size), None)
            if axis is not None:
                zero = zero_point.reshape([-1 if index == axis else 1 for index in range(array.ndim)])
    return np.asarray(array == zero)


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key in which numbers inside ``text`` count as numbers."""
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
