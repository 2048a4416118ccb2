"""Scores of channels, on weights alone and with statistics of data."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import TensorSpec
from tauten.errors import PassError
from tauten.make.graph.groups import Group, Removal
from tauten.make.graph.slim import mask
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.prune._scores import score
from tauten.make.passes.prune._statistics import drawn_loss
from tauten.make.passes.prune.criteria import CRITERIA
from tauten.make.passes.prune.criteria.criterion import Criterion, measured, statistics_of
from tauten.testing.criteria import check_criterion
from tests.unit.graph import nets

BATCH = 16
"""As many as the mini-batches that gradients are taken of."""


def scored(
    module: nn.Module,
    criterion: str | Criterion,
    *,
    labels: bool = True,
    samples: int = BATCH,
    specs: tuple[TensorSpec, ...] = nets.IMAGE,
    loss: object = None,
) -> tuple[tuple[Group, ...], list[torch.Tensor], Task]:
    inputs = nets.example(specs, 2 * BATCH)
    data = [(inputs, np.arange(2 * BATCH) % 5 if labels else None)]
    task = Task(model=module, inputs=specs, calibrate=data, loss=loss)
    model = to_model(task)
    groups = nets.of(module, specs).groups
    found = CRITERIA.get(criterion) if isinstance(criterion, str) else criterion
    torch.manual_seed(0)
    scores = score(groups, model, found, Samples(task.data("calibrate"), specs, samples), Context(task, model.module))
    return groups, scores, task


def test_the_contract_catches_what_spoils_its_statistics_and_an_unknown_statistic() -> None:
    @measured("gradient")
    def spoils(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return statistics["gradient"].abs_().sum(dim=1)

    with pytest.raises(AssertionError, match="must not change the statistics"):
        check_criterion(spoils)
    with pytest.raises(ValueError, match="momentum"):
        measured("momentum")


def test_taylor_is_the_change_of_the_loss_when_a_channel_is_cut() -> None:
    """Where what reads the channels is small, so that the first order is nearly all."""
    module = nets.lively(nets.ResNet()).double()
    with torch.no_grad():
        module.layer2.conv2[0].weight.mul_(1e-4)
    specs = (TensorSpec(name="input", shape=("batch", 3, 8, 8), dtype="float64"),)
    groups, scores, task = scored(module, "taylor", specs=specs)
    ((inputs, labels),) = task.data("calibrate")
    x, truth = torch.from_numpy(inputs["input"][:BATCH]), torch.from_numpy(labels[:BATCH])
    place = next(number for number, group in enumerate(groups) if group.name == "layer2.conv1.0.weight")
    with torch.no_grad():
        loss = functional.cross_entropy(module(x), truth)
        for unit in range(groups[place].units):
            cut = mask(copy.deepcopy(module), Removal(groups, {place: np.array([unit])}))
            change = functional.cross_entropy(cut(x), truth) - loss
            torch.testing.assert_close(scores[place][unit].double(), change.square(), rtol=1e-2, atol=0.0)


def test_taylor_is_the_mean_over_mini_batches() -> None:
    module = nets.lively(nets.ResNet())
    _, both, task = scored(module, "taylor", samples=2 * BATCH)
    ((inputs, labels),) = task.data("calibrate")
    halves = []
    for start in (0, BATCH):
        part = [({"input": inputs["input"][start : start + BATCH]}, labels[start : start + BATCH])]
        half = Task(model=module, inputs=nets.IMAGE, calibrate=part)
        model = to_model(half)
        samples = Samples(half.data("calibrate"), nets.IMAGE, BATCH)
        groups = nets.of(module).groups
        halves.append(score(groups, model, CRITERIA.get("taylor"), samples, Context(half, model.module)))
    for place, of_group in enumerate(both):
        torch.testing.assert_close(of_group, (halves[0][place] + halves[1][place]) / 2)


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "group_fisher"])
def test_gradients_need_no_labels_and_leave_no_trace(criterion: str) -> None:
    module = nets.lively(nets.ResNet())
    module.stem[0].weight.requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    _, scores, _ = scored(module, criterion, labels=False)
    assert all((of_group > 0).any() for of_group in scores)
    assert not module.stem[0].weight.requires_grad
    assert all(tensor.grad is None for tensor in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_the_loss_of_the_task_is_the_one_that_counts() -> None:
    module = nets.lively(nets.ResNet())
    _, scores, _ = scored(module, "taylor", loss=lambda outputs, labels: 0.0 * outputs["output"].sum())
    assert all((of_group == 0).all() for of_group in scores)


@pytest.mark.parametrize("labels", [True, False])
def test_fisher_is_the_curvature_of_the_models_own_distribution(labels: bool) -> None:
    """Of a linear layer, where it can be written down: mean over samples of J^T (diag(p) - p p^T or 1) J."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 5))
    inputs = nets.example(nets.VECTOR, BATCH)
    hidden = module[0](torch.from_numpy(inputs["input"])).detach()
    shares = module[1](hidden).softmax(dim=1).detach()
    squares = torch.zeros(5, 3)
    draws = 4000
    truth = torch.arange(BATCH) % 5 if labels else None
    for _ in range(draws):
        outputs = {"output": module(torch.from_numpy(inputs["input"]))}
        spread = 1.0 if labels else float(outputs["output"].detach().std(unbiased=False))
        (gradient,) = torch.autograd.grad(drawn_loss(outputs, truth) * spread, [module[1].weight])
        squares += gradient.square() / draws
    curvature = shares * (1 - shares) if labels else torch.ones_like(shares)
    expected = (curvature[:, :, None] * hidden[:, None, :].square()).mean(dim=0)
    torch.testing.assert_close(squares, expected, rtol=0.15, atol=0.02)


def test_fisher_adds_up_weights_and_the_group_counts_as_one() -> None:
    weights, gradient = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[2.0, -1.0], [1.0, 5.0]])
    given = {"fisher_gradient": gradient}
    assert CRITERIA.get("fisher")(weights, given).tolist() == [8.0, 9.0]
    assert CRITERIA.get("group_fisher")(weights, given).tolist() == [0.0, 9.0]


def test_wanda_weighs_what_is_read_by_how_large_it_is() -> None:
    module = nets.vgg().eval()
    groups, scores, task = scored(module, "wanda", samples=2 * BATCH)
    ((inputs, _),) = task.data("calibrate")
    with torch.no_grad():
        read = module[:3](torch.from_numpy(inputs["input"]))
        flat = module[:8](torch.from_numpy(inputs["input"]))
    sizes = read.square().mean(dim=(0, 2, 3)).sqrt()
    expected = (module[3].weight.abs().sum(dim=(0, 2, 3)) * sizes).detach()
    assert groups[0].name == "0.weight"
    torch.testing.assert_close(scores[0], expected)
    # Four inputs of the linear layer are one channel of the convolution before it.
    expected = (module[8].weight.abs() * flat.square().mean(dim=0).sqrt()).sum(dim=0).unflatten(0, (8, 4)).sum(dim=1)
    torch.testing.assert_close(scores[1], expected.detach())


def test_wanda_of_groups_and_transposed_convolutions() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, groups=2), nn.ConvTranspose2d(4, 6, 2), nn.Conv2d(6, 2, 1)
    )
    groups, scores, task = scored(
        module, "wanda", samples=2 * BATCH, loss=lambda outputs, labels: outputs["output"].sum()
    )
    ((inputs, _),) = task.data("calibrate")
    with torch.no_grad():
        first = module[0](torch.from_numpy(inputs["input"]))
        second = module[1](first)
    by_name = {group.name: scores[place] for place, group in enumerate(groups)}
    # A unit of the grouped convolution is one output of each group, and so it is of what the groups read.
    sizes = second.square().mean(dim=(0, 2, 3)).sqrt()
    rows = module[2].weight.abs().sum(dim=(1, 2, 3)) * sizes
    torch.testing.assert_close(by_name["1.weight"], rows.unflatten(0, (2, 2)).sum(dim=0).detach())
    sizes = first.square().mean(dim=(0, 2, 3)).sqrt()
    columns = module[1].weight.abs().sum(dim=(2, 3)).unflatten(0, (2, 2)).sum(dim=1)
    torch.testing.assert_close(by_name["0.weight"], (columns * sizes.unflatten(0, (2, 4))).sum(dim=0).detach())


def test_a_criterion_that_gives_no_score_for_some_channel_is_told() -> None:
    def broken(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return weights[:, 0] / 0

    def short(weights: torch.Tensor, statistics: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return weights[1:, 0]

    assert statistics_of(broken) == ()
    with pytest.raises(PassError, match="not finite"):
        scored(nets.lively(nets.ResNet()), broken)
    with pytest.raises(PassError, match=r"shape \(7,\) for 8"):
        scored(nets.lively(nets.ResNet()), short)


def test_a_channel_that_the_others_say_already_goes_first() -> None:
    weights = torch.tensor([[1.0, 1.0], [1.1, 0.9], [0.9, 1.1], [9.0, 0.0], [0.0, -9.0]])
    scores = CRITERIA.get("geometric_median")(weights, {})
    assert int(scores.argmin()) in (0, 1, 2)
    # Where a norm would drop the small ones, this one keeps what is unlike the rest.
    assert set(scores.topk(2).indices.tolist()) == {3, 4}


def test_channels_that_are_alike_are_told_apart_from_those_that_are_not_however_far_from_zero() -> None:
    weights = 1000 + torch.tensor([[0.0], [0.001], [0.002], [0.5]])
    scores = CRITERIA.get("geometric_median")(weights, {})
    assert int(scores.argmax()) == 3
    assert int(scores.argmin()) in (0, 1, 2)
