"""Which channels to cut for a latency: the step that buys the most milliseconds per lost quality, again and again.

After NetAdapt (Yang et al., 2018), with three changes. Latency is that of the whole written artifact on the target's
engine, not a sum over a table of layers. A gain inside the noise does not count; a larger step is tried instead.
And what was measured of a group's next step stays in a table until that step leads the others: only then is it measured
anew, on the network as it has become (lazy evaluation; Minoux, 1978), so that the number of artifacts stays bounded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tauten.errors import ConfigError
from tauten.make.model.pass_ import Pass
from tauten.make.search.levels import ENGINE_BASELINE
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.make.search.result import Entry, Improvement
from tauten.make.search.strategies._strategy import Trial

CUT = "prune.structured"
PROBE = 0.5
"""The cut that shows which groups there are: every group of two and more channels loses some."""
SPARE = 0.02
"""Of the limit: the final network is measured again, and should hold it then too."""
NOISE_SHARE = 0.1
"""Of the noise of a drop, what every step counts as lost at least: no step is free."""


@dataclass(frozen=True)
class Pace:
    """How an adaptation goes on: channels a step, what stays of a group, and how many artifacts at most.

    ``step`` is a share of a group's channels; steps are multiples of ``round_to``. ``percentile`` is the latency that
    has to hold: 50 or 95. ``criterion`` says which channels go. Raises ``ConfigError`` for values that cannot be.
    """

    step: float = 0.125
    round_to: int = 1
    keep_at_least: float = 0.1
    trials: int = 80
    percentile: int = 95
    criterion: str = "l2"

    def __post_init__(self) -> None:
        if not 0 < self.step < 1:
            raise ConfigError(f"step: expected a share between 0 and 1, got {self.step}")
        if self.round_to < 1 or self.trials < 1:
            raise ConfigError(f"round_to, trials: expected 1 or more, got {self.round_to} and {self.trials}")
        if not 0 < self.keep_at_least <= 1:
            raise ConfigError(f"keep_at_least: expected above 0 and at most 1, got {self.keep_at_least}")
        if self.percentile not in (50, 95):
            raise ConfigError(f"percentile: expected 50 or 95, got {self.percentile}")

    @property
    def measure(self) -> str:
        """The key of the latency that has to hold."""
        return f"latency_p{self.percentile}_ms"


@dataclass
class Group:
    """A group of channels: how many there were, how many stay, and by how many steps at once it is cut next."""

    units: int
    kept: int
    steps: int = 1
    closed: str = ""


@dataclass(frozen=True)
class Step:
    """What was measured of one group's next step; ``age`` is the number of steps that had been taken then."""

    group: str
    width: int
    gain_ms: float
    lost: float
    age: int
    entry: Entry = field(repr=False)

    @property
    def worth(self) -> float:
        """Milliseconds per lost point."""
        return self.gain_ms / self.lost

    def latency_ms(self, key: str) -> float:
        """The latency of the network that the step leaves."""
        return _value(self.entry, key)


class Adaptation:
    """Asks for trials and takes the best step, until the limit holds, no step gains, or all trials are spent.

    ``between`` are passes that follow the cut in each trial, such as a short recovery or eight bits: what is timed must
    run as the final model will. It does no I/O and reads no clock.
    """

    def __init__(
        self, limit_ms: float, between: Sequence[Pass], lowering: str, pace: Pace | None = None, name: str = "adapt"
    ) -> None:
        if not 0 < limit_ms < math.inf:
            raise ConfigError(f"max_latency_ms: expected a number above 0, got {limit_ms}")
        self.pace = pace or Pace()
        self.limit_ms = limit_ms
        self.groups: dict[str, Group] = {}
        self.taken: list[Step] = []
        self.spent = 0
        self.why = ""
        self._between, self._lowering, self._name = tuple(between), lowering, name
        self._table: dict[str, Step] = {}
        self._current: Entry | None = None
        self._asked: tuple[Recipe, str] | None = None
        self._probed = False

    @property
    def left(self) -> int:
        """Trials that may come at most."""
        return 0 if self.why else max(self.pace.trials - self.spent, 0)

    @property
    def met(self) -> bool:
        """Whether the latency of the last network that was taken holds the limit, with a little to spare."""
        return self.latency_ms <= self.limit_ms * (1 - SPARE)

    @property
    def latency_ms(self) -> float:
        """The latency of the last network that was taken."""
        return math.inf if self._current is None else _value(self._current, self.pace.measure)

    @property
    def ratios(self) -> tuple[tuple[str, float], ...]:
        """What is cut of each group, as ``prune.structured`` takes it."""
        return self._ratios({})

    @property
    def cut(self) -> Pass | None:
        """The pass that makes the network that was found; ``None`` where nothing has to go."""
        return self._pass(self.ratios) if self.ratios else None

    def ask(self) -> Trial | None:
        """The next trial, or ``None`` where the search is over; ``why`` says why it ended."""
        while not self.why:
            if self.met:
                self.why = "the limit holds"
            elif self.spent >= self.pace.trials:
                self.why = f"all {self.pace.trials} trials are spent"
            elif self._current is None:
                return self._trial((), "", ENGINE_BASELINE)
            elif not self._probed:
                return self._try(
                    Recipe(f"{self._name}-groups", (self._pass((), PROBE), *self._between), self._lowering)
                )
            elif (unknown := self._unknown()) is not None:
                return self._trial_of(unknown)
            elif not self._table:
                self.why = "no group has a step left that gains time"
            else:
                best = max(self._table.values(), key=lambda step: (step.worth, step.group))
                if best.age < len(self.taken):
                    return self._trial_of(best.group)
                self._take(best)
        return None

    def awaits(self, recipe: Recipe) -> bool:
        """Whether ``recipe`` is that of the trial that was asked for last."""
        return self._asked is not None and self._asked[0] == recipe

    def tell(self, recipe: Recipe, entry: Entry | None, gain: Improvement | None = None) -> None:
        """What came of the trial that was asked for last."""
        if self._asked is None or not self.awaits(recipe):
            raise ConfigError(f"{recipe.name}: expected what came of the trial that was asked for last")
        group, self._asked = self._asked[1], None
        if self._current is None:
            self._current = entry
            if entry is None:
                self.why = "the untouched model could not be made as the final one is"
        elif not self._probed:
            self._probed = True
            self._see_groups(entry)
        elif entry is None or gain is None:
            self.groups[group].closed = "could not be made"
            self._table.pop(group, None)
        else:
            self._see_step(group, entry, gain)

    def _see_groups(self, entry: Entry | None) -> None:
        records = entry.history if entry else ()
        notes: Mapping[str, Any] = next((record["notes"] for record in records if record["name"] == CUT), {})
        for note in notes.get("groups", ()):
            self.groups[note["name"]] = Group(units=note["before"], kept=note["before"])
        if not self.groups:
            self.why = "no channel of the model can be removed"

    def _see_step(self, group: str, entry: Entry, gain: Improvement) -> None:
        now = self._now
        # Only what is outside the noise has been gained; the interval of paired rounds says so.
        if gain.ratio_low <= 1:
            self._table.pop(group, None)
            self.groups[group].steps *= 2
            if self._width(group) is None:
                self.groups[group].closed = "its steps gain no time outside the noise"
            return
        self._table[group] = Step(
            group=group,
            width=self._width(group) or self.groups[group].kept,
            gain_ms=_value(now, "latency_p50_ms") * (1 - 1 / gain.ratio),
            lost=_lost(entry, now),
            age=len(self.taken),
            entry=entry,
        )

    def _take(self, step: Step) -> None:
        self.groups[step.group].kept = step.width
        self.groups[step.group].steps = 1
        self.taken.append(step)
        self._current = step.entry
        del self._table[step.group]

    def _unknown(self) -> str | None:
        """A group whose next step was not measured."""
        for name, group in self.groups.items():
            if group.closed or name in self._table:
                continue
            if self._width(name) is None:
                group.closed = "nothing more may go"
                continue
            return name
        return None

    def _width(self, name: str) -> int | None:
        """How many channels the group's next step leaves, or ``None`` where there is none."""
        group, round_to = self.groups[name], self.pace.round_to
        one = max(round_to, round_to * round(group.units * self.pace.step / round_to))
        least = round_to * math.ceil(max(1.0, self.pace.keep_at_least * group.units - 1e-9) / round_to)
        width = group.kept - one * group.steps
        if width >= least:
            return width
        # A longer step that would go too far goes as far as it may, unless the one before it did.
        before = group.kept - one * (group.steps // 2)
        return least if group.steps > 1 and least < before else None

    def _ratios(self, changed: Mapping[str, int]) -> tuple[tuple[str, float], ...]:
        widths = {name: changed.get(name, group.kept) for name, group in self.groups.items()}
        return tuple(
            (name, (self.groups[name].units - width) / self.groups[name].units)
            for name, width in widths.items()
            if width < self.groups[name].units
        )

    def _pass(self, ratios: tuple[tuple[str, float], ...], ratio: float = 0.0) -> Pass:
        given: dict[str, Any] = {"ratio": ratio, "scope": "layer", "criterion": self.pace.criterion}
        keep = min(self.pace.keep_at_least, 1 - PROBE)
        return pass_from_json({"pass": CUT, **given, "keep_at_least": keep, "ratios": ratios})

    def _trial_of(self, group: str) -> Trial:
        width = self._width(group)
        changed = {} if width is None else {group: width}
        return self._trial(self._ratios(changed), group, self._now.name)

    def _trial(self, ratios: tuple[tuple[str, float], ...], group: str, against: str) -> Trial:
        cut = (self._pass(ratios),) if ratios else ()
        # Named after what is cut, so that a run that goes on finds it again.
        seen = hashlib.sha256(json.dumps(ratios).encode()).hexdigest()[:10] if ratios else "whole"
        return self._try(Recipe(f"{self._name}-{seen}", (*cut, *self._between), self._lowering), group, against)

    def _try(self, recipe: Recipe, group: str = "", against: str = "") -> Trial:
        self.spent += 1
        self._asked = (recipe, group)
        return Trial(recipe, against or self._now.name)

    @property
    def _now(self) -> Entry:
        if self._current is None:
            raise ConfigError("expected the untouched model to be told of first")
        return self._current


def _lost(entry: Entry, now: Entry) -> float:
    """Points lost by a step, no less than a share of the noise: what seems to gain quality is not better than free."""
    ours, theirs = entry.drop_points, now.drop_points
    if ours is None or theirs is None:
        return 1.0
    least = max(NOISE_SHARE * (ours.high - ours.low), 1e-6)
    return max(ours.value - theirs.value, least)


def _value(entry: Entry, key: str) -> float:
    measure = entry.measure(key)
    return math.inf if measure is None else measure.value
