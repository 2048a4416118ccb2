"""How far a student's outputs are from its teacher's."""

from __future__ import annotations

import torch
from torch.nn import functional


def soft_targets(student: torch.Tensor, teacher: torch.Tensor, temperature: float, axis: int = -1) -> torch.Tensor:
    """Kullback-Leibler divergence of class logits softened by ``temperature``, times its square; a mean over samples.

    Hinton, Vinyals, Dean 2015: the square keeps the gradient's size the same at every temperature. Computed in log
    space, so that no probability underflows. ``axis`` holds the classes; every other axis counts samples.
    """
    ours = functional.log_softmax(student.movedim(axis, -1).flatten(0, -2) / temperature, dim=-1)
    theirs = functional.log_softmax(teacher.movedim(axis, -1).flatten(0, -2) / temperature, dim=-1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def outputs_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two outputs that are no class logits."""
    return functional.mse_loss(student, teacher)
