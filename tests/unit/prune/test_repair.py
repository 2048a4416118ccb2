"""What is tuned after a cut, without labels: weights by least squares, statistics of batch normalization."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.prune import _refit
from tauten.make.passes.prune._least_squares import Sums, solve
from tauten.make.passes.prune._norms import reestimate
from tauten.make.passes.prune._reading import Reading
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.prune._step_by_step import Walk
from tauten.make.passes.prune.structured import Structured
from tests.unit.graph import nets

ROWS = 64


def task_of(module: nn.Module, specs: tuple[TensorSpec, ...] = nets.IMAGE, rows: int = ROWS) -> Task:
    inputs = nets.example(specs, rows)
    half = {name: array[: rows // 2] for name, array in inputs.items()}
    rest = {name: array[rows // 2 :] for name, array in inputs.items()}
    return Task(model=module, inputs=specs, calibrate=[half, rest])


def prune(task: Task, **parameters: Any) -> Model:
    model = to_model(task)
    step = Structured.from_parameters({"ratio": 0.5, "scope": "layer", **parameters})
    return apply(step, model, Context(task, model.module))


def distance(model: Model, whole: nn.Module, specs: tuple[TensorSpec, ...] = nets.IMAGE) -> float:
    """Of answers to inputs that nothing was tuned on, over their spread."""
    inputs = {name: array[ROWS:] for name, array in nets.example(specs, 2 * ROWS).items()}
    exact, found = (forward(module, specs, (), inputs)["output"] for module in (whole, model.module))
    return float(np.square(exact - found).mean() / exact.var())


def doubled(first: nn.Module, second: nn.Module) -> None:
    """The second half of the channels is a combination of the first half: nothing is lost without it."""
    with torch.no_grad():
        half = first.weight.shape[0] // 2
        mixing = torch.randn(half, half) / half**0.5
        first.weight[half:] = torch.einsum("ij,j...->i...", mixing, first.weight[:half]) * 0.1
        first.bias[half:] = mixing @ first.bias[:half] * 0.1


@pytest.mark.parametrize(
    ("layers", "specs"),
    [
        (lambda: (nn.Linear(12, 8), nn.Linear(8, 5)), nets.VECTOR),
        (lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3, stride=2, padding=(1, 0), dilation=2)), nets.IMAGE),
        (lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, (3, 5), padding="same", bias=False)), nets.IMAGE),
        (
            lambda: (nn.Conv1d(3, 8, 3), nn.Conv1d(8, 5, 3, stride=2, padding=1)),
            (TensorSpec(name="input", shape=("batch", 3, 16)),),
        ),
    ],
)
def test_what_the_kept_channels_say_is_recovered(layers: Any, specs: tuple[TensorSpec, ...]) -> None:
    torch.manual_seed(0)
    first, second = layers()
    doubled(first, second)
    module = nn.Sequential(first, second)
    task = task_of(module, specs)
    spoilt, mended = prune(task, repair="none"), prune(task, repair="least_squares")
    assert distance(spoilt, module, specs) > 1e-3
    assert distance(mended, module, specs) < 1e-5
    assert list(mended.history[-1].notes["repair"]["fitted"]) == ["1"]


def test_errors_do_not_pile_up_in_a_residual_network() -> None:
    module = nets.lively(nets.ResNet())
    task = task_of(module)
    spoilt, mended = prune(task, repair="none"), prune(task, repair="least_squares")
    assert distance(mended, module) < 0.5 * distance(spoilt, module)
    notes = mended.history[-1].notes["repair"]
    assert set(notes["fitted"]) == {
        "layer1.conv1.0", "layer1.conv2.0", "layer2.conv1.0", "layer2.conv2.0", "layer2.down.0", "fc"
    }  # fmt: skip
    assert all(0 <= share <= 1 for share in notes["fitted"].values())
    assert notes["left"] == {}
    assert notes["samples"] == ROWS


def test_each_layer_is_fitted_to_what_the_ones_before_it_answer_now() -> None:
    """The second layer's fit starts from the first one's: the normal equations of its real inputs hold."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    mended = prune(task_of(module, nets.VECTOR), repair="least_squares")
    x = torch.from_numpy(nets.example(nets.VECTOR, ROWS)["input"])
    with torch.no_grad():
        read, missing = mended.module[:4](x), module(x) - mended.module(x)
    assert missing.mean(dim=0).abs().max() < 1e-4
    before = prune(task_of(module, nets.VECTOR), repair="none").module
    with torch.no_grad():
        untouched = module(x) - before(x)
    products = (read - read.mean(dim=0)).T @ missing
    assert products.abs().max() < 0.2 * (before[:4](x) - before[:4](x).mean(dim=0)).T.matmul(untouched).abs().max()


def test_nothing_is_changed_where_nothing_is_lost() -> None:
    module = nets.lively(nets.ResNet())
    with torch.no_grad():
        for owner in (module.layer1.conv1[0], module.layer1.conv1[1]):
            owner.weight[:4] = 0
        module.layer1.conv1[1].bias[:4] = 0
    spoilt = prune(task_of(module), ratio=0, ratios=[["layer1.conv1.0.weight", 0.5]], repair="none")
    mended = prune(task_of(module), ratio=0, ratios=[["layer1.conv1.0.weight", 0.5]], repair="least_squares")
    for left, right in zip(spoilt.module.parameters(), mended.module.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_a_fit_that_does_not_hold_on_other_samples_is_not_taken() -> None:
    generator = torch.Generator().manual_seed(0)
    fit, held_out = Sums(20, 3), Sums(20, 3)
    for sums in (fit, held_out):
        # Residuals that have nothing to do with the inputs.
        sums.add(torch.randn(12, 20, generator=generator), torch.randn(12, 3, generator=generator))
    found = solve(fit, held_out, intercept=False)
    assert found.left == 1.0
    assert not found.weight.any()


def test_the_solution_is_the_ridge_regressions_and_its_error_the_sum_of_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = torch.randn(200, 6, generator=generator), torch.randn(4, 6, generator=generator)
    residuals = inputs @ wanted.T + 0.3
    fit, held_out = Sums(6, 4), Sums(6, 4)
    fit.add(inputs[:150], residuals[:150])
    held_out.add(inputs[150:], residuals[150:])
    found = solve(fit, held_out, intercept=True)
    torch.testing.assert_close(found.weight.float(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias.float(), torch.full((4,), 0.3), rtol=1e-3, atol=1e-3)
    weight, bias = torch.randn(4, 6, generator=generator).double(), torch.randn(4, generator=generator).double()
    expected = (residuals[150:].double() - inputs[150:].double() @ weight.T - bias).square().sum()
    assert held_out.error(weight, bias) == pytest.approx(float(expected), rel=1e-5)


class Oddities(nn.Module):
    """A layer that is called twice, one in groups, and one that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.leave = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.enter(x))
        x = x + self.twice(torch.relu(self.twice(x)))
        return self.leave(torch.relu(self.grouped(x)))


def test_what_is_not_fitted_is_named_with_the_reason() -> None:
    torch.manual_seed(0)
    notes = prune(task_of(Oddities()), repair="least_squares").history[-1].notes["repair"]
    assert notes["left"] == {"twice": "is called more than once", "grouped": "is a convolution in groups"}
    assert list(notes["fitted"]) == ["leave"]


def test_too_wide_a_layer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_refit, "MOST_INPUTS", 4)
    module = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
    notes = prune(task_of(module, nets.VECTOR), repair="least_squares").history[-1].notes["repair"]
    assert notes["left"] == {"2": "reads 5 numbers, more than 4"}


def test_too_few_samples_are_told() -> None:
    module = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))
    notes = prune(task_of(module, nets.VECTOR), repair="least_squares", samples=3).history[-1].notes["repair"]
    assert notes["left"] == {"2": "is fitted to 4 samples or more, got 3"}


def test_heads_are_cut_whole_and_what_mixes_them_is_fitted() -> None:
    module = nets.lively(nets.Tokens(8, nets.Attention(8)))
    mended = prune(task_of(module), repair="least_squares", round_to=2)
    (heads,) = [group for group in mended.history[-1].notes["groups"] if group["before"] == 4]
    assert {"blocks.0.query.weight", "blocks.0.value.weight", "blocks.0.out.weight"} <= set(heads["parameters"])
    assert heads["after"] == 2
    assert mended.module.blocks[0].query.out_features == 2 * 3
    assert "blocks.0.out" in mended.history[-1].notes["repair"]["fitted"]


def test_the_statistics_of_batch_normalization_are_those_of_the_data() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    task = task_of(module, rows=300)
    model = to_model(task)
    assert reestimate(model, Samples(task.data("calibrate"), nets.IMAGE, 300)) == ["1"]
    with torch.no_grad():
        read = module[0](torch.from_numpy(nets.example(nets.IMAGE, 300)["input"]))
    torch.testing.assert_close(module[1].running_mean, read.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(module[1].running_var, read.var(dim=(0, 2, 3)))
    assert not module[1].training
    assert module[1].num_batches_tracked == 0


def test_new_statistics_bring_a_cut_network_nearer() -> None:
    module = nets.lively(nets.ResNet())
    # Statistics that fit the network, as after training.
    task = task_of(module)
    reestimate(to_model(task), Samples(task.data("calibrate"), nets.IMAGE, ROWS))
    spoilt, mended = prune(task, repair="none"), prune(task, repair="batch_norm")
    assert distance(mended, module) < distance(spoilt, module)
    assert mended.history[-1].notes["repair"]["normalized"][0] == "stem.1"


def test_a_single_number_a_channel_has_no_variance() -> None:
    module = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    before = copy.deepcopy(module.state_dict())
    task = task_of(module, nets.VECTOR, rows=2)
    assert reestimate(to_model(task), Samples(task.data("calibrate"), nets.VECTOR, 1)) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("repair", ["batch_norm", "least_squares"])
def test_a_repair_repeats_itself(repair: str) -> None:
    module = nets.lively(nets.ResNet())
    one, two = (prune(task_of(module), repair=repair).history[-1].after for _ in range(2))
    assert one == two


def test_samples_of_other_shapes_are_not_joined() -> None:
    specs = (TensorSpec(name="input", shape=("batch", "length", 12)),)
    rows = [np.zeros((size, length, 12), np.float32) for size, length in ((3, 5), (4, 7), (2, 5))]
    task = Task(model=nn.Linear(12, 2), inputs=specs, calibrate=[{"input": array} for array in rows])
    joined, count = Samples(task.data("calibrate"), specs, 100).together(100)
    assert (joined["input"].shape, count) == ((5, 5, 12), 5)
    assert Samples(task.data("calibrate"), specs, 2).together(100)[1] == 2
    assert Samples(task.data("calibrate"), specs, 100).together(1)[1] == 1


def test_a_layers_rows_are_what_it_computes() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        reading = Reading(layer, None)
        missing = [part[1] for part in reading.parts(x, reading.take(layer(x)))]
    torch.testing.assert_close(torch.cat(missing), torch.zeros(5 * 16, 4), rtol=0, atol=1e-5)


def test_a_walk_goes_from_layer_to_layer_and_leaves_no_thread() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    x = torch.randn(3, 2)
    threads = threading.active_count()
    layers = {"first": module[0], "last": module[2]}
    with torch.no_grad():
        expected = module[0](x)
    with Walk(lambda: module(x), layers, lambda name, answer: answer.clone()) as walk:
        name, answer = walk.to_next()
        assert name == "first"
        torch.testing.assert_close(answer, expected)
        assert walk.to_next()[0] == "last"
        with pytest.raises(LookupError):
            walk.to_next()
    with Walk(lambda: module(x), layers, lambda name, answer: None) as walk:
        walk.to_next()
    assert threading.active_count() == threads
    assert not module[0]._forward_hooks


def test_what_a_module_raises_in_a_walk_is_raised() -> None:
    module = nn.Linear(2, 2)
    with (
        pytest.raises(RuntimeError, match="shapes"),
        Walk(lambda: module(torch.randn(3, 5)), {"all": module}, lambda name, answer: None) as walk,
    ):
        walk.to_next()
