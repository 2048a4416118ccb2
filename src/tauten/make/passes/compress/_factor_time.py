"""What layers take, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from tauten.make.passes.quantize._calibrate import Data, Hook, watching

_ROUNDS: Final = 15
_TURN_NS: Final = 1_000_000
_WARM_UPS: Final = 3
_FASTER: Final = 0.95
"""Of the time of what is compared with; what is nearer to it is noise."""
_MOST: Final = 0.8
"""Of the rounds: by chance alone, 12 of 15 fall on one side in 2 of 100 comparisons."""


def one_call(module: nn.Module, layers: Mapping[str, nn.Module], data: Data) -> dict[str, Tensor]:
    """What each layer is given first, in a batch of ``data``."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Hook:
        # Gives nothing back: what a hook does give takes the answer's place.
        def told(layer: nn.Module, x: Tensor, answer: Tensor) -> None:
            found.setdefault(path, x.detach().clone())

        return told

    with watching(layers, keep):
        data.walk(module, 1)
    return found


def rounds_ms(modules: Sequence[nn.Module], x: Tensor) -> list[list[float]]:
    """What a call of each module with ``x`` takes in each round, in milliseconds, in PyTorch as it computes.

    They run in turn, so that what the machine does meanwhile falls on all alike.
    """
    taken: list[list[float]] = [[] for _ in modules]
    with torch.inference_mode():
        for module in modules:
            for _ in range(_WARM_UPS):
                module(x)
        for turn in range(_ROUNDS):
            for place in range(len(modules)):
                at = (turn + place) % len(modules)
                taken[at].append(_turn(modules[at], x))
    return taken


def is_faster(ms: Sequence[float], than_ms: Sequence[float]) -> bool:
    """Whether rounds are faster than those beside them by more than noise: most of them, and clearly on the median."""
    shares = [one / other for one, other in zip(ms, than_ms, strict=True)]
    return statistics.median(shares) < _FASTER and sum(share < 1 for share in shares) >= _MOST * len(shares)


def _turn(module: nn.Module, x: Tensor) -> float:
    calls, started = 0, time.perf_counter_ns()
    while True:
        module(x)
        calls += 1
        spent = time.perf_counter_ns() - started
        if spent >= _TURN_NS:
            return spent / calls / 1e6
