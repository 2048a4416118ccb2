"""What weights will take once they are coded: an estimate for each, and the bytes that the codec really makes."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from tauten.codecs import CODECS
from tauten.codecs._mixing import alternatives
from tauten.make.passes.compress._rate_layer import Part

CODEC: Final = "arithmetic"
PLAIN_VALUE: Final = 2.6
"""Bits of a value before it has a grid: its sign, and about as much as a step of 0.6 times the mean leaves."""
_SMALLEST: Final = 0.5
_LARGEST_SHARE: Final = 0.95
_DISTINCT: Final = 64


class Bits(NamedTuple):
    """For each weight, ``(rows, columns)``: the bits that it takes more than a zero would, and those of a zero."""

    more: Tensor
    zero: Tensor

    def total(self, mask: Tensor) -> float:
        """Bits of all weights together, of which ``mask`` tells those that are not zero."""
        return float(self.zero.sum() + self.more[mask].sum())


def estimate(part: Part, mask: Tensor) -> Bits:
    """Bits by the densities of rows and columns, as an adaptive coder learns them; ``mask`` is ``(rows, columns)``.

    A weight is not zero with the probability ``row count * column count / count``; a vector's numbers all with one.
    """
    held = mask.float()
    count = held.sum()
    if part.latent.ndim < 2:
        share = ((count + 0.5) / (held.numel() + 1)).expand_as(held)
    else:
        share = torch.outer(held.sum(1) + 0.3, held.sum(0) + 0.3) / (count + 1)
    share = share.clamp(1e-6, _LARGEST_SHARE)
    zero = -torch.log2(1 - share)
    return Bits((-torch.log2(share) - zero + _value(part, mask)).clamp_min(_SMALLEST), zero)


def measured(part: Part) -> Bits:
    """The same by the coder itself, at the point of the code where each weight stands; an estimate for what is zero."""
    mask = part.weight.mask.reshape(len(part.weight.mask), -1)
    found = estimate(part, mask)
    if not part.weight.rounds or part.latent.ndim < 2:
        return found
    levels = part.weight.levels(part.latent).reshape(mask.shape).to("cpu", torch.int32)
    told = torch.from_numpy(alternatives(levels.numpy(), math.prod(part.latent.shape[2:])))
    more = (told[..., 2] - told[..., 0]).to(mask.device).clamp_min(_SMALLEST)
    return found._replace(more=torch.where(mask, more, found.more))


def estimate_all(parts: list[Part]) -> float:
    """Bits of all parts with the masks that they have."""
    masks = [part.weight.mask.reshape(len(part.weight.mask), -1) for part in parts]
    return sum(estimate(part, mask).total(mask) for part, mask in zip(parts, masks, strict=True))


def _value(part: Part, mask: Tensor) -> Tensor:
    """Bits of each weight's sign and magnitude where it is not zero, by how often its layer has that magnitude."""
    if not part.weight.rounds:
        return torch.tensor(PLAIN_VALUE, device=mask.device)
    sizes = (part.latent.detach().abs() / part.weight.step).round_().clamp_(1, _DISTINCT).long().reshape(mask.shape)
    counts = torch.bincount(sizes[mask], minlength=_DISTINCT + 1).float()
    # A magnitude that is rare costs what it took to tell that it is none of the smaller ones.
    bits = 1 - torch.log2((counts + 0.5) / (counts.sum() + 2))
    bits[0] = 0  # no weight that stays has the magnitude 0
    return torch.cummax(bits, 0).values[sizes]


def coded_bytes(module: nn.Module, parts: list[Part], zero: bool = False) -> int:
    """Bytes of the file with all tensors of ``module``, its parts as they are computed, or with ``zero`` as zeros."""
    coded = {f"{part.path}.parametrizations.{part.name}.".removeprefix("."): part for part in parts}
    arrays = {
        name: tensor.detach().cpu().contiguous().numpy()
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor) and not name.startswith(tuple(coded))
    }
    for part in parts:
        value = part.value() + 0.0
        arrays[part.full_name] = (torch.zeros_like(value) if zero else value).cpu().contiguous().numpy()
    return len(CODECS.get(CODEC).encode(arrays))
