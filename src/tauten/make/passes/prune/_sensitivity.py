"""How far the outputs move when one group alone is cut, and how a cut is divided so that they move least."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from tauten.make.graph.groups import Group, Removal
from tauten.make.graph.slim import slim
from tauten.make.model.loss import class_axis
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import Tensors, call, to_tensor
from tauten.make.passes.prune._rank import Floors
from tauten.make.passes.prune._samples import Samples

RATIOS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
"""Of each group's units; the last is the most that its floor allows where that is less."""
MOST_SAMPLES = 128
BATCH = 32
Curve = tuple[tuple[int, float], ...]
"""``(units removed, loss)``, in rising order from ``(0, 0.0)``."""


def curves(
    model: Model,
    groups: tuple[Group, ...],
    scores: Mapping[int, torch.Tensor],
    floors: Floors,
    samples: Samples,
    context: Context,
) -> tuple[dict[int, Curve], dict[int, str]]:
    """The curve of each group of ``scores``, by its place, and why one that cannot be cut has none.

    Units go by their scores, ``(units,)``.

    The loss is how far the outputs are
    from those of the whole model: the Kullback-Leibler divergence where labels say that the first output holds classes,
    else the squared distance over the outputs' variance. One walk over at most ``MOST_SAMPLES`` samples, in which every
    smaller module runs; one of them at a time is in memory.
    """
    order = {place: torch.argsort(of_group, stable=True).numpy() for place, of_group in scores.items()}
    counts = {place: _counts(len(of_group), floors) for place, of_group in order.items()}
    broken: dict[int, str] = {}
    tallies = {place: [_Tally() for _ in of_group] for place, of_group in counts.items()}
    bounded = Samples(samples.data, samples.specs, min(samples.count, MOST_SAMPLES))
    done, total = 0, max(1, sum(map(len, counts.values())) * -(-bounded.count // BATCH))
    with torch.inference_mode():
        for inputs, labels in bounded.batches(BATCH):
            wanted = call(model.module, model.inputs, model.outputs, inputs)
            axis = None if labels is None else class_axis(next(iter(wanted.values())), to_tensor(labels))
            for place, of_group in counts.items():
                for tally, count in zip(tallies[place], of_group, strict=True):
                    done += 1
                    if place in broken:
                        continue
                    small = slim(copy.deepcopy(model.module), Removal(groups, {place: order[place][:count]}))
                    try:
                        tally.add(wanted, call(small, model.inputs, model.outputs, inputs), axis)
                    except Exception as fault:  # noqa: BLE001 - whatever the module's own code raises is the finding
                        broken[place] = f"with {count} channels less it does not run ({type(fault).__name__}: {fault})"
                context.progress("measuring what each group can spare", 0.4 + 0.3 * done / total)
    found: dict[int, Curve] = {
        place: ((0, 0.0), *((count, tally.loss()) for count, tally in zip(of_group, tallies[place], strict=True)))
        for place, of_group in counts.items()
        if place not in broken
    }
    return found, broken


def allocate(measured: Mapping[int, Curve], count: int) -> dict[int, int]:
    """How many units each group loses, ``count`` in all, so that the sum of losses is least.

    On the lower convex hull of each curve, the cheapest next unit goes first, until one more costs the same in every
    group: the Lagrangian solution (Shoham, Gersho, 1988), as if the losses of groups added up.
    """
    steps = [
        (price, place, start, units) for place, curve in measured.items() for price, start, units in _hull_steps(curve)
    ]
    losses = dict.fromkeys(measured, 0)
    for _, place, _, units in sorted(steps):
        taken = min(units, count)
        losses[place] += taken
        count -= taken
    return losses


def _counts(units: int, floors: Floors) -> list[int]:
    most = units - floors.least(units)
    return sorted({min(round(ratio * units), most) for ratio in RATIOS} - {0})


def _hull_steps(curve: Curve) -> list[tuple[float, int, int]]:
    """``(loss a unit, units before, units)`` of each edge of the curve's lower hull; prices rise."""
    hull: list[tuple[int, float]] = []
    for point in curve:
        while len(hull) > 1 and _price(hull[-2], hull[-1]) >= _price(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(_price(left, right), left[0], right[0] - left[0]) for left, right in itertools.pairwise(hull)]


def _price(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


@dataclass
class _Tally:
    """Adds up how far outputs are from the wanted ones."""

    count: int = 0
    divergence: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)

    def add(self, wanted: Tensors, found: Tensors, axis: int | None) -> None:
        if axis is not None:
            first = next(iter(wanted))
            theirs, ours = (
                functional.log_softmax(outputs[first].movedim(axis, -1).flatten(0, -2).double(), dim=-1)
                for outputs in (wanted, found)
            )
            self.divergence += float(functional.kl_div(ours, theirs, reduction="sum", log_target=True))
            self.count += len(ours)
            return
        for name, output in wanted.items():
            if output.is_floating_point():
                exact = output.double()
                error = float((found[name].double() - exact).square().sum())
                self.errors[name] = self.errors.get(name, 0.0) + error
                # About the mean of each number over samples, where there are several: what is the same for all
                # says nothing.
                middle = exact.mean(dim=0, keepdim=True) if len(exact) > 1 else 0.0
                spread = float((exact - middle).square().sum())
                self.spreads[name] = self.spreads.get(name, 0.0) + spread

    def loss(self) -> float:
        """Never negative; the largest number that there is in place of one that is not finite."""
        shares = [error / (self.spreads[name] or 1.0) for name, error in self.errors.items()]
        loss = self.divergence / self.count if self.count else float(np.mean(shares or [0.0]))
        return max(0.0, loss) if math.isfinite(loss) else sys.float_info.max
