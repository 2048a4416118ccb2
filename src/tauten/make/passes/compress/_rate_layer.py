"""A weight that is pruned and rounded while it learns: what a layer computes with is computed from a latent.

The latent of a pruned weight goes on learning and may return (dynamic pruning with feedback: Lin et al., 2020).
Rounding and pruning have no slope, so that gradients pass straight through them (Bengio et al., 2013), and the step of
the grid learns from what rounding loses (LSQ: Esser et al., 2020), by its logarithm. Changed: a weight that is not
pruned has at least one level, so that the mask alone says what is zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from tauten.make.passes.compress._steps import LARGEST_LEVEL, short_step

_OWNERS: Final = (nn.Linear, _ConvNd, nn.Embedding, nn.MultiheadAttention)
_PACE: Final = 0.1
"""The logarithm of a step moves so much slower than a weight: it learns from all of them at once."""
_WATCHED: Final = 4
"""Of so many gradients one is looked at: squaring all of them would take a quarter of a small layer's time."""
_KEEPS: Final = 0.96
"""What of the averages of squared gradients is left after one that is looked at."""


class RateWeight(nn.Module):
    """Computes a weight from its latent, both of ``mask``'s shape, and watches its gradient.

    ``mask`` (bool) says what is not pruned. With ``step`` the weight lies on multiples of it, else it is the latent
    itself. ``row_square (rows,)`` and ``column_square (columns,)`` are moving averages of the squared gradient, over
    the columns and over the rows, of the weight seen as a matrix of its first dimension by all others.
    """

    mask: Tensor
    start: Tensor
    seen: Tensor
    row_square: Tensor
    column_square: Tensor

    def __init__(self, mask: Tensor, step: float | None = None) -> None:
        super().__init__()
        rows, columns = len(mask), mask.numel() // len(mask)
        self.rounds = step is not None
        self._known: object = None
        self._places = torch.empty(0, dtype=torch.int64)
        self.register_buffer("mask", mask.clone())
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("row_square", torch.zeros(rows, device=mask.device))
        self.register_buffer("column_square", torch.zeros(columns, device=mask.device))
        if step is not None:
            self.register_buffer("start", torch.tensor(step, device=mask.device))
            self.growth = nn.Parameter(torch.zeros((), device=mask.device))

    @property
    def step(self) -> Tensor:
        """The step of the grid, a short one; where it rounds."""
        return short_step((self.start * (_PACE * self.growth.detach()).exp()).float())

    def forward(self, latent: Tensor) -> Tensor:
        if not self.rounds:
            masked: Tensor = _Masked.apply(latent, self.mask, self._watch)  # type: ignore[no-untyped-call]
            return masked
        rounded: Tensor = _Rounded.apply(  # type: ignore[no-untyped-call]
            latent, self.growth, self._kept(), self.step, self._watch
        )
        return rounded

    def levels(self, latent: Tensor) -> Tensor:
        """The whole numbers that the weight is multiples of its step by, in float32 and the latent's shape."""
        return _levels(latent.detach(), self.step) * self.mask

    def importance(self) -> Tensor:
        """The squared gradient of each weight, ``(rows, columns)``: the averages' product, which is of rank one."""
        return torch.outer(self.row_square, self.column_square) / self.row_square.mean().clamp_min(1e-30)

    def _kept(self) -> Tensor:
        """Where the mask is set, row by row: few places, so that rounding is soon done. Found anew where it changed."""
        now = (self.mask.data_ptr(), self.mask._version, self.mask.device)
        if self._known != now:
            self._known, self._places = now, self.mask.flatten().nonzero().flatten()
        return self._places

    def _watch(self, gradient: Tensor) -> None:
        self.seen += 1
        if int(self.seen) % _WATCHED != 1:
            return
        squares = gradient.detach().reshape(len(gradient), -1).float().square()
        for kept, fresh in ((self.row_square, squares.mean(1)), (self.column_square, squares.mean(0))):
            # A gradient that overflowed, as scaled losses let it, says nothing.
            kept.lerp_(torch.nan_to_num(fresh, 0.0, 0.0), 1 - _KEEPS)

    def extra_repr(self) -> str:
        return f"{tuple(self.mask.shape)}, rounds={self.rounds}"


@dataclass(frozen=True)
class Part:
    """One parameter that is coded: ``name`` of the module ``owner`` at ``path``, and what computes it."""

    path: str
    name: str
    owner: nn.Module
    weight: RateWeight

    @property
    def full_name(self) -> str:
        """As the module without parametrizations has it."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def latent(self) -> nn.Parameter:
        """What learns."""
        found: nn.Parameter = self.owner.parametrizations[self.name].original  # type: ignore[index,union-attr]
        return found

    def value(self) -> Tensor:
        """The weight that the layer computes with, without a gradient."""
        with torch.no_grad():
            found: Tensor = self.weight(self.latent)
            return found


def find(module: nn.Module) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """The parameters that can be coded, by their names, as the owner's path and their name in it; and those that
    cannot, with why."""
    count = Counter(id(one) for _, one in module.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[str, str]] = {}
    refused: dict[str, str] = {}
    for path, owner in module.named_modules():
        for name, one in owner.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if not isinstance(owner, _OWNERS):
                if one.ndim >= 2:
                    refused[full] = f"a {type(owner).__name__} may use it in ways that are not known"
            elif count[id(one)] > 1:
                refused[full] = "it is shared by several layers"
            elif getattr(owner, "sparse", False):
                refused[full] = "its gradients are sparse"
            elif one.dtype != torch.float32:
                refused[full] = f"expected float32, it is {str(one.dtype).removeprefix('torch.')}"
            elif one.requires_grad and one.numel():
                found[full] = (path, name)
    return found, refused


def attach(
    module: nn.Module, places: Mapping[str, tuple[str, str]], made: Callable[[str, Tensor], RateWeight]
) -> list[Part]:
    """Let the parameters at ``places`` be computed by what ``made`` gives for their name and value."""
    parts = []
    for full, (path, name) in places.items():
        owner = module.get_submodule(path)
        weight = made(full, getattr(owner, name).detach())
        parametrize.register_parametrization(owner, name, weight)
        parts.append(Part(path, name, owner, weight))
    return parts


def detach(parts: list[Part]) -> None:
    """Put what is computed in the parameters' places, bit for bit."""
    for part in parts:
        parametrize.remove_parametrizations(part.owner, part.name, leave_parametrized=True)
        # A zero that a negative latent was masked to is -0.0, which is another pattern of bits.
        with torch.no_grad():
            getattr(part.owner, part.name).add_(0.0)


def _levels(latent: Tensor, step: Tensor) -> Tensor:
    size = (latent.abs() / step).round_().clamp_(1, LARGEST_LEVEL)
    return torch.where(latent < 0, -size, size)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, mask: Tensor, watch: Callable[[Tensor], None]) -> Tensor:
        ctx.watch = watch
        # In memory as the latent lies: a kernel of one input channel would else lie anew, and what it computes.
        return torch.mul(latent, mask, out=torch.empty_like(latent))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        ctx.watch(gradients[0])
        return gradients[0], None, None


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, growth: Tensor, kept: Tensor, step: Tensor, watch: Callable[[Tensor], None]
    ) -> Tensor:
        held = latent.take(kept)
        levels = _levels(held, step)
        ctx.watch = watch
        ctx.save_for_backward(held, levels, kept, step)
        return torch.zeros_like(latent).put_(kept, levels * step)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        held, levels, kept, step = ctx.saved_tensors
        ctx.watch(gradient)
        # d(step * level) / d(log step): what rounding adds, or the whole number where the smallest level holds it.
        scaled = held / step
        slope = torch.where(scaled.abs() < 0.5, levels, levels - scaled) * step
        share = _PACE * max(1, kept.numel()) ** -0.5
        return gradient, (gradient.take(kept) * slope).sum() * share, None, None, None
