"""How to train, and what training did."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from tauten.core.value import Value
from tauten.make.model.training.precision import Precision


class Training(Value):
    """How to train: AdamW (Loshchilov, Hutter 2019), warm-up, then cosine decay to zero (Loshchilov, Hutter 2017).

    ``learning_rate`` is the peak, ``warmup`` the share of all steps that rise to it, ``weight_decay`` holds for
    matrices and kernels alone, ``clip_norm`` bounds the norm of the gradient. ``keep_best`` keeps the weights of the
    epoch with the smallest validation loss, the start among them, where there is validation data; with ``patience``,
    training ends after so many epochs without a smaller one (0: never). ``steps`` asks for more epochs where ``epochs``
    of them have fewer steps than that: a small data set needs more walks.

    ``accumulate`` batches make one step, as one batch of their samples would. ``recompute`` keeps the inputs of
    repeated blocks instead of all that is inside them, and computes the inside again for the gradients (Chen et al.,
    2016): less memory, more time, the same weights. It may name the modules instead: ``("encoder.layer.0",)``.

    ``max_memory_mib`` bounds the memory of the process, or on a GPU what PyTorch allocates there: each batch is
    computed in parts whose gradients add up, the largest ones whose measured peak holds. A step is that of the whole
    batch; batch normalization sees the parts.

    ``precision`` is what products and convolutions are computed in; weights, their updates and the loss stay float32.
    ``bfloat16`` needs no care; ``float16`` scales the loss so that small gradients are not lost (Micikevicius et al.,
    2018).
    """

    epochs: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0)] = 0
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-2
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    keep_best: bool = True
    patience: Annotated[int, Field(ge=0)] = 0
    accumulate: Annotated[int, Field(ge=1)] = 1
    recompute: bool | tuple[str, ...] = False
    max_memory_mib: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    precision: Precision = "float32"

    @property
    def saves_memory(self) -> bool:
        """Whether anything here is to make a step smaller."""
        return bool(self.recompute) or self.max_memory_mib is not None or self.precision != "float32"

    def epochs_of(self, steps: int) -> int:
        """How many epochs of ``steps`` steps to train for."""
        return max(self.epochs, math.ceil(self.steps / steps))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) of ``steps``."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = min(1.0, (step - rising) / max(1, steps - rising))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Trained:
    """What training did.

    ``losses`` are the mean training loss of each epoch; ``validation`` that of the start and then of each epoch, in
    evaluation mode, or empty. ``best_epoch`` is the one whose weights were kept: 0 is the start. ``resumed`` is how
    many epochs came out of a checkpoint, ``recomputed`` how many blocks are computed twice and ``not_recomputed`` those
    that could not be, with the reason; ``rows`` the samples that were computed at once at the end, where memory is
    bounded. ``peak_mib`` is the most memory in use, where it is known. ``step_mib`` is by how much it grows in one
    step, measured before training where something was to be saved: plainly (in float32, a whole batch at once, nothing
    computed twice), and as it was trained.
    """

    best_epoch: int
    losses: tuple[float, ...]
    validation: tuple[float, ...]
    samples: int
    stopped_early: bool = False
    resumed: int = 0
    processes: int = 1
    recomputed: int = 0
    not_recomputed: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None
    step_mib: tuple[float | None, float | None] | None = None
    peak_mib: float | None = None

    def to_notes(self) -> dict[str, Any]:
        """As JSON: losses before and after, epochs run, best epoch, samples seen (each counted at each visit)."""
        if self.validation:
            before, after, on = self.validation[0], self.validation[self.best_epoch], "validation"
        else:
            before, after, on = self.losses[0], self.losses[-1], "training"
        return {
            "loss_before": before if math.isfinite(before) else None,
            "loss_after": after if math.isfinite(after) else None,
            "loss_on": on,
            "epochs": len(self.losses),
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
            "samples": self.samples,
            "resumed": self.resumed,
            "processes": self.processes,
            "recomputed": self.recomputed,
            "peak_mib": self.peak_mib,
            **({"not_recomputed": dict(self.not_recomputed)} if self.not_recomputed else {}),
            **({"rows_at_once": self.rows} if self.rows is not None else {}),
            **({"step_mib": dict(zip(("before", "after"), self.step_mib, strict=True))} if self.step_mib else {}),
        }
