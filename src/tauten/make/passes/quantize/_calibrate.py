"""What layers are given on calibration data: ranges, and what second-order methods need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tauten.core.rows import count_rows
from tauten.core.tensor import Arrays
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.ranges import BINS, CHOOSERS, Range
from tauten.make.model.run import Tensors, call
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.quantize._matrix import Rows, as_rows, fits
from tauten.make.passes.quantize._sites import plain_attention

Calibration = Literal["minmax", "percentile", "mse", "entropy"]

_BATCH: Final = 32
_MOST_BYTES: Final = 512 * 2**20  # of second moments that are held at once


@dataclass(frozen=True)
class Data:
    """The first ``samples`` samples of calibration data, to run a module of ``model``'s borders on."""

    model: Model
    context: Context
    samples: int

    def batches(self) -> Iterator[Arrays]:
        data = self.context.task.data("calibrate")
        for inputs, _ in Samples(data, self.model.inputs, self.samples).batches(_BATCH):
            yield inputs

    def run(self, module: nn.Module, most: int | None = None) -> Iterator[Tensors]:
        """Outputs a batch, of at most ``most`` batches."""
        with torch.no_grad(), plain_attention():
            for inputs in islice(self.batches(), most):
                yield call(module, self.model.inputs, self.model.outputs, inputs)

    def walk(self, module: nn.Module, most: int | None = None) -> None:
        """Run for what hooks see."""
        for _ in self.run(module, most):
            pass

    def count(self) -> int:
        """How many samples there are."""
        return sum(count_rows(self.model.inputs, inputs) for inputs in self.batches())


Hook = Callable[[nn.Module, Tensor, Tensor], None]
"""Told of each call of a layer: the layer, its input, its output."""


@contextmanager
def watching(layers: Mapping[str, nn.Module], make: Callable[[str], Hook]) -> Iterator[None]:
    """While this is open, each call of ``layers[path]`` is told to ``make(path)``."""

    def register(path: str, layer: nn.Module) -> Any:
        told = make(path)
        return layer.register_forward_hook(lambda of, args, answer: told(of, args[0], answer))

    handles = [register(path, layer) for path, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_ranges(
    module: nn.Module, layers: Mapping[str, nn.Module], data: Data, method: Calibration
) -> dict[str, Range]:
    """The range of each layer's input, over all its calls; it always holds 0.

    Two walks over the data, one for the extremes and, but for ``minmax``, one for histograms between them: memory does
    not grow with the data. Numbers that are not finite are left out.
    """
    ends: dict[str, Range] = dict.fromkeys(layers, (0.0, 0.0))

    def widen(path: str) -> Hook:
        def told(layer: nn.Module, x: Tensor, answer: Tensor) -> None:
            if not x.numel():
                return
            low, high = (float(end) for end in torch.aminmax(x))
            if not np.isfinite(high - low):
                finite = x[torch.isfinite(x)]
                low, high = (float(end) for end in torch.aminmax(finite)) if finite.numel() else (0.0, 0.0)
            ends[path] = (min(ends[path][0], low), max(ends[path][1], high))

        return told

    with watching(layers, widen):
        data.walk(module)
    if method == "minmax":
        return ends
    counts = {path: np.zeros(BINS) for path in layers}

    def count(path: str) -> Hook:
        def told(layer: nn.Module, x: Tensor, answer: Tensor) -> None:
            if ends[path][0] < ends[path][1]:
                array = x.detach().cpu().float().numpy()
                # Zeros, of which a ReLU makes many, are exact in any range and would outweigh all else.
                counts[path] += np.histogram(array[array != 0], bins=BINS, range=ends[path])[0]

        return told

    with watching(layers, count):
        data.walk(module)
    choose = CHOOSERS[method]
    return {path: choose(counts[path], ends[path]) if counts[path].any() else ends[path] for path in layers}


def find_moments(
    module: nn.Module, layers: Mapping[str, nn.Module], data: Data, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Of each layer that is a matrix product, the mean of ``x x^T`` over its inputs: ``(groups, inputs, inputs)``.

    Layers are taken together as far as memory allows, with a walk over the data for each such part.
    """
    for part in in_parts({path: layer for path, layer in layers.items() if fits(layer)}, _moment_bytes):
        sums = {path: _Moment(seed) for path in part}
        with watching(part, {path: moment.add for path, moment in sums.items()}.__getitem__):
            data.walk(module)
        for path, moment in sums.items():
            if moment.total is not None and bool(torch.isfinite(moment.total).all()):
                yield path, moment.total / moment.rows


class _Moment:
    """Sums up ``x x^T`` over the calls of one layer."""

    def __init__(self, seed: int) -> None:
        self.total: Tensor | None = None
        self.rows = 0
        self._draw = torch.Generator().manual_seed(seed)

    def add(self, layer: nn.Module, x: Tensor, answer: Tensor) -> None:
        own: Rows = as_rows(layer, x, self._draw)
        if own.shape[1]:
            moment = own.transpose(1, 2) @ own
            self.total = moment if self.total is None else self.total + moment
            self.rows += own.shape[1]


def in_parts(layers: Mapping[str, nn.Module], held_bytes: Callable[[nn.Module], int]) -> Iterator[dict[str, nn.Module]]:
    """The layers in their order, so many together as hold ``_MOST_BYTES`` by ``held_bytes``, and at least one."""
    part: dict[str, nn.Module] = {}
    held = 0
    for path, layer in layers.items():
        size = held_bytes(layer)
        if part and held + size > _MOST_BYTES:
            yield part
            part, held = {}, 0
        part[path] = layer
        held += size
    if part:
        yield part


def _moment_bytes(layer: nn.Module) -> int:
    groups = int(getattr(layer, "groups", 1))
    return 4 * groups * layer.get_parameter("weight")[0].numel() ** 2
