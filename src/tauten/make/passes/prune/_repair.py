"""Makes good without labels what a cut has done: what is left is tuned to answer on calibration data as before."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from tauten.make.graph.groups import Removal
from tauten.make.model.model import Model
from tauten.make.passes.prune._norms import reestimate
from tauten.make.passes.prune._refit import refit
from tauten.make.passes.prune._samples import Samples

Repair = Literal["none", "batch_norm", "least_squares"]


def repair(model: Model, original: nn.Module | None, removal: Removal, samples: Samples, how: Repair) -> dict[str, Any]:
    """Repair ``model`` in place, which is ``original`` without ``removal``; notes of what was done.

    ``batch_norm`` takes the statistics of batch normalization anew. ``least_squares`` fits the weights that read the
    channels which went, and needs ``original``; statistics stay, for its layers are fitted to what these are of.
    """
    if how == "batch_norm":
        return {"normalized": reestimate(model, samples)}
    if how == "least_squares" and original is not None:
        found = refit(model, original, removal, samples)
        return {"fitted": dict(found.fitted), "left": dict(found.left), "samples": found.samples}
    return {}
