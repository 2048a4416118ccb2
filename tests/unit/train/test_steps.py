"""Steps, accumulation, recomputation and early stopping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import ConfigError
from tauten.make.model.fit import labelled
from tauten.make.model.train import Trained, Trainer, Training
from tauten.make.model.training.processes import Processes
from tauten.make.model.training.recompute import find_blocks, recomputing
from tauten.make.model.training.stepper import Stepper
from tauten.testing.tiny import residual_task
from tests.unit.train.problems import CLASSES, FEATURES, classify, clouds, in_batches


def train(task: tauten.Task, module: nn.Module, **settings: Any) -> Trained:
    training = Training(**{"epochs": 2, "learning_rate": task.learning_rate, **settings})
    return Trainer(task.inputs, (), training, labelled(task))(module, task.data("train"), task.data("validate"))


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())


@pytest.mark.parametrize("samples", [160, 150, 17])
def test_small_batches_that_accumulate_are_one_large_batch(samples: int) -> None:
    points, labels = clouds(samples, 0)
    large, small, alone = plain(), plain(), plain()
    expected = train(classify(train=in_batches(points, labels, 32)), large)
    came = train(classify(train=in_batches(points, labels, 8)), small, accumulate=4)
    train(classify(train=in_batches(points, labels, 8)), alone)
    assert difference(small, large) < 1e-5
    assert difference(alone, large) > 1e-3
    assert np.allclose(came.losses, expected.losses, atol=1e-6)
    assert came.samples == expected.samples == 2 * samples


def test_steps_are_counted_not_batches() -> None:
    task, seen = classify(), []
    trainer = Trainer(task.inputs, (), Training(epochs=2, accumulate=4), labelled(task))
    trainer(plain(), task.data("train"), on_step=lambda step, steps: seen.append((step, steps)))
    assert seen == [(step, 6) for step in range(6)]
    assert len(train(task, plain(), epochs=1, steps=10, accumulate=4).losses) == 4


def test_recomputed_blocks_learn_exactly_the_same() -> None:
    task = residual_task()
    kept, forgotten = residual_task().build(), residual_task().build()
    expected = train(task, kept, epochs=3)
    came = train(task, forgotten, epochs=3, recompute=True)
    assert came.losses == expected.losses
    assert difference(kept, forgotten) == 0
    assert (expected.recomputed, came.recomputed) == (0, 2)
    # Counted as often, and told of each batch once.
    assert int(forgotten[1].num_batches_tracked) == int(forgotten[3].norm1.num_batches_tracked)
    assert not any("forward" in part.__dict__ for part in forgotten.modules())


def test_recomputed_blocks_repeat_their_dropout() -> None:
    def deep() -> nn.Module:
        torch.manual_seed(0)
        block = [nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Dropout(0.5), nn.ReLU()) for _ in range(3)]
        return nn.Sequential(*block, nn.Linear(FEATURES, CLASSES))

    kept, forgotten = deep(), deep()
    train(classify(), kept)
    assert train(classify(), forgotten, recompute=True).recomputed == 3
    assert difference(kept, forgotten) == 0


def test_recomputed_blocks_keep_less_for_the_gradients() -> None:
    module, image = residual_task().build().train(), torch.randn(8, 1, 8, 8)

    def kept() -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(image).sum()
        return sum(sizes.values())

    before = kept()
    with recomputing(True, module, lambda: module(image)) as blocks:
        assert blocks == 2
        assert kept() < 0.6 * before


def test_blocks_are_what_containers_repeat() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Sequential(block(), block()), nn.Sequential(block())])
            self.head = nn.Linear(2, 2)

    net = Net()
    assert find_blocks(net) == [net.stages[0][0], net.stages[0][1], net.stages[1][0]]
    assert find_blocks(nn.Linear(2, 2)) == []


def test_a_block_with_a_state_of_its_own_is_not_computed_twice() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Linear(FEATURES, FEATURES), nn.ReLU()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, point: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            found: torch.Tensor = self.other(self.layer(point))
            return found

    module = nn.Sequential(Counting(), nn.Sequential(nn.Linear(FEATURES, 4), nn.Linear(4, CLASSES)))
    trained = train(classify(validate=in_batches(*clouds(16, 2))), module, epochs=1, recompute=True)
    assert trained.recomputed == 1
    assert int(module[0].calls) == 10 + 2


def test_training_stops_where_nothing_gets_better() -> None:
    points, labels = clouds(160, 0)
    wrong = classify(train=in_batches(points, (labels + 1) % CLASSES))
    module = plain()
    train(classify(), module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trained = train(wrong, module, epochs=10, patience=2)
    assert len(trained.losses) == 2
    assert trained.stopped_early
    assert trained.best_epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert trained.to_notes()["stopped_early"] is True


def test_training_that_gets_better_goes_on() -> None:
    trained = train(classify(), plain(), epochs=4, patience=1)
    assert len(trained.losses) == 4
    assert not trained.stopped_early


def test_without_the_best_weights_patience_still_ends_it() -> None:
    points, labels = clouds(160, 0)
    wrong = classify(train=in_batches(points, (labels + 1) % CLASSES))
    module = plain()
    train(classify(), module)
    trained = train(wrong, module, epochs=10, patience=3, keep_best=False)
    assert len(trained.losses) == 3
    assert trained.best_epoch == 3


@pytest.mark.parametrize("fields", [{"accumulate": 0}, {"patience": -1}])
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Training(**{"epochs": 1, **fields})


def test_the_peak_of_memory_is_told() -> None:
    peak = train(classify(), plain()).peak_mib
    assert peak is None or peak > 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_from_a_checkpoint_are_those_of_the_same_weights(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    kernel, gradients = torch.randn(8, 4, 3, 3), torch.randn(3, 8, 4, 3, 3)

    def stepper(value: torch.Tensor) -> tuple[nn.Parameter, Stepper]:
        one = nn.Parameter(value.clone(memory_format=layout))
        return one, Stepper([one], Training(epochs=1), Processes(), [])

    def step(one: nn.Parameter, by: Stepper, gradient: torch.Tensor) -> None:
        by.add((one * gradient).sum(), 1)
        by.step(1e-2, "here")

    straight, by = stepper(kernel)
    for gradient in gradients[:2]:
        step(straight, by, gradient)
    kept = {name: tensor.contiguous().clone() for name, tensor in by.tensors().items()}
    resumed, other = stepper(straight.detach())
    other.load(kept, by.numbers())
    step(straight, by, gradients[2])
    step(resumed, other, gradients[2])
    assert torch.equal(straight, resumed)
    plain = nn.Parameter(kernel.clone())
    expected = torch.optim.AdamW([plain], lr=1e-2, weight_decay=Training(epochs=1).weight_decay)
    for gradient in gradients:
        plain.grad = gradient / max(1.0, float(gradient.norm()) + 1e-6)
        expected.step()
    assert torch.allclose(straight, plain, atol=1e-6)
