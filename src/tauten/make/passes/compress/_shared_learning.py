"""Shared values that learn: the gradients of a cluster's numbers are summed (Han et al., 2016).

Weights stay parameters of their own modules, so that every model trains, whatever reads them. Each number gets the sum
of its cluster's gradients over the root of the cluster's size: AdamW does not see the scale, so that all of a cluster
take the same step, and the norm that bounds the gradient is the norm of the shared values' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tauten.make.passes.compress._shared import Shared


@contextmanager
def tied(shared: Sequence[Shared]) -> Iterator[Callable[[int, int], None]]:
    """While this is open, numbers of one cluster learn as one. Gives what is to be called before each step."""
    members = [_members(one) for one in shared]
    handles = [one.weight.parameter.register_hook(_sum_of(one)) for one in shared]  # type: ignore[no-untyped-call]

    def tie(step: int, steps: int) -> None:
        # Equal to the bit: what is rounded number by number may differ in the last one.
        for one, member in zip(shared, members, strict=True):
            one.values.copy_(one.weight.parameter.detach().reshape(-1).index_select(0, member))
            if one.zero:
                one.values[0] = 0
            one.put()

    try:
        yield tie
        tie(1, 1)
    finally:
        for handle in handles:
            handle.remove()


def _members(one: Shared) -> Tensor:
    """The place of one number of each cluster, ``(k,)``."""
    found = torch.zeros(len(one.values), dtype=torch.long, device=one.index.device)
    found[one.index.long()] = torch.arange(len(one.index), device=one.index.device)
    return found


def _sum_of(one: Shared) -> Callable[[Tensor], Tensor]:
    roots = one.counts().clamp(min=1).sqrt()

    def summed(gradient: Tensor) -> Tensor:
        sums = torch.bincount(one.index, gradient.reshape(-1).float(), len(one.values)) / roots
        if one.zero:
            sums[0] = 0
        return sums.index_select(0, one.index).reshape(gradient.shape).to(gradient.dtype)

    return summed
