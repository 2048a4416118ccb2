"""Bits divided among parameters by what rounding each of them does to the answers, measured.

Curvature foretells that well within a layer and less well between layers, as it takes places of a sample for
independent. At the least error for the bits, each number loses the same: steps are moved until it does, on samples that
the curvature has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from tauten.make.passes.compress._plan import Plan
from tauten.make.passes.compress._rounding import Rounding
from tauten.make.passes.compress._sites import Site
from tauten.make.passes.quantize._noise import Noise

_MOST_PARTS: Final = 64  # that are measured one by one; in larger models, neighbours together
_MOST: Final = 16.0  # by which a step moves, up or down


def balance(rounding: Rounding) -> Rounding:
    """The same with other steps: every number of the parameters, as they are rounded now, shall lose the same.

    The module holds its first weights afterwards.
    """
    rounded = {site.path: site.weight.clone() for site in rounding.sites}
    rounding.restore()
    noise = Noise(rounding.data.kept(), rounding.model.module)
    plans = list(rounding.plans)
    size = max(1, -(-len(plans) // _MOST_PARTS))
    losses: list[tuple[list[Plan], float, int]] = []
    for at in range(0, len(plans), size):
        rounding.data.context.progress("balance", at / len(plans))
        part = plans[at : at + size]
        loss = _loss(rounding, part, rounded, noise)
        losses.append((part, loss, sum(plan.site.weight.numel() for plan in part)))
    felt = [(loss, count) for _, loss, count in losses if loss > 0]
    if not felt:
        return rounding
    total = sum(count for _, count in felt)
    middle = sum(count * torch.tensor(loss / count).log2().item() for loss, count in felt) / total
    moved = []
    for part, loss, count in losses:
        factor = 2.0 ** ((middle - torch.tensor(loss / count).log2().item()) / 2) if loss > 0 else 1.0
        factor = min(_MOST, max(1 / _MOST, factor))
        moved += [_moved(plan, factor) for plan in part]
    return replace(rounding, plans=moved)


def _moved(plan: Plan, factor: float) -> Plan:
    """Steps times ``factor``, and curvature to match, so that a slope means the same everywhere."""
    outputs = plan.outputs and replace(plan.outputs, power=plan.outputs.power / factor**2)
    return replace(plan, scale=plan.scale * factor, rows=plan.rows / factor**2, outputs=outputs)


def _loss(rounding: Rounding, part: Sequence[Plan], rounded: dict[str, Tensor], noise: Noise) -> float:
    """The relative squared change of the answers when ``part`` alone is rounded, with biases that make up for means."""
    with torch.no_grad():
        for plan in part:
            plan.site.weight.copy_(rounded[plan.site.path])
            _give_back(rounding, plan.site)
    loss = sum(noise.shares(rounding.model.module).values())
    rounding.restore()
    return loss


def _give_back(rounding: Rounding, site: Site) -> None:
    bias = getattr(site.layer, "bias", None)
    if site.kind == "product" and rounding.correct_bias and bias is not None:
        bias.add_(rounding.shift(site, rounding.curvature.moments[site.path].means))
