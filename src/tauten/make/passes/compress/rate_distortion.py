"""Weights on grids that a codec makes small, chosen by error against bits, without training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tauten.errors import PassError, RecipeError
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.passes.compress._apart import Apart, apart
from tauten.make.passes.compress._balance import balance
from tauten.make.passes.compress._curvature import Curvature, Moments, measure
from tauten.make.passes.compress._plan import plan_all
from tauten.make.passes.compress._rounding import Rounding
from tauten.make.passes.compress._sites import Site, find_sites
from tauten.make.passes.compress._to_size import coded_bytes, round_to
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._fold import fold_batch_norms
from tauten.make.passes.quantize._noise import Noise

__all__ = ["RateDistortion"]


@dataclass(frozen=True)
class RateDistortion(Pass):
    """Every weight a whole multiple of its row's step, so that all of them take ``share`` of their float32 bytes.

    Or ``bytes``, as the codec ``arithmetic`` codes them; or with steps of ``step`` in the curvature's measure, whatever
    that takes. Curvature is measured on ``samples`` of calibration data by tracing random combinations of the answers
    back; layers are rounded one after another, what is left of each making up for what rounding lost, and biases give
    layers the means of their outputs again. Nothing is trained. ``rare`` is the share of readings that are taken to
    fall evenly on an embedding's rows, the others as calibration data has them.

    Sources: Frantar et al., 2023; Martens and Grosse, 2015; Sullivan and Wiegand, 1998.
    """

    name: ClassVar[str] = "compress.rate_distortion"

    share: float = 0.125
    bytes: int | None = None
    step: float | None = None
    samples: int = 256
    rare: float = 0.5
    correct_bias: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RecipeError(f"{self.name}: share: expected more than 0 and at most 1, got {self.share}")
        if self.bytes is not None and self.bytes < 1:
            raise RecipeError(f"{self.name}: bytes: expected at least 1, got {self.bytes}")
        if self.step is not None and not 0 < self.step < math.inf:
            raise RecipeError(f"{self.name}: step: expected a number above 0, got {self.step}")
        if self.bytes is not None and self.step is not None:
            raise RecipeError(f"{self.name}: expected bytes or step, got both")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples: expected at least 1, got {self.samples}")
        if not 0 < self.rare <= 1:
            raise RecipeError(f"{self.name}: rare: expected more than 0 and at most 1, got {self.rare}")

    def __call__(self, model: Model, context: Context) -> Change:
        """The module on grids. Raises ``PassError`` where it has nothing to round, or cannot be so small."""
        data = Data(model, context, self.samples)
        module, notes = fold_batch_norms(model, data)
        model = model.but(module=module)
        sites, refused = find_sites(module)
        if not any(site.kind != "vector" for site in sites):
            raise PassError(f"{self.name}: the model has no float32 parameter of two dimensions or more")
        noise = Noise(data, module)
        context.progress("curvature", 0.0)
        parts = apart(data)
        curvature, why = _curvature(model, sites, parts, context.seed)
        if why:
            notes["without_curvature"] = why
        plans = plan_all(sites, curvature, self.rare)
        first = {site.path: site.weight.clone() for site in sites}
        rounding = Rounding(model, parts, sites, plans, curvature, self.correct_bias, first)
        plain = 4 * sum(site.weight.numel() for site in sites)
        if self.step is not None:
            rounding(self.step, draft=True)
            delta, done = self.step, balance(rounding)(self.step)
            size = coded_bytes(sites)
        else:
            delta, done, size = round_to(rounding, self.bytes or int(self.share * plain), self.name)
        sizes = {site.path: site.weight.numel() for site in sites}
        return Change(
            module,
            {
                **notes,
                "step": delta,
                "bytes": size,
                "float32_bytes": plain,
                "bits": {path: round(bits / sizes[path], 3) for path, bits in done.bits.items()},
                "bias_corrected": done.corrected,
                "refused": refused,
                "sqnr_db": noise.decibels(module),
            },
        )


def _curvature(model: Model, sites: Sequence[Site], data: Apart, seed: int) -> tuple[Curvature, str]:
    """The curvature, or one that knows nothing and the reason."""
    try:
        return measure(model, sites, data.batches(), seed), ""
    except RuntimeError as fault:
        return Curvature({site.path: Moments() for site in sites}), str(fault)
