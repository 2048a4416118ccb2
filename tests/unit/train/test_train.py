from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tauten.errors import ConfigError, PassError, TaskError
from tauten.make.model.fit import labelled
from tauten.make.model.loss import task_loss
from tauten.make.model.task import Task
from tauten.make.model.train import Trained, Trainer, Training
from tests.unit.train.problems import CLASSES, FEATURES, classify, clouds, in_batches, network, shuffled


def trainer(task: Task, **settings: Any) -> Trainer:
    seed = settings.pop("seed", 0)
    progress = settings.pop("progress", lambda text, share: None)
    training = Training(**{"epochs": 4, "learning_rate": task.learning_rate, **settings})
    return Trainer(task.inputs, (), training, labelled(task), seed, progress)


def train(task: Task, module: nn.Module, **settings: Any) -> Trained:
    return trainer(task, **settings)(module, task.data("train"), task.data("validate"))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def loss_on_validation(module: nn.Module, task: Task) -> float:
    loss = task_loss(task)
    batches = [(torch.as_tensor(points["point"]), torch.as_tensor(labels)) for points, labels in task.data("validate")]
    with torch.no_grad():
        return float(torch.stack([loss({"output": module(points)}, labels) for points, labels in batches]).mean())


def seeded(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return network()


def test_training_makes_the_loss_fall_and_leaves_the_module_ready() -> None:
    module = seeded()
    trained = train(classify(), module)
    assert trained.validation[-1] < 0.3 * trained.validation[0]
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    assert len(trained.losses) == 4
    assert len(trained.validation) == 5
    assert trained.samples == 4 * 160
    assert not any(layer.training for layer in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_start_is_kept_where_every_epoch_is_worse() -> None:
    module = seeded()
    train(classify(), module)
    before = state(module)
    points, labels = clouds(160, 0)
    wrong = classify(train=in_batches(points, (labels + 1) % CLASSES))
    trained = train(wrong, module)
    assert trained.best_epoch == 0
    assert min(trained.validation[1:]) > trained.validation[0]
    assert same(state(module), before)
    assert trained.to_notes()["loss_after"] == trained.to_notes()["loss_before"]


def test_the_best_epoch_in_the_middle_is_kept() -> None:
    points, labels = clouds(160, 0)
    walks = []

    def right_then_wrong() -> list[Any]:
        walks.append(0)
        return in_batches(points, labels if len(walks) <= 3 else (labels + 1) % CLASSES)

    task = classify(train=right_then_wrong)
    module = seeded()
    trained = train(task, module, epochs=10)
    assert 0 < trained.best_epoch < 10
    assert trained.best_epoch == int(np.argmin(trained.validation))
    assert trained.validation[-1] > 2 * trained.validation[trained.best_epoch]
    again = loss_on_validation(module, task)
    assert again == pytest.approx(trained.validation[trained.best_epoch], rel=1e-5)


def test_the_last_weights_are_kept_where_the_best_are_not_asked_for() -> None:
    points, labels = clouds(160, 0)
    task = classify(train=in_batches(points, (labels + 1) % CLASSES))
    module = seeded()
    trained = train(task, module, keep_best=False)
    assert trained.best_epoch == 4
    again = loss_on_validation(module, task)
    assert again == pytest.approx(trained.validation[-1], rel=1e-5)


def test_zero_weights_stay_zero_and_zero_biases_learn() -> None:
    module = seeded()
    layer, norm = module[0], module[1]
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    zeros = layer.weight == 0
    others = layer.weight[~zeros].clone()
    task = classify()
    trainer(task)(module, task.data("train"), task.data("validate"), keep_zeros=True)
    assert torch.equal(layer.weight == 0, zeros)
    assert not torch.equal(layer.weight[~zeros], others)
    assert torch.count_nonzero(norm.bias) > 0


def test_zero_weights_learn_where_they_need_not_stay() -> None:
    module = seeded()
    with torch.no_grad():
        module[0].weight[:, ::2] = 0
    train(classify(), module)
    assert torch.count_nonzero(module[0].weight) == module[0].weight.numel()


def test_a_seed_repeats_a_training() -> None:
    task = classify(train=shuffled)
    first, again, other = seeded(), seeded(), seeded()
    assert train(task, first, seed=5) == train(task, again, seed=5)
    train(task, other, seed=6)
    assert same(state(first), state(again))
    assert not same(state(first), state(other))


def test_a_batch_of_one_trains_through_batch_norm_without_spoiling_its_statistics() -> None:
    points, labels = clouds(33, 0)
    module = seeded()
    task = classify(train=in_batches(points[:1], labels[:1], 1))
    before = state(module)
    trained = trainer(task, epochs=1)(module, task.data("train"))
    after = state(module)
    assert trained.samples == 1
    assert torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert torch.equal(after["1.running_var"], before["1.running_var"])
    assert not torch.equal(after["0.weight"], before["0.weight"])
    # The 33rd sample is a batch of its own; the two full ones still move the statistics.
    task = classify(train=in_batches(points, labels))
    trainer(task, epochs=1)(module, task.data("train"))
    assert module[1].num_batches_tracked == 2


def test_frozen_parameters_stay() -> None:
    module = seeded()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    train(classify(), module)
    assert torch.equal(module[0].weight, before)


def test_a_module_without_parameters_to_train_is_refused() -> None:
    module = seeded().requires_grad_(False)
    with pytest.raises(PassError, match="no parameter that requires a gradient"):
        train(classify(), module)


def test_a_loss_that_is_not_finite_says_what_to_do() -> None:
    points, labels = clouds(64, 0)
    points[20] = np.nan
    with pytest.raises(PassError, match=r"loss became nan in epoch 1/4, batch 2.*smaller learning_rate"):
        train(classify(train=in_batches(points, labels)), seeded())


def test_an_infinite_gradient_is_found_before_it_reaches_the_weights() -> None:
    def steep(outputs: Any, labels: Any) -> torch.Tensor:
        return (outputs["output"] * 0).sqrt().sum()

    module = seeded()
    weights = module[0].weight.clone()
    with pytest.raises(PassError, match="norm of the gradient"):
        train(classify(loss=steep), module)
    assert torch.equal(module[0].weight, weights)


def test_an_empty_batch_is_refused() -> None:
    points, labels = clouds(4, 0)
    with pytest.raises(TaskError, match="at least one sample"):
        train(classify(train=[(points[:0], labels[:0])]), seeded())


def test_progress_rises_to_one() -> None:
    seen: list[tuple[str, float]] = []
    train(classify(), seeded(), epochs=2, progress=lambda text, share: seen.append((text, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5
    assert shares[-1] == 1
    assert seen[-1][0].startswith("epoch 2/2, loss ")


def test_sources_of_unknown_and_changing_length_train() -> None:
    walks = []

    def longer_each_time() -> Any:
        walks.append(0)
        return iter(in_batches(*clouds(16 * (len(walks) + 1), 0)))

    shares: list[float] = []
    task = classify(train=longer_each_time)
    trained = train(task, seeded(), progress=lambda text, share: shares.append(share))
    assert trained.samples == 16 * (3 + 4 + 5 + 6)
    assert max(shares) <= 1


def test_notes_without_validation_tell_the_training_loss() -> None:
    task = classify()
    trained = trainer(task)(seeded(), task.data("train"))
    notes = trained.to_notes()
    assert trained.validation == ()
    assert notes["best_epoch"] == 4
    assert notes["loss_on"] == "training"
    assert notes["loss_before"] == trained.losses[0] > notes["loss_after"] == trained.losses[-1]


def test_weight_decay_leaves_vectors_alone() -> None:
    module = nn.Linear(FEATURES, CLASSES)
    with torch.no_grad():
        module.bias.fill_(7.0)

    def flat(outputs: Any, labels: Any) -> torch.Tensor:
        return outputs["output"].sum() * 0

    before = module.weight.detach().abs().sum()
    task = classify(loss=flat)
    trainer(task, weight_decay=0.5)(module, task.data("train"))
    assert module.weight.detach().abs().sum() < before
    assert torch.equal(module.bias.detach(), torch.full((CLASSES,), 7.0))


@given(
    steps=st.integers(1, 500),
    peak=st.floats(1e-6, 1.0),
    warmup=st.floats(0, 0.9),
)
def test_the_rate_rises_to_its_peak_and_falls_to_nearly_nothing(steps: int, peak: float, warmup: float) -> None:
    training = Training(epochs=1, learning_rate=peak, warmup=warmup)
    rates = [training.rate(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(rate > 0 for rate in rates)
    assert training.rate(10 * steps + 10, steps) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "fields",
    [{"epochs": 0}, {"learning_rate": 0.0}, {"learning_rate": float("inf")}, {"warmup": 1.0}, {"clip_norm": 0.0}],
)
def test_settings_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Training(**{"epochs": 1, **fields})


def test_settings_survive_json() -> None:
    training = Training(epochs=3, learning_rate=0.5, keep_best=False)
    assert Training.from_json(training.to_json()) == training


def test_validation_that_is_never_finite_is_refused() -> None:
    points, labels = clouds(32, 2)
    with pytest.raises(PassError, match="loss on validation data was finite at no epoch"):
        train(classify(validate=in_batches(points * np.float32("nan"), labels)), seeded())


def test_a_start_that_is_not_finite_can_be_trained_from() -> None:
    module = seeded()
    with torch.no_grad():
        module[1].running_var.fill_(-1)
    module[1].momentum = 1.0
    trained = train(classify(), module)
    notes = trained.to_notes()
    assert notes["loss_before"] is None
    assert notes["loss_after"] < 1
    assert trained.best_epoch > 0


def test_read_only_and_reversed_arrays_train() -> None:
    points, labels = clouds(64, 0)
    points.flags.writeable = False
    labels.flags.writeable = False
    task = classify(train=[(points[:32], labels[:32]), (points[::-1][:32], labels[::-1][:32])])
    assert trainer(task, epochs=1)(seeded(), task.data("train")).samples == 64


def test_steps_ask_a_small_data_set_for_more_epochs_and_a_large_one_for_none() -> None:
    training = Training(epochs=3, steps=100)
    assert training.epochs_of(steps=10) == 10
    assert training.epochs_of(steps=33) == 4
    assert training.epochs_of(steps=1000) == 3


def test_a_function_is_called_before_each_step() -> None:
    task, module, seen = classify(), network(), []
    weights: list[torch.Tensor] = []

    def on_step(step: int, steps: int) -> None:
        seen.append((step, steps))
        weights.append(module[0].weight.detach().clone())

    first = module[0].weight.detach().clone()
    trainer(task, epochs=2)(module, task.data("train"), on_step=on_step)
    assert seen == [(step, 20) for step in range(20)]
    assert torch.equal(weights[0], first)
    assert not torch.equal(weights[1], first)


def test_weights_that_are_set_to_zero_on_the_way_stay_zero() -> None:
    task, module = classify(), network()

    def on_step(step: int, steps: int) -> None:
        with torch.no_grad():
            module[0].weight[: step + 1] = 0

    trainer(task, epochs=1)(module, task.data("train"), keep_zeros=True, on_step=on_step)
    assert torch.count_nonzero(module[0].weight[:10]) == 0
    assert torch.count_nonzero(module[0].weight[10:]) == module[0].weight[10:].numel()
