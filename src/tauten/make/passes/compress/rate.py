"""Prunes and rounds while it trains, towards the bytes that the coded weights may take."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Final

import torch
from pydantic import Field
from torch import Tensor, nn

from tauten.codecs import CODECS
from tauten.core.tensor import Arrays
from tauten.errors import PassError
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Change, Context
from tauten.make.model.train import OnStep
from tauten.make.passes.compress._rate_bits import CODEC, coded_bytes, estimate_all
from tauten.make.passes.compress._rate_budget import Allocator, Tightener, trim
from tauten.make.passes.compress._rate_layer import Part, RateWeight, attach, detach, find
from tauten.make.passes.compress._rate_segment import Segment
from tauten.make.passes.compress._rate_units import remove_dead, sort_units
from tauten.make.passes.compress._steps import short_step
from tauten.make.passes.distill._student import Learning
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._fold import fold_batch_norms

__all__ = ["Rate"]

_SETTLED: Final = 0.3
"""The share of the rounded training after which no weight is pruned and none returns."""
_FIRST: Final = 0.3
"""The share of the pruning after which units that died are taken out, which makes the rest of it faster."""
_MENDED: Final = 0.8
"""The share of the mending after which it prunes no more."""
_GENTLE: Final = 0.5
"""Mending begins with so much of the learning rate: what it starts from is good, and it has a few epochs."""
_PRUNED: Final = 0.9
"""The share of the pruning after which its budget is reached."""
_POWER: Final = 2.0
_FULL: Final = 4.0
"""Bits of a weight at first."""
_CODER_GAINS: Final = 0.9
"""What a coder with contexts makes of an estimate from densities, before there are levels to ask it about."""
_MARGIN: Final = 1.0
"""What is aimed at while weights move, as a share of the bytes."""
_COMPARED: Final = 64
"""Calibration samples that folding is held against."""
_MENDING: Final = 3
"""The place of the stage that mends, after two that prune and one that rounds."""
_IN_ORDER: Final = 1.01
"""What is aimed at before mending, as a share of the bytes: units in order then spare more than that (LeNets: 2 %)."""
_NAMED: Final = 4
"""Weights that are left alone, told by name."""
_UNUSED_STEP: Final = 2.0**-6
"""A layer without a weight has no mean to take a step from."""


@dataclass(frozen=True)
class Rate(Learning):
    """Trains the model so that its weights, once the codec ``arithmetic`` has coded them, take ``bytes``.

    Without ``bytes``, a ``share`` of what they take in float32. Batch norms are folded into the layers before them
    first: engines' graphs do that, and weights on a grid would leave it. The weights are those of linear and
    convolutional layers, embeddings and attention, biases included; what else there is stays as it is, and counts.

    For a share ``prune`` of the epochs, weights are set to zero again and again: those stay whose loss, by squared
    gradients, is worth most for the bits that they take, which are told by the densities of rows and columns. The
    budget falls fast at first and ever slower, and what was pruned may return. Units that nothing reads are taken out.
    Then each layer gets a grid, whose step begins at ``levels`` times the mean magnitude and is learned with the
    weights; the budget is now held against the bytes of the real codec. Soon nothing is pruned any more, and of what
    follows the best weights on held-out data are kept. Their levels went on growing, so that they take more bytes than
    they may: what is worth least for its bits is trimmed. With ``mend`` that is learned around, for such a share of
    the epochs in addition to them: from units in the order that codes best, the bytes are held again and again, and
    the rest learns. What comes out is whole multiples of a short step in float32, with the units in that order.

    The other parameters are those of training, as ``Learning`` tells; with ``distill`` the original teaches.
    """

    name: ClassVar[str] = "compress.rate"
    gives: ClassVar[frozenset[str]] = frozenset({SPARSE})
    trains: ClassVar[bool] = True

    bytes: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    prune: Annotated[float, Field(gt=0, lt=1)] = 0.5
    levels: Annotated[float, Field(gt=0, le=4)] = 0.6
    mend: Annotated[float, Field(ge=0, lt=1)] = 0.0
    epochs: int = 10
    temperature: float = 3.0
    distill: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bytes is not None and self.bytes < 1:
            raise self._wrong("bytes", "1 or more")
        for name in ("share", "prune"):
            if not 0 < getattr(self, name) < 1:
                raise self._wrong(name, "above 0 and below 1")
        if not 0 < self.levels <= 4:
            raise self._wrong("levels", "above 0 and at most 4")
        if not 0 <= self.mend < 1:
            raise self._wrong("mend", "0 or more and below 1")

    def __call__(self, model: Model, context: Context) -> Change:
        """Raises ``PassError`` where there is nothing to train or learn from, or the bytes cannot be met."""
        task = context.task
        self.check_data(task, taught=self.distill)
        model, folded = self._fold(model, context)
        places, refused = find(model.module)
        if not places:
            raise PassError(f"{self.name}: the model has no weights that can be coded: {refused}")
        float32_bytes = sum(one.nbytes for one in model.module.state_dict().values() if isinstance(one, Tensor))
        target = self.bytes if self.bytes is not None else math.floor(self.share * float32_bytes)
        example = next(iter(task.data("calibrate")))[0]
        lengths, weights = self._lengths(), sum(one.numel() for one in model.module.parameters())
        latents: dict[str, Tensor] = {}
        steps: dict[str, float] = {}
        told = []
        for place in range(len(lengths)):
            stage = _Stage(lengths, place)
            if stage.mends:
                # In the order that the file will have, so that as much is trimmed as must be; then it starts from what
                # is computed, not from latents, which lie in the old order.
                model = model.but(module=sort_units(model, example, lambda one: coded_bytes(one, [])))
                latents = {}
            parts = attach(model.module, find(model.module)[0], partial(self._weight, stage, steps))
            for part in parts:
                part.latent.data.copy_(latents.get(part.full_name, part.latent))
            aim = math.floor(_IN_ORDER * target) if self.mend and not stage.mends else target
            allocator = self._allocator(model.module, parts, stage, aim, weights)
            told.append(self._train(model, context, stage, allocator))
            if place == len(lengths) - 1:
                trim(model.module, parts, target)
            latents = {part.full_name: part.latent.detach().clone() for part in parts}
            steps = {part.full_name: float(part.weight.step) for part in parts if stage.rounds}
            detach(parts)
            model, latents, units = _without_dead(model, example, latents)
            told[-1] |= units
        module = sort_units(model, example, lambda one: coded_bytes(one, []))
        made = coded_bytes(module, [])
        if made > target:
            raise PassError(f"{self.name}: expected at most {target} bytes, the nearest is {made}")
        notes = {
            **told[-1],
            **folded,
            "pruning": told[: _MENDING - 1],
            **({"rounding": told[_MENDING - 1]} if self.mend else {}),
            "bytes": made,
            "expected_bytes": target,
            "float32_bytes": float32_bytes,
            "steps": steps,
            **_by_layer(module, places),
            "refused": refused,
        }
        return Change(module.eval(), notes)

    def _fold(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        """The model with batch norms in the layers before them, and notes."""
        module, notes = fold_batch_norms(model, Data(model, context, _COMPARED))
        return model.but(module=module), notes

    def _lengths(self) -> tuple[int, ...]:
        """Epochs of the stages: pruned, pruned without the units that died first, rounded, and perhaps mended."""
        first = max(1, round(_FIRST * self.prune * self.epochs))
        second = max(1, round(self.prune * self.epochs) - first)
        mended = (max(1, round(self.mend * self.epochs)),) if self.mend else ()
        return first, second, max(1, self.epochs - first - second), *mended

    def _weight(self, stage: _Stage, steps: Mapping[str, float], name: str, value: Tensor) -> RateWeight:
        if stage.place == 0:
            return RateWeight(torch.ones_like(value, dtype=torch.bool))
        if not stage.rounds:
            return RateWeight(value != 0)
        if stage.mends:
            return RateWeight(value != 0, steps[name])
        held = value[value != 0].abs()
        return RateWeight(value != 0, short_step(float(self.levels * held.mean())) if held.numel() else _UNUSED_STEP)

    def _allocator(
        self, module: nn.Module, parts: list[Part], stage: _Stage, target: int, weights: int
    ) -> Allocator | Tightener:
        fixed = self._fixed(module, parts, target)
        if stage.mends:
            return Tightener(module, parts, target, _MENDED)
        wanted = (target - fixed) * 8 / _CODER_GAINS
        full = max(wanted, _FULL * weights)

        def falling(share: float) -> float:
            done = min(1.0, stage.pruned(share) / _PRUNED)
            return float(full * (wanted / full) ** (1 - (1 - done) ** _POWER))

        def held(share: float) -> float:
            """What the estimate may be, by what the coder now makes of it."""
            found = estimate_all(parts) / max(1.0, 8 * (coded_bytes(module, parts) - fixed))
            return found * 8 * (_MARGIN * target - fixed)

        return Allocator(parts, held, _SETTLED) if stage.rounds else Allocator(parts, falling, 1.0)

    def _train(self, model: Model, context: Context, stage: _Stage, allocator: OnStep) -> dict[str, Any]:
        """Train ``model.module`` in place for one stage. Returns notes."""
        training = self.training(context.task)
        return self.learn(
            model,
            replace(
                context,
                seed=context.seed + stage.place,
                progress=lambda said, share: context.progress(said, stage.done(share)),
            ),
            (context.teacher,) if self.distill else (),
            on_step=allocator,
            # Of what is pruned only the last weights have the bits that are asked for.
            settled=_MENDED if stage.mends else _SETTLED if stage.rounds else 1 - 1e-9,
            training=Segment(
                **{
                    **training.to_json(),
                    "epochs": stage.epochs,
                    "steps": round(self.steps * stage.epochs / sum(stage.lengths[:_MENDING])),
                    "learning_rate": training.learning_rate * (_GENTLE if stage.mends else 1),
                    "begin": stage.begin,
                    "end": stage.end,
                }
            ),
        )

    def _fixed(self, module: nn.Module, parts: list[Part], target: int) -> int:
        """Bytes of everything that is not a weight."""
        fixed = coded_bytes(module, parts, zero=True)
        if fixed >= target:
            # What is computed lies in the parametrizations of what is coded, which are not known themselves.
            left = [name for name in find(module)[1] if ".parametrizations." not in f".{name}"]
            others = f"{', '.join(left[:_NAMED])}{' and others' * (len(left) > _NAMED)}, which it leaves alone, "
            raise PassError(
                f"{self.name}: expected at most {target} bytes, but with every weight that it codes zero the file has "
                f"{fixed}: {others * bool(left)}norms, buffers, names and shapes take them"
            )
        return fixed


@dataclass(frozen=True)
class _Stage:
    """One of the trainings that follow each other: ``lengths`` are the epochs of all of them, ``place`` which it is."""

    lengths: tuple[int, ...]
    place: int

    @property
    def rounds(self) -> bool:
        """Whether weights lie on grids."""
        return self.place >= _MENDING - 1

    @property
    def mends(self) -> bool:
        """Whether what was trimmed is learned around."""
        return self.place == _MENDING

    @property
    def epochs(self) -> int:
        """How long it is."""
        return self.lengths[self.place]

    @property
    def begin(self) -> float:
        """Where it begins, as a share of those that have one course of the learning rate: all, but mending its own."""
        return 0.0 if self.mends else sum(self.lengths[: self.place]) / sum(self.lengths[:_MENDING])

    @property
    def end(self) -> float:
        """Where it ends."""
        return 1.0 if self.mends else self.begin + self.epochs / sum(self.lengths[:_MENDING])

    def done(self, share: float) -> float:
        """Which share of all is done at a share of it."""
        return (sum(self.lengths[: self.place]) + share * self.epochs) / sum(self.lengths)

    def pruned(self, share: float) -> float:
        """Which share of all pruning is done at a share of it."""
        return (sum(self.lengths[: self.place]) + share * self.epochs) / sum(self.lengths[: _MENDING - 1])


def _without_dead(
    model: Model, example: Arrays, latents: Mapping[str, Tensor]
) -> tuple[Model, dict[str, Tensor], dict[str, Any]]:
    """The model without units that died, ``latents`` of its parameters without them too, and notes."""
    other = copy.deepcopy(model.module)
    with torch.no_grad():
        for name, latent in latents.items():
            other.get_parameter(name).copy_(latent)
    module, notes = remove_dead(model, example, other)
    return model.but(module=module), {name: other.get_parameter(name).detach() for name in latents}, notes


def _by_layer(module: nn.Module, places: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Bits a weight, each coded alone, and the share of zeros, by parameter; the weights are those that are left."""
    codec = CODECS.get(CODEC)
    held = {name: module.get_parameter(name).detach() for name in places}
    bits = {name: 8 * len(codec.encode({name: one.cpu().numpy()})) / max(1, one.numel()) for name, one in held.items()}
    zeros = {name: float((one == 0).float().mean()) for name, one in held.items()}
    return {"bits_per_weight": bits, "zeros": zeros}
