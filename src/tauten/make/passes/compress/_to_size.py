"""The step at which a module's rounded weights take so many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import Final

from tauten.codecs.arithmetic import ARITHMETIC
from tauten.errors import PassError
from tauten.make.passes.compress._balance import balance
from tauten.make.passes.compress._plan import Plan, foretell
from tauten.make.passes.compress._rounding import Rounded, Rounding
from tauten.make.passes.compress._sites import Site

_FORETOLD: Final = 40
_EXACT: Final = 0.002
_ATTEMPTS: Final = 6
_CLOSE: Final = 0.02
"""Of the bytes, what may be left over."""
_FEW: Final = 64
"""Bytes that may be left over of however few."""
_AIM: Final = 0.99


def coded_bytes(sites: Sequence[Site]) -> int:
    """What the parameters take as the codec ``arithmetic`` codes them."""
    return len(_encode(sites))


def _encode(sites: Sequence[Site]) -> bytes:
    return ARITHMETIC.encode({site.path: site.weight.cpu().numpy() for site in sites})


def round_to(rounding: Rounding, limit: int, name: str) -> tuple[float, Rounded, int]:
    """Round so that all takes ``limit`` bytes or little less: the step, what was done, and the bytes.

    Once it is rounded, steps are balanced by what was lost. Raises ``PassError`` where it takes more bytes however
    coarse the grids are.
    """
    numbers = sum(site.weight.numel() for site in rounding.sites)
    step = _foretold(rounding.plans, 8.0 * limit * _AIM, numbers)
    rounding(step, draft=True)
    coded = _encode(rounding.sites)
    drafted, rounding = rounding.plans, balance(rounding)
    # The coder goes on to differ from what is foretold as it did, and what is no matrix takes what it took.
    each = {path: 8.0 * size for path, size in ARITHMETIC.coded_bytes(coded).items()}
    off = {plan.site.path: each[plan.site.path] / max(foretell((plan,), step), 1.0) for plan in drafted}
    rest = 8.0 * len(coded) - sum(each[path] for path in off)
    at = log2(_foretold(rounding.plans, max(8.0 * limit * _AIM - rest, 4.0 * limit), numbers, off))
    over: tuple[float, int] | None = None  # logarithm of the step, bytes
    under: tuple[float, int] | None = None
    for _ in range(_ATTEMPTS):
        done, size = rounding(2.0**at), coded_bytes(rounding.sites)
        if limit - max(_FEW, limit * _CLOSE) <= size <= limit:
            return 2.0**at, done, size
        if size > limit:
            over = at, size
        else:
            under = at, size
        if over and under:
            share = (over[1] - _AIM * limit) / max(over[1] - under[1], 1)
            at = over[0] + (under[0] - over[0]) * min(0.9, max(0.1, share))
        else:
            # A bit a number for each octave, but where few are left.
            at += min(3.0, max(-3.0, (size - _AIM * limit) / min(numbers / 8, size)))
    if under is None:
        raise PassError(f"{name}: expected at most {limit} bytes, got {over and over[1]} from the coarsest grids")
    return 2.0 ** under[0], rounding(2.0 ** under[0]), under[1]


def _foretold(plans: Sequence[Plan], bits: float, numbers: int, off: Mapping[str, float] | None = None) -> float:
    """The step at which ``plans`` are foretold to take ``bits``."""
    delta = 1.0
    for _ in range(_FORETOLD):
        found = foretell(plans, delta, off)
        if abs(found - bits) < _EXACT * bits:
            break
        delta *= 2.0 ** min(4.0, max(-4.0, (found - bits) / numbers))
    return delta
