from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tauten.errors import TaskError
from tauten.make.model.fit import fit
from tests.unit.train.problems import FEATURES, classify, clouds, in_batches, network, unlabelled


def test_fit_gives_a_task_with_a_trained_model() -> None:
    task = classify(epochs=6)
    fitted = task.fit(seed=1)
    assert fitted.epochs == 0
    assert fitted.fit() is fitted
    points, labels = clouds(64, 2)
    found = fitted.build()(torch.as_tensor(points)).argmax(1)
    assert (found.numpy() == labels).mean() > 0.9


def test_fit_repeats_with_a_seed_from_building_on() -> None:
    task = classify(epochs=1)
    first, again, other = task.fit(3).build(), task.fit(3).build(), task.fit(4).build()
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_a_module_that_the_user_holds_is_left_alone() -> None:
    module = network()
    before = module[0].weight.clone()
    fitted = classify(model=module, epochs=1).fit()
    assert torch.equal(module[0].weight, before)
    assert not torch.equal(fitted.build()[0].weight, before)


def test_a_trained_task_is_given_back() -> None:
    task = classify(epochs=0)
    assert task.fit() is task


def test_validation_without_labels_is_not_used() -> None:
    fitted = classify(epochs=1, validate=unlabelled(32, 2)).fit()
    assert fitted.epochs == 0


def test_training_data_without_labels_is_refused() -> None:
    with pytest.raises(TaskError, match="inputs without labels"):
        classify(epochs=1, train=unlabelled(32, 0)).fit()


def test_a_model_that_does_not_train_is_named() -> None:
    with pytest.raises(TaskError, match="the model does not train: RuntimeError"):
        classify(epochs=1, model=lambda: nn.Linear(FEATURES + 1, 3)).fit()


def test_a_diverging_fit_is_the_tasks_fault() -> None:
    points, labels = clouds(32, 0)
    with pytest.raises(TaskError, match="fit: training: the loss became"):
        classify(epochs=1, train=in_batches(points * float("inf"), labels)).fit()


def test_progress_is_told() -> None:
    shares: list[float] = []
    fit(classify(epochs=1), progress=lambda text, share: shares.append(share))
    assert shares[-1] == 1


def test_a_fit_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    told: list[str] = []

    def stop(text: str, share: float) -> None:
        if text.startswith("epoch 3"):
            raise KeyboardInterrupt

    expected = classify(epochs=4).fit(1).build()
    with pytest.raises(KeyboardInterrupt):
        fit(classify(epochs=4), 1, stop, tmp_path)
    came = fit(classify(epochs=4), 1, lambda text, share: told.append(text[:7]), tmp_path).build()
    assert told[0] == "epoch 3"
    assert torch.equal(came[0].weight, expected[0].weight)
