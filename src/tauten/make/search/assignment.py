"""Which layers stay in a higher precision: asked for as sets, told whether each holds. No file is touched here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

TRIALS: Final = 5
"""Artifacts at most on the way to one mixed precision."""

_NEGLIGIBLE: Final = 0.01
"""The share of all noise that the quietest layers may make together, for none of them to be worth a thought."""

_FREE: Final = 1e-3
"""A cost below this share of all costs counts as this share: what costs nothing is not worth infinitely much."""


@dataclass
class Bisection:
    """The least number above 0 and below ``count`` that holds; 0 does not. Numbers are halved on a logarithmic scale.

    Few layers cost most of the quality as a rule, so that small numbers are looked at more closely than large ones.
    """

    count: int
    trials: int = TRIALS
    fails: int = 0
    holds: int | None = None
    asked: list[int] = field(default_factory=list)

    def ask(self) -> int | None:
        """The next number to try, or ``None``."""
        end = self.count if self.holds is None else self.holds
        if end - self.fails <= 1 or len(self.asked) >= self.trials:
            return None
        last = len(self.asked) + 1 == self.trials and self.holds is None
        middle = round(math.sqrt(max(self.fails, 1) * end))
        self.asked.append(end - 1 if last else min(max(middle, self.fails + 1), end - 1))
        return self.asked[-1]

    def tell(self, number: int, holds: bool) -> None:
        """What came of it."""
        if holds:
            self.holds = number
        else:
            self.fails = number


def order_by_worth(noise: Mapping[str, float], costs: Mapping[str, float]) -> list[str]:
    """The layers by the noise that keeping each takes away over what that costs, the best bargain first.

    The quietest, which make a hundredth of the noise together, come last: they cannot help, whatever they cost.
    """
    floor = _FREE * max(sum(abs(costs[path]) for path in noise), 1e-12)
    total, made, quiet = sum(noise.values()), 0.0, set[str]()
    for path in sorted(noise, key=lambda path: (noise[path], path)):
        made += noise[path]
        if made > _NEGLIGIBLE * total:
            break
        quiet.add(path)
    return sorted(noise, key=lambda path: (path in quiet, -noise[path] / max(costs[path], floor), path))


@dataclass
class Assignment:
    """Looks for a cheap set of layers to keep, of those in ``order``, with at most ``trials`` sets asked for.

    First the least number of the first ones is halved for. Those among them that make less noise than the last one,
    without which the set did not hold, and that cost something, are then rolled back: all that together make less,
    the dearest first; where that does not hold, half of them, and so on. ``kept`` is the best set that held, or
    ``None``.
    """

    order: list[str]
    noise: Mapping[str, float]
    costs: Mapping[str, float]
    trials: int = TRIALS
    kept: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._search = Bisection(len(self.order), self.trials)
        self._asked: tuple[str, ...] = ()
        self._count = 0
        self._back: list[str] | None = None

    def ask(self) -> tuple[str, ...] | None:
        """The next set to try, in the order of worth, or ``None``."""
        if self._back is None:
            number = self._search.ask()
            if number is not None:
                return self._ask(tuple(self.order[:number]))
            self._back = self._dear()
        if self.kept is None or not self._back or self._count >= self.trials:
            return None
        return self._ask(tuple(path for path in self.kept if path not in self._back))

    def tell(self, holds: bool) -> None:
        """What came of the set that was asked for last."""
        if holds:
            self.kept = self._asked
        if self._back is None:
            self._search.tell(len(self._asked), holds)
        elif holds:
            self._back = []
        else:
            self._back = self._back[: len(self._back) // 2]

    def _ask(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        self._count += 1
        self._asked = paths
        return paths

    def _dear(self) -> list[str]:
        """Which of the kept layers cost something and are likely not needed, the dearest first."""
        if self.kept is None:
            return []
        *others, last = self.kept
        room, found = self.noise[last], list[str]()
        for path in sorted(others, key=lambda path: (-self.costs[path], path)):
            if self.costs[path] > 0 and self.noise[path] < room:
                found.append(path)
                room -= self.noise[path]
        return found
