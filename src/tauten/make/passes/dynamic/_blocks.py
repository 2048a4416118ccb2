"""Rows of like blocks ``(batch, tokens, width) -> same``, found by class and held to it by running them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from tauten.make.layers.token_merging import SizedAttention

_TOLERANCE: Final = 1e-4  # of the largest number: float32 in another order of addition is off by far less
_CHANGED: Final = "the model changes what one block gives before the next gets it"


@dataclass
class Row:
    """Children of one class that stand one after the other in a container.

    ``path`` is the container's, ``start`` the place of the first. ``calls`` are what each block was called with and
    returned, filled by ``watch``: ``(arguments, keywords, returned)``.
    """

    path: str
    container: nn.ModuleList | nn.Sequential
    start: int
    blocks: tuple[nn.Module, ...]
    calls: list[list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The blocks' paths."""
        listed = list(self.container._modules)[self.start : self.start + len(self.blocks)]
        return [f"{self.path}.{name}" if self.path else name for name in listed]

    @property
    def name(self) -> str:
        """What the notes call it: the container, and which of its children where those are not all."""
        names = self.names
        return self.path if len(names) == len(self.container) and self.path else f"{names[0]} to {names[-1]}"

    @property
    def tokens(self) -> torch.Tensor:
        """What the first block got, ``(batch, tokens, width)``."""
        given: torch.Tensor = self.calls[0][0][0][0]
        return given

    @property
    def returned(self) -> int:
        """0 where the blocks return a tensor, else the length of the tuple."""
        out = self.calls[0][0][2]
        return len(out) if isinstance(out, tuple) else 0

    @property
    def absent(self) -> list[int | str]:
        """Places and names of the further arguments that are ``None``."""
        args, kwargs, _ = self.calls[0][0]
        places: list[int | str] = [place for place, value in enumerate(args[1:]) if value is None]
        return places + [name for name, value in kwargs.items() if value is None]


def find_rows(module: nn.Module) -> list[Row]:
    """Every run of two or more children of one class with parameters, outer ones first."""
    found = []
    for path, container in module.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        start = 0
        for _, run in itertools.groupby(container, key=type):
            blocks = tuple(run)
            if len(blocks) > 1 and all(any(True for _ in block.parameters()) for block in blocks):
                found.append(Row(path, container, start, blocks))
            start += len(blocks)
    return found


def watch(rows: Sequence[Row]) -> list[torch.utils.hooks.RemovableHandle]:
    """Let the rows take down each call of their blocks; returns the hooks to remove."""
    handles = []
    for row in rows:
        row.calls = [[] for _ in row.blocks]
        for block, calls in zip(row.blocks, row.calls, strict=True):

            def keep(_: nn.Module, args: Any, kwargs: Any, out: Any, calls: list[Any] = calls) -> None:
                calls.append((args, kwargs, out))

            handles.append(block.register_forward_hook(keep, with_kwargs=True))
    return handles


def why_not(row: Row, batch: int) -> str | None:
    """Why the row's blocks cannot be run with other numbers of tokens; ``None`` where they can.

    ``batch`` is the number of samples of the call that was watched.
    """
    for calls in row.calls:
        if len(calls) != 1:
            return f"a block is called {len(calls)} times in one call of the model"
    given = [calls[0] for calls in row.calls]
    for args, _, out in given:
        reason = _shape_reason(args, out, batch)
        if reason:
            return reason
    for (_, _, before), (args, _, after) in itertools.pairwise(given):
        if not torch.equal(hidden(before), args[0]) or isinstance(before, tuple) != isinstance(after, tuple):
            return _CHANGED
    first = given[0]
    for args, kwargs, _ in given[1:]:
        if not _alike(first[0][1:], args[1:]) or not _alike(first[1], kwargs):
            return "its blocks get arguments that differ from block to block"
    for block, (args, kwargs, _) in zip(row.blocks, given, strict=True):
        reason = _behaviour_reason(block, args, kwargs)
        if reason:
            return reason
    return None


def hidden(out: Any) -> torch.Tensor:
    """The tokens among what a block returned."""
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return found


def _shape_reason(args: tuple[Any, ...], out: Any, batch: int) -> str | None:
    if not args or not isinstance(args[0], torch.Tensor):
        return "its blocks do not get the tokens as their first argument"
    x = args[0]
    if x.ndim != 3 or not x.is_floating_point():
        return f"expected tokens (batch, tokens, width), its blocks get {tuple(x.shape)}"
    if x.shape[0] != batch:
        return f"expected the batch of {batch} first in (batch, tokens, width), its blocks get {tuple(x.shape)}"
    if isinstance(out, tuple) and not out:
        return "its blocks return nothing"
    first = out[0] if isinstance(out, tuple) else out
    if not isinstance(first, torch.Tensor):
        return f"its blocks return a {type(first).__name__}"
    if first.shape != x.shape:
        return f"its blocks make {tuple(first.shape)} of {tuple(x.shape)}"
    return None


def _behaviour_reason(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Run the block on tokens in another order, and with some tokens twice: the one must not matter, and the other
    must be what sizes say."""
    x = args[0]
    batch, tokens, _ = x.shape
    if tokens < 2:
        return "it has one token only"
    twice = tokens // 2
    backwards = torch.arange(tokens, device=x.device).flip(0)
    more = torch.cat([backwards, torch.arange(twice, device=x.device)])
    size = x.new_ones(batch, tokens)
    size[:, :twice] = 2
    try:
        plain = hidden(block(*args, **kwargs))
        turned = hidden(block(x[:, backwards], *args[1:], **kwargs))
        if not _close(turned, plain[:, backwards]):
            return "its blocks depend on the places of their tokens"
        repeated = hidden(block(x[:, more], *args[1:], **kwargs))
        with SizedAttention(size):
            sized = hidden(block(*args, **kwargs))
    except Exception as fault:  # noqa: BLE001 - whatever the block's own code raises is the finding
        return f"its blocks do not run with another number of tokens ({type(fault).__name__}: {_first_line(fault)})"
    if repeated.shape[1] != len(more) or not _close(repeated, sized[:, more]):
        return "its attention is not one whose keys can be weighted by size"
    return None


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(float(other.abs().max()), 1e-30)
    return float((one - other).abs().max()) <= _TOLERANCE * scale


def _alike(one: Any, other: Any) -> bool:
    """Equal, with tensors compared by value."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return one is other or (type(one) is type(other) and not isinstance(one, torch.Tensor) and bool(one == other))


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [""])[0]
