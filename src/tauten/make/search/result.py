"""What a run found, as ``result.json`` tells it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tauten.artifact.layers import Mask
from tauten.core.measure import Measure
from tauten.core.target import Budget, Target
from tauten.core.value import Value

Measures = dict[str, Measure | dict[str, Measure]]


class KeptLayer(Value):
    """A layer that stays in a higher precision than the others, and why.

    ``noise`` is the outputs' noise power over their power when this layer alone is quantized, ``cost`` what keeping it
    costs in the unit of ``Mixed``; both where they were measured.
    """

    path: str
    precision: str
    noise: float | None = None
    cost: float | None = None
    why: str = ""


class MixedTrial(Value):
    """One written artifact on the way to a mixed precision: how many layers were kept, their cost, what was lost."""

    name: str
    kept: Annotated[int, Field(ge=0)]
    cost: float | None = None
    drop_points: float | None = None
    holds: bool = False


class Mixed(Value):
    """Which layers of a candidate stay in a higher precision, why, and what was tried on the way.

    Costs are in ``unit``: milliseconds at batch 1 by the engine's profile, or bytes. ``cost`` is that of the layers
    kept, ``saved`` what the others would cost besides.
    """

    base: str
    layers: tuple[KeptLayer, ...]
    of: Annotated[int, Field(ge=0)]
    tried: tuple[MixedTrial, ...] = ()
    unit: Literal["ms", "bytes"] | None = None
    cost: float | None = None
    saved: float | None = None
    why: str


class Entry(Value):
    """A candidate: an artifact with its measures.

    ``artifact`` is a path relative to the run's folder. ``measures`` holds a measure a key; ``throughput_per_s`` holds
    one a batch size. ``drop_points`` is the quality lost against the baseline, sample by sample, in points. ``mixed``
    tells of layers that stay in a higher precision than the recipe asked for.
    """

    name: str
    recipe: dict[str, Any]
    artifact: str
    measures: Measures
    drop_points: Measure | None = None
    within_budget: bool = False
    violations: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    layers: tuple[dict[str, Any], ...] = ()
    mixed: Mixed | None = None

    def measure(self, name: str) -> Measure | None:
        """A measure by its key; ``throughput_per_s.8`` names the one of batch 8."""
        key, _, batch = name.partition(".")
        found = self.measures.get(key)
        if isinstance(found, dict):
            return found.get(batch)
        return found


class EngineTried(Value):
    """One engine, with one choice of options, for the untouched model in float or in eight bits, static or dynamic.

    ``installed`` says whether it could be asked at all; where not, ``extra`` brings it. ``latency`` is p50 at batch 1,
    of one session with all others. ``reason`` says why it was ``chosen``, or was not.
    """

    engine: str
    precision: Literal["float32", "int8", "int8-dynamic"] | None = None
    options: dict[str, str] = {}
    installed: bool = True
    extra: str = ""
    latency: Measure | None = None
    drop: Measure | None = None
    chosen: bool = False
    reason: str = ""


class Improvement(Value):
    """The best against a baseline in one measure. ``ratio`` above 1 is better, whichever way is better."""

    ratio: float
    ratio_low: float
    ratio_high: float
    difference: float
    unit: str
    better: bool
    text: str


class Refused(Value):
    """A recipe that could not be made, and why."""

    name: str
    recipe: dict[str, Any]
    error: str


class OnTest(Value):
    """The test set's answer, looked at once, for the chosen one and the baselines."""

    baseline: Measure
    engine_baseline: Measure
    best: Measure
    drop_points: Measure


class Result(Value):
    """Everything a run found.

    ``engine_baseline`` is the untouched model on the engine of the best candidate, or of the nearest. ``masks`` are
    those of the best candidate, or of the nearest. ``engines`` holds what was measured of engines, where the run was
    to choose among them.
    """

    schema_version: Literal[1] = 1
    task: str
    target: Target
    budget: Budget
    level: str
    seed: int
    met: bool
    explanation: str
    quality_on: str
    metric: dict[str, str]
    baseline: Entry
    engine_baseline: Entry
    best: Entry | None
    candidates: tuple[Entry, ...]
    nearest: tuple[str, ...] = ()
    front: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    improvements: dict[str, dict[str, Improvement]] = {}
    test: OnTest | None = None
    masks: tuple[Mask, ...] = ()
    engines: tuple[EngineTried, ...] = ()
    caveats: tuple[str, ...] = ()
    environment: dict[str, str]
    created: str
    seconds: Annotated[float, Field(ge=0)]
    tauten: str
