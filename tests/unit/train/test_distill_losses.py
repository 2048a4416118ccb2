from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tauten.make.passes.distill._losses import decoupled, divergence_parts, embedding_error, soft_targets

T = 4.0


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 3 * torch.randn(*shape), 3 * torch.randn(*shape)


def test_the_parts_make_up_the_whole() -> None:
    """The identity that decoupling stands on: KD = TCKD + (1 - p_t) NCKD (Zhao et al., 2022, equation 7)."""
    student, teacher = pair(7, 5)
    classes = torch.randint(0, 5, (7,))
    parts = divergence_parts(student / T, teacher / T, classes)
    whole = (parts.target + parts.rest * parts.others).mean() * T**2
    assert torch.allclose(whole, soft_targets(student, teacher, T), atol=1e-6)
    probability = functional.softmax(teacher / T, -1).gather(1, classes[:, None])[:, 0]
    assert torch.allclose(parts.rest, 1 - probability, atol=1e-6)


def test_the_parts_are_those_of_their_definition() -> None:
    student, teacher = pair(6, 4)
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    p, q = functional.softmax(teacher / T, -1), functional.softmax(student / T, -1)
    target = others = 0.0
    for row, chosen in enumerate(classes):
        pt, qt = p[row, chosen], q[row, chosen]
        target += pt * (pt / qt).log() + (1 - pt) * ((1 - pt) / (1 - qt)).log()
        rest = [index for index in range(4) if index != chosen]
        pn, qn = p[row, rest] / (1 - pt), q[row, rest] / (1 - qt)
        others += (pn * (pn / qn).log()).sum()
    assert torch.allclose(decoupled(student, teacher, classes, T, 1.0, 0.0), target / 6 * T**2, atol=1e-5)
    assert torch.allclose(decoupled(student, teacher, classes, T, 0.0, 2.0), 2 * others / 6 * T**2, atol=1e-5)


def test_two_classes_have_a_target_alone() -> None:
    student, teacher = pair(5, 2)
    classes = torch.tensor([0, 1, 1, 0, 1])
    assert torch.allclose(
        decoupled(student, teacher, classes, T, 1.0, 9.0), soft_targets(student, teacher, T), atol=1e-5
    )


def test_each_position_counts_where_there_are_many() -> None:
    student, teacher = pair(2, 3, 5)
    classes = torch.randint(0, 5, (2, 3))
    flat = decoupled(student.flatten(0, 1), teacher.flatten(0, 1), classes.flatten(), T, 1.0, 8.0)
    assert torch.allclose(decoupled(student, teacher, classes, T, 1.0, 8.0), flat)
    first = decoupled(student.movedim(-1, 1), teacher.movedim(-1, 1), classes, T, 1.0, 8.0, axis=1)
    assert torch.allclose(first, flat)


def test_the_teachers_choice_is_the_target_where_there_is_no_label() -> None:
    student, teacher = pair(6, 4)
    chosen = teacher.argmax(-1)
    expected = decoupled(student, teacher, chosen, T, 1.0, 8.0)
    assert torch.equal(decoupled(student, teacher, None, T, 1.0, 8.0), expected)
    marked = chosen.clone()
    marked[2] = -100
    assert torch.equal(decoupled(student, teacher, marked, T, 1.0, 8.0), expected)


def test_sure_teachers_give_finite_losses_and_gradients() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-200.0, 200.0, 3.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [200.0, -200.0, 1.0]])
    loss = decoupled(student, teacher, torch.tensor([1, 0]), 1.0, 1.0, 8.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert decoupled(teacher, teacher, torch.tensor([1, 0]), 1.0, 1.0, 8.0).item() == pytest.approx(0, abs=1e-6)


def test_embeddings_are_compared_by_angle_and_by_distances() -> None:
    student, teacher = pair(6, 4)
    assert embedding_error(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert embedding_error(5 * teacher, teacher).item() == pytest.approx(0, abs=1e-6)  # length is free
    angle = 1 - functional.cosine_similarity(student, teacher, dim=-1).mean()
    ours, theirs = torch.pdist(student), torch.pdist(teacher)
    expected = angle + functional.smooth_l1_loss(ours / ours.mean(), theirs / theirs.mean())
    assert torch.allclose(embedding_error(student, teacher), expected)
    assert embedding_error(student[:1], teacher[:1]).item() == pytest.approx(
        1 - functional.cosine_similarity(student[:1], teacher[:1]).item(), abs=1e-6
    )


def test_many_embeddings_are_compared_in_bounded_memory() -> None:
    student, teacher = pair(40, 100, 8)
    assert torch.isfinite(embedding_error(student.requires_grad_(), teacher))
