"""Where each parameter's grid comes from: one slope of error against bits for all of a model's weights.

At many bits, a step that is ``delta`` in the curvature's own measure makes every number lose the same, which is the
least for the bits (reverse water-filling; Gersho and Gray, 1992): ``step = delta / sqrt(curvature)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from tauten.make.passes.compress._curvature import Curvature, Moments
from tauten.make.passes.compress._feedback import Factor, Rule, factor, round_columns, round_diagonals
from tauten.make.passes.compress._sites import Site
from tauten.make.passes.compress._steps import LARGEST_LEVEL, short_step
from tauten.make.passes.compress._symbols import read_symbols

INPUT_DAMPING: Final = 0.01
GRADIENT_DAMPING: Final = 0.03
SLOPE: Final = 0.10
"""Error that a bit is worth, of the squared step: the slope of the rate of a fine grid is 2 ln 2 / 12 = 0.116."""
_AN_OCTAVE: Final = 4  # steps that rows are given: few different ones, as each row's has to be told
_STEP_BITS: Final = 12  # that a row's own step takes
_PROBED: Final = 200_000  # numbers of a parameter, from which its bytes are foretold


@dataclass(frozen=True)
class Plan:
    """How a parameter is rounded.

    ``rows`` ``(rows,)`` are the weights of its rows, which are what ``outputs`` leaves where rows are related.
    ``inputs`` is a factor a group. ``scale`` ``(rows,)`` is each row's step at a ``delta`` of one.
    """

    site: Site
    rows: Tensor
    inputs: tuple[Factor, ...]
    scale: Tensor
    outputs: Factor | None = None
    known: bool = True

    def steps(self, delta: float) -> Tensor:
        """Short steps, ``(rows,)``, that leave every number within the largest level."""
        matrix = self.site.matrix()
        wide = matrix.abs().amax(1)
        steps = torch.exp2((torch.log2(self.scale * delta) * _AN_OCTAVE).round_() / _AN_OCTAVE)
        return short_step(torch.maximum(steps, wide / (LARGEST_LEVEL // 2)).clamp_(min=1e-30))


def factors_of(moments: Moments, centred: bool) -> tuple[Factor, ...]:
    """The factor of what a product is given, a group; without the mean where a bias makes up for that."""
    found = moments.inputs
    if found is None:
        raise ValueError("factors_of: the layer was never called")
    if centred and moments.means is not None and found.ndim == 3:
        found = found - moments.means[:, :, None] * moments.means[:, None, :]
    return tuple(factor(part, INPUT_DAMPING) for part in found)


def plan_all(sites: Sequence[Site], curvature: Curvature, rare: float) -> list[Plan]:
    """A plan for each of ``sites`` that has two dimensions."""
    plans = [_plan(site, curvature, rare) for site in sites if site.kind != "vector"]
    # What nothing is known of gets the same noise, of its own size, as the others on the mean.
    told = [_relative(plan) for plan in plans if plan.known]
    usual = math.exp(sum(told) / len(told)) if told else 1.0
    return [plan if plan.known else _unknown(plan.site, usual) for plan in plans]


def _relative(plan: Plan) -> float:
    matrix = plan.site.matrix()
    size = float(matrix.square().mean().sqrt()) or 1.0
    return float((plan.scale / size).log().mean())


def _unknown(site: Site, usual: float) -> Plan:
    matrix = site.matrix()
    size = float(matrix.square().mean().sqrt()) or 1.0
    scale = torch.full((len(matrix),), usual * size)
    return Plan(site, 1 / scale.square(), (Factor(torch.ones(matrix.shape[1])),), scale, known=False)


def _plan(site: Site, curvature: Curvature, rare: float) -> Plan:
    moments, samples = curvature.moments[site.path], max(curvature.samples, 1)
    blank = _unknown(site, 1.0)
    if site.kind == "product" and moments.inputs is not None and moments.gradients is not None:
        inputs = factors_of(moments, site.layer.bias is not None)
        outputs = factor(moments.gradients / samples, GRADIENT_DAMPING)
        mean = torch.cat([one.power.mean().expand(len(outputs.power) // len(inputs)) for one in inputs])
        if float(moments.gradients.abs().max()) > 0 and float(mean.min()) > 0:
            return Plan(site, outputs.power, inputs, _scale(outputs.power * mean, site), outputs)
    elif site.kind == "table" and moments.gradients is not None and moments.counts is not None:
        rows = _table_rows(site, moments, rare) * (float(moments.counts.sum()) / samples)
        inputs = (factor(moments.gradients / moments.counts.sum(), GRADIENT_DAMPING),)
        if float(rows.min()) > 0:
            return Plan(site, rows, inputs, _scale(rows * inputs[0].power.mean(), site))
    if site.kind == "plain" and moments.squares is not None and float(moments.squares.sum()) > 0:
        columns = site.matrix().shape[1]
        rows = moments.squares / samples / columns
        rows = rows.maximum(0.03 * rows.mean()).float()
        return Plan(site, rows, blank.inputs, _scale(rows, site))
    return blank


def _scale(power: Tensor, site: Site) -> Tensor:
    """Each row's step for the curvature of its numbers; the same for all where own ones are not worth being told."""
    mean = power.mean()
    gain = 0.5 * float((mean.log2() - power.log2()).mean())  # bits a number
    if gain * site.matrix().shape[1] < _STEP_BITS:
        return mean.rsqrt().expand(len(power)).clone()
    return power.rsqrt()


def _table_rows(site: Site, moments: Moments, rare: float) -> Tensor:
    """How often each row is read, a share ``rare`` of it spread evenly, and how its size changes what comes back.

    A layer norm that follows makes gradients of large rows small: the power that fits best, between 0 and -1.
    """
    counts = moments.counts
    if counts is None:
        raise ValueError("_table_rows: the table was never read")
    often = (1 - rare) * counts / counts.sum() + rare / len(counts)
    pairs = torch.cat(moments.sizes, 1)
    size, power = pairs - pairs.mean(1, keepdim=True)
    spread = float((size * size).sum())
    slope = float((size * power).sum()) / spread if spread > 1e-6 * size.numel() else 0.0
    slope = min(0.0, max(-1.0, slope))
    squared = site.weight.square().sum(1).double()
    usual = float(pairs[0].mean().exp())
    # An empty row would weigh without end.
    sizes = (squared / usual).clamp_(min=0.05) ** slope
    return (often * sizes).float()


def round_plan(plan: Plan, matrix: Tensor, delta: float, inputs: Sequence[Factor]) -> tuple[Tensor, Tensor, float]:
    """Levels ``(rows, columns)`` for ``matrix``, the steps of its rows, and what they are foretold to take in bits."""
    steps = plan.steps(delta)
    nearest = (matrix / steps[:, None]).round_()
    rule = Rule(steps, SLOPE * delta**2, read_symbols(nearest))
    if plan.outputs is not None and plan.outputs.root is not None and inputs[0].root is not None and len(inputs) == 1:
        levels = round_diagonals(matrix, inputs[0], plan.outputs, rule)
    else:
        levels = _grouped(plan, matrix, inputs, rule)
    return levels, steps, read_symbols(levels).total(levels)


def _grouped(plan: Plan, matrix: Tensor, inputs: Sequence[Factor], rule: Rule) -> Tensor:
    if len(inputs) == 1:
        return round_columns(matrix, inputs[0], plan.rows, rule)
    size = len(matrix) // len(inputs)
    parts = []
    for group, of_group in enumerate(inputs):
        rows = slice(group * size, (group + 1) * size)
        symbols = rule.symbols and replace(rule.symbols, classes=rule.symbols.classes[rows])
        own = Rule(rule.steps[rows], rule.slope, symbols)
        parts.append(round_columns(matrix[rows], of_group, plan.rows[rows], own))
    return torch.cat(parts)


def foretell(plans: Sequence[Plan], delta: float, off: Mapping[str, float] | None = None) -> float:
    """Bits of all of the plans' weights on grids of ``delta``, from a part of their rows, rounded to the nearest.

    ``off`` says by path how many times that an earlier foretelling was wrong.
    """
    total = 0.0
    for plan in plans:
        matrix, steps = plan.site.matrix(), plan.steps(delta)
        every = max(1, matrix.numel() // _PROBED)
        part = (matrix[::every] / steps[::every, None]).round_()
        bits = read_symbols(part).total(part) * matrix.numel() / part.numel()
        total += bits * (off or {}).get(plan.site.path, 1.0)
    return total
