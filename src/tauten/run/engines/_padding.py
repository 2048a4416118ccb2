"""Calls without the columns that are padding in every sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tauten.artifact.read import Artifact
from tauten.core.tensor import BATCH, Array, TensorSpec
from tauten.core.value import Value
from tauten.errors import ArtifactError, ConfigError

SETTING: Final = "padding"
"""What a manifest's ``settings`` call it."""


class Padding(Value):
    """What an artifact says of padding.

    ``mask`` names an input ``(batch, length)`` whose zeros close positions. Where the last columns are closed for all
    samples of a call, the model answers the same without them, which lowering has measured. Lengths are rounded up to a
    ``multiple``: engines make kernels or plans anew for each.
    """

    mask: Annotated[str, Field(min_length=1)]
    multiple: Annotated[int, Field(ge=1, le=1024)] = 8

    @classmethod
    def of(cls, artifact: Artifact) -> Self | None:
        """What the artifact's settings say; ``ArtifactError`` where that does not fit its inputs."""
        told = artifact.manifest.settings.get(SETTING)
        if told is None:
            return None
        try:
            padding = cls.from_json(told)
            check_borders(padding, artifact.manifest.inputs, artifact.manifest.outputs)
        except ConfigError as fault:
            raise ArtifactError(f"{artifact.path}: settings: {SETTING}: {fault}") from None
        return padding


def find_axes(padding: Padding, specs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """By an input's name, the axes that are as long as the mask; ``ConfigError`` where the mask is none."""
    mask = next((spec for spec in specs if spec.name == padding.mask), None)
    if mask is None or len(mask.shape) != 2 or mask.shape[0] != BATCH or not isinstance(mask.shape[1], str):
        told = "there is no input of that name" if mask is None else f"it is {mask.shape_text}"
        raise ConfigError(f"mask: expected an input (batch, a named dimension), got {padding.mask!r}: {told}")
    dim = mask.shape[1]
    axes = {spec.name: tuple(axis for axis, name in enumerate(spec.shape) if name == dim) for spec in specs}
    return {name: found for name, found in axes.items() if found}


def check_borders(
    padding: Padding, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, tuple[int, ...]]:
    """``find_axes`` of ``inputs``; ``ConfigError`` too where a model of these borders cannot do without columns.

    That is where an output is as long as the mask, and where an input is that does not count samples first.
    """
    axes = find_axes(padding, inputs)
    dim = next(spec.shape[1] for spec in inputs if spec.name == padding.mask)
    odd = [spec.name for spec in inputs if spec.name in axes and (spec.shape[0] != BATCH or 0 in axes[spec.name])]
    if odd:
        raise ConfigError(f"mask: expected inputs that are as long as {padding.mask!r} to count samples first: {odd}")
    long = [spec.name for spec in outputs if dim in spec.shape]
    if long:
        raise ConfigError(f"mask: expected outputs without the dimension {dim!r} of {padding.mask!r}, {long} have it")
    return axes


class Shortener:
    """Leaves padding out of calls, as ``padding`` says; without one, calls stay as they are."""

    def __init__(self, padding: Padding | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._padding = padding
        self._axes = {} if padding is None else check_borders(padding, inputs, outputs)

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The inputs without trailing columns that no sample has open, in memory of one piece.

        A call stays as it is where a sample has no open position at all: what a model makes of that, each column may
        have a part in.
        """
        if self._padding is None:
            return inputs
        mask = inputs[self._padding.mask]
        if mask.size == 0:
            return inputs
        seen: npt.NDArray[np.bool_] = np.logical_or.reduce(mask, axis=0)
        length = len(seen)
        # The usual call has its last column open, and is to cost nothing.
        if seen[-1]:
            return inputs
        multiple = self._padding.multiple
        open_ = length - int(seen[::-1].argmax())
        kept = -(-open_ // multiple) * multiple
        if kept >= length or not np.logical_or.reduce(mask, axis=1).all():
            return inputs
        return {name: self._cut(name, array, kept) for name, array in inputs.items()}

    def _cut(self, name: str, array: Array, kept: int) -> Array:
        for axis in self._axes.get(name, ()):
            array = array[(slice(None),) * axis + (slice(kept),)]
        return np.ascontiguousarray(array)

    def describe(self) -> dict[str, Any]:
        """The part of an engine's description that tells of padding."""
        return {} if self._padding is None else {SETTING: self._padding.to_json()}
