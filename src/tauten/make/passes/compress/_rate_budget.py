"""Which weights stay, again and again while a model trains: those that the loss needs most for the bits they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed
from torch import Tensor, nn

from tauten.make.passes.compress._rate_bits import coded_bytes, estimate, estimate_all, measured
from tauten.make.passes.compress._rate_layer import Part

_EVERY: Final = 60
"""Steps between two choices, where the training is long enough for it."""
_CHOICES: Final = 40
_DECAY: Final = 0.951
_DECAYS_EVERY: Final = 10
"""Every so many steps a pruned weight's latent keeps that share: it returns only where its gradients insist."""
_STAYS: Final = 8.0
"""How much more a weight on a grid counts where it stays: one that returns begins with a whole step, a jolt."""
_ROUNDS: Final = 5
_TRIMS: Final = 30
_TIGHTENINGS: Final = 16
"""How often bytes are held while what was trimmed is learned around."""
_CAREFUL: Final = 4.0
"""Bits pruned at once for a byte too many: what is left codes better then, so that fewer have to go than it seems."""


@dataclass(frozen=True)
class Allocator:
    """Called before each step; what it needs is in the parts, so that a training which goes on lacks nothing.

    ``budget`` gives the bits at a share of the training; after ``until`` of it nothing is pruned and nothing returns.
    """

    parts: list[Part]
    budget: Callable[[float], float]
    until: float

    @torch.no_grad()
    def __call__(self, step: int, steps: int) -> None:
        last = round(self.until * steps)
        if step > last:
            return
        if step % _DECAYS_EVERY == 0:
            for part in self.parts:
                part.latent.mul_(torch.where(part.weight.mask, 1.0, _DECAY))
        if step and (step % max(1, min(_EVERY, steps // _CHOICES)) == 0 or step == last):
            choose(self.parts, self.budget(step / steps))


@dataclass(frozen=True)
class Tightener:
    """Called before each step as well: trims to ``target`` bytes again and again until ``until`` of the training.

    Nothing returns. Levels that grow make the file larger, the more so the longer they learn, so that trimming only
    when they no longer do would take what the model counts on.
    """

    module: nn.Module
    parts: list[Part]
    target: int
    until: float

    def __call__(self, step: int, steps: int) -> None:
        last = round(self.until * steps)
        # Not at the start: what weights are worth is told by gradients.
        if step and step <= last and (step % max(1, last // _TIGHTENINGS) == 0 or step == last):
            trim(self.module, self.parts, self.target)


@torch.no_grad()
def trim(module: nn.Module, parts: list[Part], target: int) -> None:
    """Prune what is worth least for the bits the coder gives it, until it makes at most ``target`` bytes of all."""
    for _ in range(_TRIMS):
        excess = coded_bytes(module, parts) - target
        if excess <= 0:
            return
        bits = [measured(part) for part in parts]
        more = torch.cat([one.more.flatten() for one in bits])
        mask = torch.cat([part.weight.mask.flatten() for part in parts])
        score = torch.cat([_worth(part).flatten() for part in parts]) / more
        order = torch.argsort(score.masked_fill(~mask, torch.inf))
        count = 1 + int(torch.searchsorted(torch.cumsum(more[order].double(), 0), _CAREFUL * excess))
        mask[order[: min(count, int(mask.sum()))]] = False
        for part, kept in zip(parts, torch.split(mask, [part.latent.numel() for part in parts]), strict=True):
            part.weight.mask.copy_(kept.view_as(part.weight.mask))


def choose(parts: list[Part], budget: float) -> float:
    """Set the masks so that the estimate is ``budget`` bits, by loss for bits; returns the estimate.

    What a weight is worth is its squared gradient times its square, the loss that setting it to zero takes to second
    order (optimal brain damage: LeCun et al., 1990). The bits are those that the masks have now lead to, so that rows
    and columns with many weights attract more.
    """
    bits = [estimate(part, _matrix(part.weight.mask)) for part in parts]
    worth = [_worth(part) for part in parts]
    more = torch.cat([one.more.flatten() for one in bits])
    held = torch.cat([(1 + _STAYS * part.weight.rounds) * part.weight.mask.flatten() for part in parts])
    score = torch.cat([one.flatten() for one in worth]) / more * held.clamp_min(1)
    order = torch.argsort(score, descending=True)
    spent = torch.cumsum(more[order].double(), 0)
    allowed = budget - float(sum(one.zero.sum() for one in bits))
    allowed = max(allowed, 0.05 * budget)
    kept, total = torch.zeros_like(score, dtype=torch.bool), 0.0
    for _ in range(_ROUNDS):
        count = int(torch.searchsorted(spent, allowed))
        kept.zero_()[order[:count]] = True
        _put(parts, kept, worth)
        total = estimate_all(parts)
        if abs(total - budget) <= 0.002 * budget or count == len(order):
            break
        allowed *= budget / total
    return total


def _worth(part: Part) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Each process saw the gradients of its own share of the batches, and all must choose alike.
        for average in (part.weight.row_square, part.weight.column_square):
            torch.distributed.all_reduce(average)
            average /= torch.distributed.get_world_size()
    return part.weight.importance() * _matrix(part.latent).square()


def _put(parts: list[Part], kept: Tensor, worth: list[Tensor]) -> None:
    at = 0
    for part, of_part in zip(parts, worth, strict=True):
        mask = kept[at : at + of_part.numel()]
        at += of_part.numel()
        if part.latent.ndim > 1:
            # A layer without a weight would cut the network through.
            mask[of_part.argmax()] = True
        part.weight.mask.copy_(mask.view_as(part.weight.mask))


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(len(tensor), -1)
