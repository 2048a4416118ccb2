"""The pass: what it trains, what it leaves, what it hands back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED, Model
from tauten.make.model.pass_ import Context
from tauten.make.passes.quantize import quantization_aware
from tauten.make.passes.quantize.quantization_aware import QuantizationAware
from tests.unit.train.problems import CLASSES, FEATURES, classify, clouds, in_batches, unlabelled


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)
    )


@pytest.fixture(scope="module")
def task() -> tauten.Task:
    return classify(model=network, epochs=6).fit(0)


def learn(task: tauten.Task, checkpoints: Path | None = None, progress: Any = None, **parameters: Any) -> Model:
    model = to_model(task)
    context = Context(task, model.module, checkpoints=checkpoints)
    if progress is not None:
        context = replace(context, progress=progress)
    return apply(QuantizationAware(**{"bits": 4, "epochs": 3, **parameters}), model, context)


def notes_of(model: Model) -> dict[str, Any]:
    return dict(model.history[-1].notes)


def grids(model: Model) -> dict[str, QuantizedLayer]:
    return {name: part for name, part in model.module.named_modules() if isinstance(part, QuantizedLayer)}


def distance(one: nn.Module, other: nn.Module) -> float:
    points = torch.as_tensor(clouds(200, 7)[0])
    with torch.no_grad():
        return float((one(points) - other(points)).square().mean())


def test_every_layer_comes_out_on_its_grid_with_the_range_of_its_input(task: tauten.Task) -> None:
    made = learn(task)
    found = grids(made)
    assert {name: layer.bits for name, layer in found.items()} == {"0": 8, "3": 4, "5": 8}
    assert notes_of(made)["layers"] == {"0": "int8", "3": "int4", "5": "int8"}
    assert notes_of(made)["folded"] == {"1": "0"}
    assert isinstance(made.module[1], nn.Identity)
    low, high = found["0"].input_range
    assert low < 0 < high
    assert found["3"].input_range[0] == 0  # after a ReLU
    assert all(layer.scale.shape == (len(layer.codes),) for layer in found.values())
    assert found["3"].codes.abs().max() <= 8
    assert {FLOAT_WEIGHTS, QUANTIZED} & made.facts == {QUANTIZED}
    plan = made.quantization
    assert (plan.method, plan.bits, plan.layers) == ("static", 4, {"0": "int8", "5": "int8"})


def test_training_brings_it_nearer_to_the_original(task: tauten.Task) -> None:
    made = learn(task, epochs=6)
    notes = notes_of(made)
    assert notes["kept"] == "trained"
    assert notes["loss_after"] < notes["loss_before"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization_aware.Judge, "prefers", lambda *given: False)
        rounded = learn(task, epochs=6)
    assert notes_of(rounded)["kept"] == "post_training"
    assert distance(made.module, task.build()) < distance(rounded.module, task.build())


def test_a_training_that_loses_is_thrown_away(task: tauten.Task) -> None:
    # The best epoch is chosen by what is trained for, which here is to be wrong.
    train, held_out = (
        [(points, (labels + 1) % CLASSES) for points, labels in in_batches(*clouds(*which))]
        for which in ((160, 0), (64, 2))
    )
    spoiled = replace(task, train=train, validate=held_out, metric="sqnr")
    made = learn(spoiled, epochs=4, distill=False, learning_rate=0.05)
    notes = notes_of(made)
    assert notes["best_epoch"] > 0
    assert notes["kept"] == "post_training"
    assert notes["scores"]["trained"] < notes["scores"]["post_training"]
    assert distance(made.module, task.build()) < 1


def test_a_training_that_changed_nothing_is_not_called_one(task: tauten.Task) -> None:
    notes = notes_of(learn(task, epochs=1, learning_rate=1e-12))
    assert notes["best_epoch"] == 0
    assert notes["kept"] == "post_training"


def test_it_learns_from_the_teacher_alone(task: tauten.Task) -> None:
    bare = classify(model=task.model, train=unlabelled(160, 0), calibrate=unlabelled(32, 1), validate=None)
    made = learn(bare)
    assert notes_of(made)["judged_on"] == "sqnr against the original on calibrate"
    assert notes_of(made)["loss_after"] <= notes_of(made)["loss_before"]
    with pytest.raises(PassError, match="no labels and distill is off"):
        learn(bare, distill=False)


def test_it_needs_training_data(task: tauten.Task) -> None:
    with pytest.raises(PassError, match="no train data"):
        learn(replace(task, train=None))


def test_a_training_that_ended_early_goes_on(task: tauten.Task, tmp_path: Path) -> None:
    def stop(what: str, share: float) -> None:
        if what.startswith("epoch 3/3"):
            raise KeyboardInterrupt

    expected = learn(task)
    with pytest.raises(KeyboardInterrupt):
        learn(task, tmp_path, stop)
    made = learn(task, tmp_path)
    assert notes_of(made)["resumed"] == 2
    assert all(
        torch.equal(value, expected.module.state_dict()[name]) for name, value in made.module.state_dict().items()
    )


def test_layers_have_the_precision_that_is_asked_for(task: tauten.Task) -> None:
    made = learn(task, layers=(("0", "int4"), ("3", "float32"), ("5", "int4")))
    assert {name: layer.bits for name, layer in grids(made).items()} == {"0": 4, "5": 4}
    assert made.quantization.layers == {"0": "int4", "3": "float32", "5": "int4"}
    assert isinstance(made.module[3], nn.Linear)


def test_layers_that_there_are_not_are_told(task: tauten.Task) -> None:
    with pytest.raises(PassError, match="those that can be are"):
        learn(task, layers=(("1", "int8"),))


class Several(nn.Module):
    """A table, an LSTM, attention, two layers that read one value, a weight at two places, one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(FEATURES, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.tied.weight
        self.idle = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.wide(x))[:, None]
        hidden = hidden + self.lstm(hidden)[0]
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        hidden = torch.tanh(self.left(hidden)) + self.right(hidden)
        hidden = self.again(torch.relu(self.tied(hidden)))
        out: torch.Tensor = self.head(hidden[:, 0])
        return out


def test_what_cannot_be_treated_stays_and_is_told() -> None:
    torch.manual_seed(0)
    task = classify(model=Several().eval())
    made = learn(task, epochs=1)
    notes = notes_of(made)
    assert list(notes["layers"]) == ["wide", "left", "right", "head"]
    assert set(notes["refused"]) == {"lstm", "attention", "tied", "again", "idle"}
    assert made.quantization.layers["lstm"] == made.quantization.layers["attention"] == "float32"
    left, right = made.module.left, made.module.right
    assert left.input_range == right.input_range
    assert left.input_range != made.module.wide.input_range


def test_a_single_layer_is_a_model() -> None:
    torch.manual_seed(0)
    made = learn(classify(model=nn.Linear(FEATURES, CLASSES)), epochs=1)
    assert isinstance(made.module, QuantizedLayer)
    assert notes_of(made)["layers"] == {"": "int8"}


def test_a_model_without_layers_is_refused() -> None:
    task = classify(model=nn.Sequential(nn.LayerNorm(FEATURES)))
    with pytest.raises(PassError, match="no layer that can learn"):
        learn(task)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"bits": 2}, "bits: expected 8 or 4"),
        ({"edges": 16}, "edges: expected 8 or 4"),
        ({"samples": 0}, "samples: expected 1 or more"),
        ({"layers": (("0", "int3"),)}, "layers: expected"),
        ({"layers": (("0", "int4"), ("0", "int8"))}, "layers: expected each path once"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        QuantizationAware(**parameters)


class Changed(nn.Module):
    """Batch norm behind an activation, which nothing can take over."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.head = nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.norm(torch.relu(self.wide(x))))
        return out


def test_norms_that_cannot_be_folded_stay() -> None:
    torch.manual_seed(0)
    made = learn(classify(model=Changed().eval()), epochs=1)
    assert "folded" not in notes_of(made)
    assert isinstance(made.module.norm, nn.BatchNorm1d)


def test_statistics_of_norms_are_kept_late_in_the_training() -> None:
    module = Changed().train()
    watcher = quantization_aware._Watcher(module, set())
    watcher(79, 100)
    assert module.norm.training
    watcher(80, 100)
    assert not module.norm.training
    assert module.training


def test_zeros_of_a_sparse_model_stay(task: tauten.Task) -> None:
    sparse = tauten.prune(task, "magnitude", ratio=0.5)
    context = Context(task, task.build())
    made = apply(QuantizationAware(bits=4, epochs=2, learning_rate=0.01), sparse, context)
    for name, layer in grids(made).items():
        weight = sparse.module.get_submodule(name).weight
        assert np.all(layer.codes.numpy()[weight.detach().numpy() == 0] == 0)
