"""All of a module's parameters onto grids, in the order of the layers, from what the rounded ones before them give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from tauten.make.model.model import Model
from tauten.make.passes.compress._apart import Apart
from tauten.make.passes.compress._curvature import Curvature, watch_inputs
from tauten.make.passes.compress._feedback import Factor
from tauten.make.passes.compress._plan import Plan, factors_of, round_plan
from tauten.make.passes.compress._sites import Site
from tauten.make.passes.compress._steps import LARGEST_LEVEL, short_step

_MOST_STAGES: Final = 6
"""Walks over the data: in deeper models, several layers in a row see the same rounded ones before them."""
_VECTOR_SHARE: Final = 0.5  # of the step that a number of a matrix would have: there are few
_FEWEST_LEVELS: Final = 31  # of the largest magnitude of a vector, whatever the slope


@dataclass
class Rounded:
    """What rounding came to: bits by path as foretold, and the paths whose bias was corrected."""

    bits: dict[str, float] = field(default_factory=dict)
    corrected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rounding:
    """Rounds ``model``'s module in place, any number of times, always from its first weights."""

    model: Model
    data: Apart
    sites: Sequence[Site]
    plans: Sequence[Plan]
    curvature: Curvature
    correct_bias: bool
    first: dict[str, Tensor]

    def __call__(self, delta: float, draft: bool = False) -> Rounded:
        """Everything onto the grids of ``delta``; a ``draft`` takes inputs as they were before any rounding."""
        done = Rounded()
        self.restore()
        with torch.no_grad():
            stages = self._stages()
            staged = {plan.site.path for stage in stages for plan in stage}
            for plan in self.plans:
                if plan.site.path not in staged:
                    self._round(plan, plan.inputs, delta, done)
            for number, stage in enumerate(stages):
                self.data.context.progress("rounding", number / len(stages))
                self._stage(stage, delta, draft, done)
            for site in self.sites:
                if site.kind == "vector":
                    self._round_vector(site, delta, done)
        return done

    def restore(self) -> None:
        """Give the module its first weights back."""
        with torch.no_grad():
            for site in self.sites:
                site.weight.copy_(self.first[site.path])

    def shift(self, site: Site, now: Tensor | None) -> Tensor:
        """What rounding takes from the mean of a product's outputs, given inputs of mean ``now`` instead of the first.

        ``now`` is ``(groups, inputs)``. Source: Nagel et al., 2019, with means that are measured.
        """
        was = self.curvature.moments[site.path].means
        if was is None or now is None:
            return torch.zeros(len(site.weight))
        first = self.first[site.path].reshape(site.matrix().shape).double().chunk(site.groups)
        rounded = site.matrix().double().chunk(site.groups)
        return torch.cat([a @ x - b @ y for a, x, b, y in zip(first, was, rounded, now, strict=True)]).float()

    def _stages(self) -> list[list[Plan]]:
        """Products as they are called, those together that are given the same."""
        known = {plan.site.path: plan for plan in self.plans if plan.site.kind == "product" and plan.known}
        stages: list[list[Plan]] = []
        source = 0
        for path in self.curvature.order:
            if path not in known:
                continue
            own = self.curvature.moments[path].source
            if not stages or not own or own != source:
                stages.append([])
            stages[-1].append(known[path])
            source = own
        most = max(1, -(-len(stages) // _MOST_STAGES))
        return [[plan for stage in stages[at : at + most] for plan in stage] for at in range(0, len(stages), most)]

    def _stage(self, stage: Sequence[Plan], delta: float, draft: bool, done: Rounded) -> None:
        sites = [plan.site for plan in stage]
        seen = self.curvature.moments
        if not draft:
            seen = watch_inputs(self.model, sites, self.data.batches(), self.curvature, self.data.context.seed)
        for plan in stage:
            now = seen[plan.site.path]
            bias = plan.site.layer.bias
            corrects = self.correct_bias and bias is not None
            inputs = plan.inputs if draft or now.inputs is None else factors_of(now, corrects)
            self._round(plan, inputs, delta, done)
            if corrects and now.means is not None:
                bias.add_(self.shift(plan.site, now.means))
                done.corrected.append(plan.site.path)

    def _round(self, plan: Plan, inputs: Sequence[Factor], delta: float, done: Rounded) -> None:
        matrix = plan.site.matrix()
        levels, steps, bits = round_plan(plan, matrix, delta, inputs)
        # A codec keeps the sign of a zero, which rounding gives to small negative numbers.
        matrix.copy_(levels * steps[:, None] + 0.0)
        done.bits[plan.site.path] = bits

    def _round_vector(self, site: Site, delta: float, done: Rounded) -> None:
        vector = site.weight.reshape(-1)
        largest = float(vector.abs().max())
        if not largest:
            return
        squares = self.curvature.moments[site.path].squares
        mean = 0.0 if squares is None else float(squares.sum()) / max(self.curvature.samples, 1) / len(vector)
        step = _VECTOR_SHARE * delta / mean**0.5 if mean > 0 else 0.0
        step = short_step(min(max(step, largest / (LARGEST_LEVEL // 2)), largest / _FEWEST_LEVELS))
        levels = (vector / step).round_()
        vector.copy_(levels * step + 0.0)
        done.bits[site.path] = float(levels.abs().add(1).log2().mul(2).add(1).sum())
