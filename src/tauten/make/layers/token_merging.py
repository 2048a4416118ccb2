"""Transformer blocks that merge alike tokens as they go, and hand out as many tokens as they were given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tauten.make.layers.choice import note_choice


class SizedAttention(TorchFunctionMode):
    """Inside, every attention counts a key of size ``s`` as ``s`` equal keys: ``log s`` is added to its scores.

    ``size`` is ``(batch, tokens)``. Found are PyTorch's fused attention, ``nn.MultiheadAttention``, and a softmax over
    the last of two dimensions of as many entries as there are tokens.
    """

    def __init__(self, size: torch.Tensor) -> None:
        super().__init__()
        self._bias = size.log()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention and given.get("attn_mask") is None and len(args) == 3:
            given["attn_mask"] = self._bias[:, None, None, :].to(args[0].dtype)
        elif func is functional.multi_head_attention_forward and given.get("key_padding_mask") is None:
            given["key_padding_mask"] = self._bias.to(args[0].dtype)
        elif func in _SOFTMAX and self._over_keys(args, given):
            args = (self._add(args[0]), *args[1:])
        return func(*args, **given)

    def _over_keys(self, args: Sequence[Any], given: dict[str, Any]) -> bool:
        if not args:
            return False
        dim = args[1] if len(args) > 1 else given.get("dim")
        scores: torch.Tensor = args[0]
        tokens = self._bias.shape[1]
        return scores.ndim > 2 and dim in (-1, scores.ndim - 1) and scores.shape[-2:] == (tokens, tokens)

    def _add(self, scores: torch.Tensor) -> torch.Tensor:
        batch, tokens = self._bias.shape
        # Heads are a dimension of their own, or lie within the batch: (batch * heads, tokens, tokens).
        by_head = scores.reshape(batch, -1, tokens, tokens) + self._bias[:, None, None, :].to(scores.dtype)
        return by_head.reshape(scores.shape)


_SOFTMAX = (functional.softmax, torch.softmax, torch.Tensor.softmax)


class MergingBlocks(nn.Module):
    """Blocks ``(batch, tokens, width) -> same``, run one after the other with fewer and fewer tokens.

    After block ``i``, ``merges[i]`` tokens are merged into the most similar others (bipartite soft matching, Bolya et
    al., 2023; here by the cosine of the blocks' outputs, centred over the tokens, instead of attention's keys). A
    merged token is the average of those that it stands for, and weighs as many in attention. ``protected`` are the
    places of tokens that are never merged. At the end each token gets the value of that which it was merged into, so
    that whatever follows sees as many tokens as before, and an average over tokens counts each by its size.

    ``returned`` is 0 where a block returns a tensor; where it returns a tuple that starts with it, the tuple's length,
    of which the rest is ``None``. ``absent`` are the places and names of further arguments that were ``None`` when the
    blocks were tried, and stay so: an exporter may make a mask of ones of them, for the tokens there were.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        merges: Sequence[int],
        protected: Sequence[int],
        returned: int = 0,
        absent: Sequence[int | str] = (),
    ) -> None:
        super().__init__()
        self.absent = tuple(absent)
        self.blocks = nn.ModuleList(blocks)
        self.merges = tuple(merges)
        self.protected = tuple(protected)
        self.returned = returned

    def extra_repr(self) -> str:
        return f"merges={self.merges}, protected={self.protected}"

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The blocks' further arguments are handed to each."""
        args = tuple(None if place in self.absent else value for place, value in enumerate(args))
        kwargs = {name: None if name in self.absent else value for name, value in kwargs.items()}
        state: _State | None = None
        for block, count in zip(self.blocks, self.merges, strict=True):
            if state is None:
                out = block(x, *args, **kwargs)
            else:
                with SizedAttention(state.size):
                    out = block(x, *args, **kwargs)
            x = out[0] if self.returned else out
            if count:
                state = state or _State(x, self.protected)
                x = state.merge(x, count)
        if state is not None:
            x = take(x, state.place)
        return (x, *[None] * (self.returned - 1)) if self.returned else x


class PassedBlock(nn.Module):
    """Stands where a block was that ``MergingBlocks`` runs now: hands its first argument on."""

    def __init__(self, returned: int = 0) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """``x``, in a tuple of ``returned`` entries where that is not 0."""
        return (x, *[None] * (self.returned - 1)) if self.returned else x


class _State:
    """What is known of the tokens within one call.

    ``size (batch, tokens)`` counts for each token those that it stands for. ``place (batch, tokens at the start)`` is
    where each of the first tokens is now. After the first merging the protected tokens stand before all others.
    """

    def __init__(self, x: torch.Tensor, protected: tuple[int, ...]) -> None:
        batch, tokens, _ = x.shape
        self._protected = len(protected)
        order = [*protected, *(token for token in range(tokens) if token not in protected)]
        self._order = torch.tensor(order, device=x.device) if order != list(range(tokens)) else None
        self.size = x.new_ones(1, tokens).expand(batch, tokens)
        self.place = torch.arange(tokens, device=x.device).expand(batch, tokens)

    def merge(self, x: torch.Tensor, count: int) -> torch.Tensor:
        """``(batch, tokens, width) -> (batch, tokens - count, width)``."""
        if self._order is not None:
            x, self.place = x.index_select(1, self._order), self._order.argsort().expand(self.place.shape)
            self._order = None
        first = self._protected
        left, right = x[:, first::2], x[:, first + 1 :: 2]
        size_left, size_right = self.size[:, first::2], self.size[:, first + 1 :: 2]
        with torch.no_grad():
            scores = _cosines(x[:, first:])
            best, target = scores.max(-1)
            gone = best.topk(count, dim=1).indices
            is_gone = torch.zeros_like(target).scatter(1, gone, 1)
            # In the order that they had: how alike the kept ones are must not decide who meets whom in the next round.
            late = is_gone * left.shape[1] + torch.arange(left.shape[1], device=x.device)
            kept = late.topk(left.shape[1] - count, dim=1, largest=False).indices
            into = target.gather(1, gone)
        note_choice(lambda: _margin(scores, count))
        # (batch, right, gone): what each of the right half takes in, by size. A product is faster than a scatter.
        takes = torch.arange(right.shape[1], device=x.device)[:, None] == into[:, None, :]
        weights = takes.to(x.dtype) * size_left.gather(1, gone)[:, None, :]
        total = size_right + weights.sum(2)
        merged = (right * size_right.unsqueeze(2) + weights @ take(left, gone)) / total.unsqueeze(2)
        self._follow(is_gone, target, count)
        self.size = torch.cat([self.size[:, :first], size_left.gather(1, kept), total], dim=1)
        return torch.cat([x[:, :first], take(left, kept), merged], dim=1)

    def _follow(self, is_gone: torch.Tensor, target: torch.Tensor, count: int) -> None:
        """Bring ``place`` in line: first the protected, then those kept of the left half, then the right half."""
        (batch, left), first = target.shape, self._protected
        right = self.size.shape[1] - first - left
        of_kept = first - 1 + (1 - is_gone).cumsum(1)
        of_left = torch.where(is_gone == 1, first + left - count + target, of_kept)
        of_right = first + left - count + torch.arange(right, device=target.device)
        of_protected = torch.arange(first, device=target.device)
        # The two halves alternate in the order that the tokens had.
        halves = torch.arange(left + right, device=target.device)
        mixed = torch.cat([of_left, of_right.expand(batch, right)], dim=1)
        mixed = mixed.index_select(1, halves // 2 + halves % 2 * left)
        self.place = torch.cat([of_protected.expand(batch, first), mixed], dim=1).gather(1, self.place)


def take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens of each sample: ``(batch, tokens, width)`` at ``index (batch, taken)``.

    By whole rows, which engines copy faster than single numbers.
    """
    batch, tokens, width = x.shape
    rows = index + torch.arange(batch, device=x.device)[:, None] * tokens
    return x.reshape(batch * tokens, width).index_select(0, rows.reshape(-1)).reshape(batch, index.shape[1], width)


def _cosines(x: torch.Tensor) -> torch.Tensor:
    """Of each second token, from the first on, with each of the others: ``(batch, left, right)``."""
    alike = functional.normalize(x - x.mean(1, keepdim=True), dim=-1)
    return alike[:, 0::2] @ alike[:, 1::2].transpose(1, 2)


def _margin(scores: torch.Tensor, count: int) -> torch.Tensor:
    """How far each sample is from merging another token, or one into another: a difference of cosines."""
    best = scores.amax(2)
    ranked = best.topk(min(count + 1, best.shape[1]), dim=1)
    nearest = torch.full_like(best[:, 0], torch.inf)
    if count < best.shape[1]:
        nearest = ranked.values[:, count - 1] - ranked.values[:, count]
    if scores.shape[2] > 1:
        two = scores.topk(2, dim=2).values
        lead = (two[..., 0] - two[..., 1]).gather(1, ranked.indices[:, :count])
        nearest = torch.minimum(nearest, lead.amin(1))
    return nearest
