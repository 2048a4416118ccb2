"""How far a student's answers are from its teacher's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

_MOST_ROWS = 1024
"""Of more rows than this, as many are compared pairwise, evenly spaced."""


def soft_targets(student: torch.Tensor, teacher: torch.Tensor, temperature: float, axis: int = -1) -> torch.Tensor:
    """Kullback-Leibler divergence of class logits softened by ``temperature``, times its square; a mean over samples.

    Hinton, Vinyals, Dean 2015: the square keeps the gradient's size the same at every temperature. Computed in log
    space, so that no probability underflows. ``axis`` holds the classes; every other axis counts samples.
    """
    ours = functional.log_softmax(in_rows(student, axis) / temperature, dim=-1)
    theirs = functional.log_softmax(in_rows(teacher, axis) / temperature, dim=-1)
    return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


class Parts(NamedTuple):
    """The two parts of a divergence of softened logits, one number a sample: ``target + rest * others`` is the whole.

    ``target`` is the divergence on whether it is the target class, ``others`` that among the other classes, and
    ``rest`` the teacher's probability that it is one of those.
    """

    target: torch.Tensor
    others: torch.Tensor
    rest: torch.Tensor


def divergence_parts(student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor) -> Parts:
    """``(samples, classes)`` logits and ``(samples,)`` target classes: the parts, in log space (Zhao et al., 2022)."""
    ours, theirs = functional.log_softmax(student, dim=-1), functional.log_softmax(teacher, dim=-1)
    picked = functional.one_hot(classes, student.shape[-1]).bool()
    our_target, their_target = (log.gather(-1, classes[:, None]).squeeze(-1) for log in (ours, theirs))
    our_others, their_others = (log.masked_fill(picked, -torch.inf) for log in (ours, theirs))
    our_rest, their_rest = torch.logsumexp(our_others, dim=-1), torch.logsumexp(their_others, dim=-1)
    target = _expected(their_target, our_target) + _expected(their_rest, our_rest)
    # The target class itself takes no part: its logarithms are put to the same finite number, its share to zero.
    among_ours = (our_others - our_rest[:, None]).masked_fill(picked, 0.0)
    among_theirs = (their_others - their_rest[:, None]).masked_fill(picked, 0.0)
    share = among_theirs.exp().masked_fill(picked, 0.0)
    return Parts(target, (share * (among_theirs - among_ours)).sum(-1), their_rest.exp())


def decoupled(
    student: torch.Tensor,
    teacher: torch.Tensor,
    classes: torch.Tensor | None,
    temperature: float,
    alpha: float,
    beta: float,
    axis: int = -1,
) -> torch.Tensor:
    """Decoupled distillation: ``alpha`` times the target class' part, ``beta`` times that of the others.

    Zhao et al., 2022: in the whole divergence a teacher that is sure hides what it knows of the other classes; here
    that counts in full. ``classes`` are the labels, of the outputs' shape without ``axis``; where there are none, or a
    label is no class, the teacher's own choice is the target.
    """
    ours, theirs = in_rows(student, axis) / temperature, in_rows(teacher, axis) / temperature
    chosen = theirs.argmax(dim=-1)
    if classes is not None:
        known = classes.flatten().long()
        chosen = torch.where((known >= 0) & (known < ours.shape[-1]), known, chosen)
    parts = divergence_parts(ours, theirs, chosen)
    return (alpha * parts.target + beta * parts.others).mean() * temperature**2


def values_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two outputs that are no class logits."""
    return functional.mse_loss(student, teacher)


def embedding_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine, a mean over vectors, and how differently far apart the vectors lie.

    Vectors lie on the last axis. The distances are those of Park et al., 2019 (relational distillation): all pairs',
    over their mean, compared by Huber's loss.
    """
    ours, theirs = in_rows(student, -1), in_rows(teacher, -1)
    angle = 1 - functional.cosine_similarity(ours, theirs, dim=-1).mean()
    if len(ours) < 2:
        return angle
    spread = torch.linspace(0, len(ours) - 1, min(len(ours), _MOST_ROWS), device=ours.device).round().long()
    return angle + functional.smooth_l1_loss(_distances(ours[spread]), _distances(theirs[spread]))


def in_rows(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """``(..., along axis, ...) -> (samples, along axis)``."""
    return tensor.movedim(axis, -1).flatten(0, -2)


def _distances(rows: torch.Tensor) -> torch.Tensor:
    """``(rows, width) -> (pairs,)``: Euclidean distances of all pairs, over their mean."""
    apart = torch.pdist(rows)
    return apart / apart.mean().clamp(min=1e-12)


def _expected(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """``p log(p / q)`` of logarithms, zero where ``p`` is."""
    return torch.where(theirs == -torch.inf, 0.0, theirs.exp() * (theirs - ours))
