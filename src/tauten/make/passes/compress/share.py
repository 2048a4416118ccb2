"""Lets the numbers of each layer share a few values, found by k-means (Han et al., 2016)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final, get_args

import torch
from pydantic import Field

from tauten.errors import PassError
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context
from tauten.make.passes.compress._division import Point, Probe, divide
from tauten.make.passes.compress._kmeans import Clusters, Line
from tauten.make.passes.compress._shared import (
    Importance,
    Shared,
    Weight,
    coded_bytes,
    find_weights,
    spares_bytes,
    to_notes,
    with_importance,
)
from tauten.make.passes.compress._shared_learning import tied
from tauten.make.passes.compress._starts import Start, cluster
from tauten.make.passes.distill._student import Learning
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.quantize._aware_guard import Judge
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._fold import fold_batch_norms

__all__ = ["Share"]

_CLUSTERS: Final = 16
_MOST: Final = 4096
_GENTLE: Final = 0.3
"""The peak learning rate as a share of the task's: the model is trained already."""
_LEVELS: Final = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of clusters that are weighed against each other where a budget is divided."""
_PROBED: Final = 8
"""The one of them at which the outputs' noise is measured: coarse enough to show, fine enough to stay linear."""


@dataclass(frozen=True)
class Share(Learning):
    """Few different numbers in each matrix, kernel and embedding; the file then holds them once, and which is where.

    How many is said by ``clusters``, by ``bits`` (``2**bits`` of them), or by ``bytes`` for the whole model, which
    is divided over the layers so that the outputs move least for it; without any of them there are 16. ``layers`` says
    otherwise for some, as ``(name, clusters)`` with the name of a parameter or of its layer, and 0 to leave it alone.
    Zeros stay zeros, beside the clusters, so that a pruned layer stays pruned.

    ``start`` is where k-means begins: ``optimal`` (Wang, Song, 2011), ``linear``, ``density`` and ``random`` (Han et
    al., 2016), or ``kmeans++`` (Arthur, Vassilvitskii, 2007). ``importance`` weighs each number's error by the
    ``inputs`` that it multiplies, or by its ``fisher`` information, on ``samples`` of the calibration data, on which
    the division of ``bytes`` is measured too. Sizes are estimated, by the entropy of each layer and four bytes a
    value: what a file takes depends on its codec.

    With ``fold`` batch norms are folded into the layers before them first, for engines' graphs do that, and weights
    times the scales of a norm would share nothing any more.

    With ``epochs`` above 0 the values learn afterwards: a cluster's gradients are summed, and all of its numbers move
    as one. Biases and norms learn too. With ``distill`` the original teaches; the rest are the parameters of training,
    as ``Learning`` tells, but that the learning rate is 0.3 times the task's. The result is never worse than without:
    both are judged, on validation data by the task's metric or without labels by their nearness to the original, and
    where training lost, it is undone.
    """

    name: ClassVar[str] = "compress.share"
    fewest_epochs: ClassVar[int] = 0

    clusters: Annotated[int, Field(ge=2, le=_MOST)] | None = None
    bits: Annotated[int, Field(ge=1, le=12)] | None = None
    bytes: Annotated[int, Field(ge=1)] | None = None
    layers: tuple[tuple[str, int], ...] = ()
    start: Start = "optimal"
    importance: Importance = "none"
    samples: Annotated[int, Field(ge=1)] = 256
    fold: bool = True
    distill: bool = True
    epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        said = [name for name in ("clusters", "bits", "bytes") if getattr(self, name) is not None]
        if len(said) > 1:
            raise self._wrong(said[1], f"one of clusters, bits and bytes alone, beside {said[0]}")
        for name, least, most in (("clusters", 2, _MOST), ("bits", 1, 12), ("bytes", 1, 2**62)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise self._wrong(name, f"{least} to {most}")
        for name, known in (("start", get_args(Start)), ("importance", get_args(Importance))):
            if getattr(self, name) not in known:
                raise self._wrong(name, f"one of {', '.join(known)}")
        named = [name for name, _ in self.layers]
        if len(set(named)) < len(named) or any(not (k == 0 or 2 <= k <= _MOST) for _, k in self.layers):
            raise self._wrong("layers", f"each name once, with 2 to {_MOST} clusters, or 0 to leave it alone")
        if self.samples < 1:
            raise self._wrong("samples", "1 or more")
        if self.epochs:  # what a recipe asks: without epochs, no train data are needed
            object.__setattr__(self, "trains", True)

    def __call__(self, model: Model, context: Context) -> Change:
        """Raises ``PassError`` where nothing can be shared or learned from, or the budget is below the least size."""
        task = context.task
        if self.epochs:
            self.check_data(task, taught=self.distill)
        notes: dict[str, Any] = {}
        if self.fold:
            module, notes = fold_batch_norms(model, Data(model, context, self.samples))
            model = model.but(module=module)
        weights, refused = find_weights(model.module)
        asked = self._asked(model, weights)
        refused |= {one.name: "layers says so" for one in weights if asked.get(one.name) == 0}
        weights = [one for one in weights if asked.get(one.name) != 0]
        if not weights:
            raise PassError(f"{self.name}: the model has no weights to share: {refused}")
        samples = Samples(task.data("calibrate"), model.inputs, self.samples)
        weights = with_importance(weights, model, samples, self.importance)
        if self.bytes is None:
            found = [self._cluster(one.line(), asked.get(one.name), context) for one in weights]
        else:
            found = self._divide(model, context, weights, asked)
        pairs = list(zip(weights, found, strict=True))
        refused |= {
            weight.name: f"{len(clusters.values)} values would weigh as much as they spare"
            for weight, clusters in pairs
            if not spares_bytes(weight, clusters)
        }
        pairs = [pair for pair in pairs if pair[0].name not in refused]
        if not pairs:
            raise PassError(f"{self.name}: the model has no weights to share: {refused}")
        weights = [weight for weight, _ in pairs]
        shared = [Shared.of(*pair) for pair in pairs]
        errors = {one.weight.name: _error(one) for one in shared}
        for one in shared:
            one.put()
        if self.epochs:
            notes |= self._learn(model, context, shared)
        layers = to_notes({one.weight.name: one for one in shared}, errors)
        return Change(
            model.module,
            {
                "layers": layers,
                "estimated_bytes": sum(told["bytes"] for told in layers.values()) + _rest(model, weights),
                "refused": refused,
                **notes,
            },
        )

    def _asked(self, model: Model, weights: Sequence[Weight]) -> dict[str, int]:
        """The number of clusters by parameter, where ``layers`` says one."""
        known = {one.name for one in weights}
        by_layer: dict[str, list[str]] = {}
        for name in known:
            by_layer.setdefault(name.rpartition(".")[0], []).append(name)
        unknown = sorted(name for name, _ in self.layers if name not in known and name not in by_layer)
        if unknown:
            raise PassError(f"{self.name}: layers: nothing in {unknown} can be shared; what can is {sorted(known)}")
        asked: dict[str, int] = {}
        for name, clusters in sorted(self.layers, key=lambda item: item[0] in known):
            asked |= dict.fromkeys([name] if name in known else by_layer[name], clusters)
        return asked

    def _cluster(self, line: Line, clusters: int | None, context: Context) -> Clusters:
        wanted = clusters or self.clusters or (_CLUSTERS if self.bits is None else 2**self.bits)
        return cluster(line, wanted, self.start, context.seed)

    def _divide(
        self, model: Model, context: Context, weights: Sequence[Weight], asked: dict[str, int]
    ) -> list[Clusters]:
        """Clusters of each weight, so that the whole model takes about ``bytes`` and its outputs move little.

        The loss of a weight is the outputs' noise with it alone shared coarsely, which is measured, and for other
        numbers of clusters in proportion to k-means' error.
        """
        probe = Probe(model, context, self.samples)
        curves: dict[str, list[Point]] = {}
        ways: dict[str, dict[int, Clusters]] = {}
        for done, one in enumerate(weights):
            context.progress("sensitivity", done / len(weights))
            line, zeros = one.line(), one.zeros
            levels = (asked[one.name],) if one.name in asked else _LEVELS
            tried = {level: self._cluster(line, level, context) for level in levels}
            coarse = tried.get(_PROBED) or next(iter(tried.values()))
            noise = probe(one.parameter, Shared.of(one, coarse).tensor())
            slope = noise / coarse.error if coarse.error > 0 else 0.0
            ways[one.name] = tried
            curves[one.name] = [
                Point(level, coded_bytes(zeros, way), slope * way.error) for level, way in tried.items()
            ]
        rest = _rest(model, weights)
        least = sum(min(point.size for point in curve) for curve in curves.values())
        if (self.bytes or 0) < least + rest:
            raise PassError(
                f"{self.name}: bytes: expected at least {math.ceil(least) + rest:,} ({math.ceil(least):,} for what is "
                f"shared, however coarsely, and {rest:,} for all other numbers), got {self.bytes:,}"
            )
        chosen = divide(curves, float(self.bytes or 0) - rest, f"{self.name}: bytes of weights")
        return [ways[one.name][chosen[one.name].choice] for one in weights]

    def _learn(self, model: Model, context: Context, shared: Sequence[Shared]) -> dict[str, Any]:
        """Train the values in ``model.module``, and undo it where that lost."""
        before = copy.deepcopy(model.module)
        values = [one.values.clone() for one in shared]
        with tied(shared) as tie:
            gently = replace(self, learning_rate=self.learning_rate or context.task.learning_rate * _GENTLE)
            learnt = gently.learn(
                model,
                context,
                (context.teacher,) if self.distill else (),
                keep_zeros=SPARSE in model.facts,
                on_step=tie,
            )
        judge = Judge(model, context)
        scores = {"shared": judge(before), "trained": judge(model.module)}
        won = learnt["best_epoch"] > 0 and judge.prefers(scores["trained"], scores["shared"])
        if not won:
            model.module.load_state_dict(before.state_dict())
            for one, was in zip(shared, values, strict=True):
                one.values.copy_(was)
        return {**learnt, "kept": "trained" if won else "shared", "judged_on": judge.told(), "scores": scores}


def _rest(model: Model, weights: Sequence[Weight]) -> int:
    """Bytes of what is not shared: each tensor of the module's state once."""
    shared = {id(one.parameter) for one in weights}
    others = {
        id(tensor): tensor.numel() * tensor.element_size()
        for tensor in (*model.module.parameters(), *model.module.buffers())
        if id(tensor) not in shared and tensor.is_floating_point()
    }
    return sum(others.values())


def _error(one: Shared) -> float:
    """The squared error over the squares of what the parameter holds now."""
    was = one.weight.parameter.detach().double()
    squares = float(was.square().sum())
    with torch.no_grad():
        return float((was - one.tensor().double()).square().sum()) / squares if squares else 0.0
