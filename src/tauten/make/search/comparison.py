"""What a comparison of strategies found, as ``compare.json`` tells it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tauten.artifact.layers import Mask
from tauten.core.target import Target
from tauten.core.value import JsonObject, Value
from tauten.make.search.result import Entry, Improvement

CUT, RECOVERED, INT8 = "cut", "recovered", "int8"
STAGES = (CUT, RECOVERED, INT8)


class Saving(Value):
    """What a candidate saves in measured time against the untouched model on the same engine, in the same precision.

    ``ratio`` is how many times less time one request takes, with its interval; ``measure`` is the latency that was
    compared. ``kind`` is ``time`` or ``slower`` outside the noise, else ``none``. ``arithmetic`` says that a candidate
    which saves no time leaves out arithmetic all the same: zeros that are multiplied by, work that is masked.
    """

    measure: str
    ratio: float
    low: float
    high: float
    kind: Literal["time", "none", "slower"]
    arithmetic: bool = False
    text: str


class Point(Value):
    """One strategy at one ratio; ``step`` is its pass, ``{"pass": …, parameters…}``.

    ``stages`` holds a candidate a stage: ``cut`` (right after the pass), ``recovered`` (trained after it) and ``int8``;
    ``refused`` says why one is not there. Latency and throughput are those of ``last``, the stage that would
    be shipped. ``compression`` is how many times smaller its files are than ``baseline`` and ``engine_baseline``.
    """

    strategy: str
    name: str
    step: JsonObject
    ratio: float
    stages: dict[str, Entry]
    last: str = ""
    refused: dict[str, str] = {}
    compression: dict[str, float] = {}
    improvements: dict[str, dict[str, Improvement]] = {}
    saving: Saving | None = None
    masks: tuple[Mask, ...] = ()

    @property
    def shipped(self) -> Entry | None:
        """The candidate of the last stage that could be made."""
        return self.stages.get(self.last)


class Comparison(Value):
    """Strategies side by side: a point for each strategy and ratio, in the order they were asked for.

    ``control`` is the untouched model in eight bits, where the candidates end in them.
    """

    schema_version: Literal[1] = 1
    kind: Literal["comparison"] = "comparison"
    task: str
    target: Target
    seed: int
    strategies: tuple[str, ...]
    ratios: tuple[float, ...]
    recover: Annotated[int, Field(ge=0)]
    int8: bool
    quality_on: str
    metric: dict[str, str]
    baseline: Entry
    engine_baseline: Entry
    control: Entry | None = None
    points: tuple[Point, ...]
    caveats: tuple[str, ...] = ()
    environment: dict[str, str]
    created: str
    seconds: Annotated[float, Field(ge=0)]
    tauten: str
