"""A layer as a linear map of rows: each row is what one output position reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tauten.make.graph.ids import IdArray

MOST_ROWS = 32_768
"""Positions that are looked at of a layer, drawn by chance where there are more."""
NUMBERS = 2**24
"""How many numbers of rows are copied at a time."""
HELD_OUT = 4
"""One sample of so many chooses the strength of a fit."""
Layer = nn.Linear | nn.Conv1d | nn.Conv2d


class Reading:
    """What ``layer`` reads and answers, the same positions of the smaller and of the whole module.

    ``gone`` are the outputs that the layer has lost against the whole module.
    """

    def __init__(self, layer: Layer, gone: IdArray | None) -> None:
        self._layer = layer
        whole = layer.weight.shape[0] + (0 if gone is None else len(gone))
        kept = np.arange(whole) if gone is None else np.setdiff1d(np.arange(whole), gone)
        self._kept = torch.from_numpy(kept)

    def take(self, answer: torch.Tensor) -> torch.Tensor:
        """``(rows, out)``: what the whole module's layer answered, of the outputs and positions that are looked at."""
        axis = self._channel_axis(answer)
        rows = answer.index_select(axis, self._kept.to(answer.device)).movedim(axis, -1).flatten(0, -2)
        return rows[_some(len(rows))].clone()

    def parts(
        self, given: torch.Tensor, wanted: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """``(rows, in)``, what is missing of ``wanted`` ``(rows, out)``, and whether a row is held out, in parts.

        Whole samples are held out, as positions of one sample are too alike to judge a fit of the others.
        """
        layer, weight = self._layer, self._layer.weight.flatten(1)
        for first, rows, chosen in self._rows(given):
            at = slice(first, first + len(rows))
            answer = rows @ weight.T
            if layer.bias is not None:
                answer = answer + layer.bias
            yield rows.cpu(), (wanted[at] - answer).cpu(), chosen % HELD_OUT == HELD_OUT - 1

    def _rows(self, given: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """``(number of the first row, rows, samples of the rows)``."""
        samples = len(given)
        if isinstance(self._layer, nn.Linear):
            rows = given.flatten(0, -2)
            step = max(1, NUMBERS // max(self._layer.weight.shape))
            first = 0
            for own in torch.split(_some(len(rows)), step):
                yield first, rows[own], own // max(1, len(rows) // samples)
                first += len(own)
            return
        positions = len(_patches(self._layer, given[:1]))
        chosen = _some(samples * positions)
        step = max(1, NUMBERS // (self._layer.weight[0].numel() * positions))
        first = 0
        for start in range(0, samples, step):
            own = chosen[(chosen >= start * positions) & (chosen < (start + step) * positions)]
            if len(own):
                patches = _patches(self._layer, given[start : start + step])
                yield first, patches[own - start * positions], own // positions
            first += len(own)

    def _channel_axis(self, answer: torch.Tensor) -> int:
        return -1 if isinstance(self._layer, nn.Linear) else answer.ndim - self._layer.weight.ndim + 1


def _some(count: int) -> torch.Tensor:
    """Rows to look at, rising: all of them or ``MOST_ROWS`` by chance, the same for the same count."""
    if count <= MOST_ROWS:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MOST_ROWS].sort().values


def _patches(layer: nn.Conv1d | nn.Conv2d, given: torch.Tensor) -> torch.Tensor:
    """``(samples x positions, in x kernel)``, positions in the order of the layer's output."""
    padding = layer.padding
    if isinstance(padding, str):
        given = functional.pad(given, layer._reversed_padding_repeated_twice) if padding == "same" else given
        padding = (0,) * len(layer.kernel_size)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d):
        given = given.unsqueeze(-2)
        kernel, dilation, padding, stride = (1, *kernel), (1, *dilation), (0, *padding), (1, *stride)
    found = functional.unfold(given, kernel, dilation, padding, stride)
    return found.movedim(1, -1).flatten(0, -2)
