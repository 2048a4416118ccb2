"""Layers as products of thin ones: what each rank keeps, and the factors.

A layer's error is that of its answers on calibration data: with ``C`` the second moment of what it multiplies, that of
``W - W'`` is ``tr (W - W') C (W - W')^T``. With ``C = S S^T`` it is the plain one of ``W S``, of which a truncated
singular value decomposition is the best there is (Eckart, Young, 1936; with data DRONE: Chen et al., 2021, and SVD-LLM:
Wang et al., 2025). Without data ``C`` is the identity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from tauten.make.layers.low_rank import (
    LowRank,
    channel_pair,
    embedding_pair,
    linear_pair,
    spatial_pair,
    tucker_row,
)
from tauten.make.passes.compress._factor_inputs import Inputs

_TURNS: Final = 3
_RIDGE: Final = 1e-7
_TALL: Final = 4


@dataclass(frozen=True)
class Option:
    """One way to factor a layer: the ``ranks``, how many ``numbers`` the factors have, biases aside, and the share of
    the answers' power that is lost, or about so much."""

    method: str
    ranks: tuple[int, ...]
    numbers: int
    loss: float


class Factoring(ABC):
    """One method for one layer. ``inputs`` are what it multiplies, ``None`` without data."""

    method: ClassVar[str]

    def __init__(self, layer: Any, inputs: Inputs | None) -> None:
        self.layer, self.inputs = layer, inputs

    @property
    def weight(self) -> Tensor:
        """The layer's, in float64."""
        found: Tensor = self.layer.weight.detach().double().cpu()
        return found

    @property
    def second(self) -> Tensor | None:
        """The second moment of what is multiplied, in float64 and made at each call; ``None`` is the identity."""
        if self.inputs is None:
            return None
        # A bias takes up what is lost of the mean, so that only what varies has to be kept.
        return self.inputs.moment(centred=getattr(self.layer, "bias", None) is not None)

    @property
    def matrix(self) -> Tensor:
        """The weight as ``(outputs, inputs)``."""
        return self.weight.flatten(1)

    @abstractmethod
    def options(self, round_to: int = 1) -> list[Option]:
        """Ranks from the smallest to those that lose nothing: multiples of ``round_to``, or all that there is."""

    @abstractmethod
    def make(self, ranks: tuple[int, ...]) -> LowRank:
        """The thin layers."""

    def lost(self, weight: Tensor) -> float:
        """The share of the answers' power that is lost with another weight, in the layer's shape."""
        matrix, second = self.matrix, self.second
        whole = power(matrix, second)
        return power(matrix - weight.detach().double().cpu().flatten(1), second) / whole if whole else 0.0

    def bias(self, weight: Tensor) -> Tensor | None:
        """The layer's bias with what another weight ``(outputs, inputs)`` loses of the mean."""
        bias: Tensor | None = getattr(self.layer, "bias", None)
        if bias is None or self.inputs is None:
            return bias
        return bias.detach().double().cpu() + (self.matrix - weight) @ self.inputs.mean.double()


class Svd(Factoring):
    """Two matrices, of a linear layer or an embedding; of a convolution a thinner one and one of a single place (Zhang
    et al., 2016)."""

    method = "svd"

    def options(self, round_to: int = 1) -> list[Option]:
        outputs, width = self.matrix.shape
        lost = tails(self._parts[1].double().square())
        ranks = rounded(len(lost) - 1, round_to)
        return [Option(self.method, (rank,), rank * (outputs + width), float(lost[rank])) for rank in ranks]

    def make(self, ranks: tuple[int, ...]) -> LowRank:
        (rank,) = ranks
        left, values, right = (part.double() for part in self._parts)
        roots = values[:rank].sqrt()
        outer, inner = left[:, :rank] * roots, unroot(roots[:, None] * right[:rank], self._root)
        bias = self.bias(outer @ inner)
        if isinstance(self.layer, nn.Linear):
            return linear_pair(self.layer, inner, outer, bias)
        if isinstance(self.layer, nn.Embedding):
            if self.layer.padding_idx is not None and not bool(self.weight[self.layer.padding_idx].any()):
                outer[self.layer.padding_idx] = 0
            return embedding_pair(self.layer, outer, inner.T)
        return channel_pair(self.layer, inner.reshape(rank, *self.weight.shape[1:]), outer, bias)

    @property
    def _root(self) -> Tensor | None:
        return root_of(self.second)

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        return tuple(part.float() for part in decompose(times_root(self.matrix, self._root)))


class Spatial(Factoring):
    """A convolution along columns, then one along rows (Jaderberg et al., 2014)."""

    method = "spatial"

    def options(self, round_to: int = 1) -> list[Option]:
        out, channels, height, width = self.weight.shape
        lost = tails(self._parts[1].double().square())
        numbers = channels * height + out * width
        ranks = rounded(len(lost) - 1, round_to)
        return [Option(self.method, (rank,), rank * numbers, float(lost[rank])) for rank in ranks]

    def make(self, ranks: tuple[int, ...]) -> LowRank:
        (rank,) = ranks
        out, channels, height, width = self.weight.shape
        left, values, right = (part.double() for part in self._parts)
        roots = values[:rank].sqrt()
        strip = unroot(right[:rank] * roots[:, None], self._root)  # (rank, channels x height)
        across = (left[:, :rank] * roots).reshape(out, width, rank).transpose(1, 2).reshape(out, rank * width)
        # What follows the strips is fitted to the answers anew, for between columns nothing was looked at yet.
        first = torch.einsum("rp,xy->rxpy", strip, torch.eye(width, dtype=strip.dtype))
        first = first.reshape(rank * width, channels * height * width)
        across = refit(self.matrix, first, self.second, across)
        down = strip.reshape(rank, channels, height)
        return spatial_pair(self.layer, down, across.reshape(out, rank, width), self.bias(across @ first))

    @property
    def _root(self) -> Tensor | None:
        """Of the second moment of a column's strip, whichever column it is."""
        second = self.second
        if second is None:
            return None
        _, channels, height, width = self.weight.shape
        strip = channels * height
        if second.ndim == 1:
            return root_of(second.reshape(strip, width).mean(1))
        return root_of(torch.einsum("pxqx->pq", second.reshape(strip, width, strip, width)) / width)

    @cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        out, channels, height, width = self.weight.shape
        strips = self.weight.permute(0, 3, 1, 2).reshape(out * width, channels * height)
        return tuple(part.float() for part in decompose(times_root(strips, self._root)))


class Tucker(Factoring):
    """A convolution between fewer channels, with one of a single place before and after it (Kim et al., 2016)."""

    method = "tucker"

    def options(self, round_to: int = 1) -> list[Option]:
        out, channels = self.weight.shape[:2]
        places = self.weight[0, 0].numel()
        kernel = self._kernel()
        grams = kernel.flatten(1), kernel.transpose(0, 1).flatten(1)
        lost_out, lost_in = (tails(torch.linalg.eigvalsh(gram @ gram.T).flip(0).clamp(min=0)) for gram in grams)
        found: dict[tuple[int, ...], Option] = {}
        for rank_in in rounded(channels, round_to):
            # About as much is lost on both sides, so that one number says both ranks.
            rank_out = max(1, int((lost_out > lost_in[rank_in]).sum()))
            rank_out = min(out, -(-rank_out // round_to) * round_to)
            numbers = channels * rank_in + rank_in * rank_out * places + rank_out * out
            loss = min(1.0, float(lost_in[rank_in] + lost_out[rank_out]))
            found[rank_out, rank_in] = Option(self.method, (rank_out, rank_in), numbers, loss)
        return list(found.values())

    def make(self, ranks: tuple[int, ...]) -> LowRank:
        rank_out, rank_in = ranks
        channels = self.weight.shape[1]
        places = self.weight[0, 0].numel()
        kernel, second = self._kernel(), self.second
        inside, outside = _bases(kernel, rank_out, rank_in)
        inner = unroot(inside.T, self._root)  # (rank_in, channels)
        core = torch.einsum("oik,or,is->rsk", kernel, outside, inside).flatten(1)
        if second is not None and second.ndim > 1:
            # Given the first of the three, the other two are the best there are (reduced-rank regression).
            first = torch.einsum("rc,xy->rxcy", inner, torch.eye(places, dtype=inner.dtype))
            first = first.reshape(rank_in * places, channels * places)
            both = refit(self.matrix, first, second, outside @ core)
            root = root_of(first @ second @ first.T)
            left, values, right = decompose(times_root(both, root))
            roots = values[:rank_out].sqrt()
            outside, core = left[:, :rank_out] * roots, unroot(roots[:, None] * right[:rank_out], root)
        whole = torch.einsum("or,rsk,sc->ock", outside, core.reshape(rank_out, rank_in, places), inner)
        core = core.reshape(rank_out, rank_in, *self.weight.shape[2:])
        return tucker_row(self.layer, inner, core, outside, self.bias(whole.flatten(1)))

    @property
    def _root(self) -> Tensor | None:
        """Of the second moment of the channels, whatever place of the kernel they are at."""
        second = self.second
        if second is None:
            return None
        channels, places = self.weight.shape[1], self.weight[0, 0].numel()
        if second.ndim == 1:
            return root_of(second.reshape(channels, places).mean(1))
        return root_of(torch.einsum("ckdk->cd", second.reshape(channels, places, channels, places)) / places)

    def _kernel(self) -> Tensor:
        """``(out, channels, places)``, as it counts."""
        kernel = self.weight.flatten(2).transpose(1, 2)
        return times_root(kernel, self._root).transpose(1, 2)


def _bases(kernel: Tensor, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor]:
    """Orthonormal, ``(channels, rank_in)`` and ``(out, rank_out)``: higher-order orthogonal iteration (De Lathauwer et
    al., 2000) from the singular vectors of each side on."""
    inside = leading(kernel.transpose(0, 1).flatten(1), rank_in)
    outside = leading(kernel.flatten(1), rank_out)
    for _ in range(_TURNS):
        outside = leading(torch.einsum("oik,ir->ork", kernel, inside).flatten(1), rank_out)
        inside = leading(torch.einsum("oik,or->irk", kernel, outside).flatten(1), rank_in)
    return inside, outside


def rounded(most: int, round_to: int) -> list[int]:
    """The ranks up to ``most`` that are multiples of ``round_to``, or ``most`` alone where there is none."""
    return list(range(round_to, most + 1, round_to)) or [most]


def power(matrix: Tensor, second: Tensor | None) -> float:
    """The mean square of what ``matrix`` ``(outputs, inputs)`` answers: ``tr M C M^T``."""
    if second is None:
        return float(matrix.square().sum())
    return float((matrix.square() @ second).sum() if second.ndim == 1 else (matrix @ second * matrix).sum())


def tails(powers: Tensor) -> Tensor:
    """Of falling ``powers`` ``(n,)``, the share that all from each place on have: ``(n + 1,)``, from 1 to 0."""
    after = powers.flip(0).cumsum(0).flip(0)
    total = float(after[0]) if len(after) else 0.0
    ends = torch.zeros(1, dtype=powers.dtype)
    return torch.cat([after / total if total > 0 else torch.zeros_like(after), ends])


def root_of(second: Tensor | None) -> Tensor | None:
    """``S`` of ``C = S S^T``: lower triangular, or of a diagonal ``(n,)`` its roots; ``None`` is the identity."""
    if second is None:
        return None
    if second.ndim == 1:
        return second.clamp(min=_RIDGE * max(float(second.mean()), 1e-30)).sqrt()
    ridge = _RIDGE
    while True:
        even = torch.eye(len(second), dtype=second.dtype) * (ridge * max(float(second.diagonal().mean()), 1e-30))
        found = torch.linalg.cholesky_ex(second + even)
        if not int(found.info):
            root: Tensor = found.L
            return root
        ridge *= 10


def times_root(matrix: Tensor, root: Tensor | None) -> Tensor:
    """``M S``, of matrices or rows of them."""
    if root is None:
        return matrix
    return matrix * root if root.ndim == 1 else matrix @ root


def unroot(matrix: Tensor, root: Tensor | None) -> Tensor:
    """``M S^-1``."""
    if root is None:
        return matrix
    return matrix / root if root.ndim == 1 else torch.linalg.solve_triangular(root, matrix, upper=False, left=False)


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``U``, the singular values, falling, and ``V^T``."""
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = decompose(matrix.T)
        return left.T, values, right.T
    if matrix.shape[0] <= _TALL * matrix.shape[1]:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    # Of a table of very many rows the square of the other side says the same, in a tenth of the time.
    powers, vectors = torch.linalg.eigh(matrix.T @ matrix)
    values, vectors = powers.flip(0).clamp(min=0).sqrt(), vectors.flip(1)
    return matrix @ vectors / values.clamp(min=1e-30), values, vectors.T


def leading(matrix: Tensor, rank: int) -> Tensor:
    """The ``rank`` left singular vectors of the largest values, ``(rows, rank)``."""
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T).eigenvectors
    return vectors[:, -rank:].flip(1)


def refit(matrix: Tensor, first: Tensor, second: Tensor | None, start: Tensor) -> Tensor:
    """``H`` for which ``H first`` answers most like ``matrix``: least squares, where more than a diagonal is known."""
    if second is None or second.ndim == 1:
        return start
    given = second @ first.T  # (inputs, rank)
    root = root_of(first @ given)
    found: Tensor = torch.cholesky_solve((matrix @ given).T, root).T  # type: ignore[arg-type]
    return found


METHODS: Final[dict[str, type[Factoring]]] = {kind.method: kind for kind in (Svd, Spatial, Tucker)}
