"""Which layers get a grid: those whose weight they alone read; others are named with the reason."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import tauten
from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.model.apply import apply
from tauten.make.model.run import forward
from tauten.make.passes.quantize.dynamic import Dynamic
from tauten.make.passes.quantize.post_training import PostTraining
from tauten.make.passes.quantize.weight_only import WeightOnly

from .trained import begin, task_of

VECTORS = (tauten.TensorSpec(name="x", shape=("batch", 6)),)


def vectors(seed: int = 0, size: int = 32) -> list:
    draw = np.random.default_rng(seed)
    return [({"x": draw.standard_normal((size, 6)).astype(np.float32)}, None) for _ in range(2)]


class Own(nn.Linear):
    """A linear layer that does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Odd(nn.Module):
    """One layer of each kind that is left alone, and two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.twice, self.asked = (nn.Linear(6, 6) for _ in range(3))
        self.read, self.named, self.unused, self.one, self.other = (nn.Linear(6, 6) for _ in range(5))
        self.other.weight = self.one.weight
        self.own, self.hooked = Own(6, 6), nn.Linear(6, 6)
        self.hooked.register_forward_hook(lambda layer, given, answer: answer)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.zeros = nn.Linear(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.table, self.small = nn.Embedding(80, 6), nn.Embedding(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.plain(x)) * 3)
        x = nn.functional.linear(x, self.read.weight) + self.read(x) + self.named(input=x)
        x = self.own(self.hooked(self.other(self.one(x)))) + self.zeros(x * 0)
        x = self.asked(x.to(self.asked.weight.dtype)) + self.computed(x)
        places = torch.arange(4, device=x.device)
        tokens = x[:, None] + self.table(places) + self.small(places)
        tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.lstm(tokens)[0][:, -1]


def odd() -> tauten.Task:
    torch.manual_seed(0)
    return task_of(Odd(), VECTORS, vectors())


REFUSED = {
    "read": "other code reads its weight directly",
    "named": "it is called with arguments by name",
    "unused": "calibration data never calls it",
    "one": "its weight is shared with another layer",
    "other": "its weight is shared with another layer",
    "own": "Own computes in a way of its own",
    "hooked": "it has hooks",
    "computed": "its weight is computed at each call",
    "attention": "MultiheadAttention is one operation of the engine's graph",
    "lstm": "LSTM is one operation of the engine's graph",
    "small": "a table of 8 rows, which is small in float",
}


def test_layers_that_others_reach_into_are_left_and_named() -> None:
    made = tauten.quantize(odd())
    notes = made.history[-1].notes
    assert notes["refused"] == {**REFUSED, "zeros": "calibration data gives it nothing but zeros"}
    assert sorted(notes["layers"]) == ["asked", "plain", "table", "twice"]
    grids = {name for name, part in made.module.named_modules() if isinstance(part, QuantizedLayer)}
    assert grids == set(notes["layers"])
    assert made.module.table.input_range is None


def test_a_layer_that_is_called_twice_has_one_range_over_both_calls() -> None:
    task = odd()
    made = tauten.quantize(task)
    x = torch.from_numpy(np.concatenate([inputs["x"] for inputs, _ in task.calibrate]))
    with torch.no_grad():
        first = task.model.plain(x)
        second = task.model.twice(first) * 3
    low, high = made.module.twice.input_range
    both = torch.stack([first, second])
    assert np.allclose([low, high], [both.min(), both.max()])


def test_one_layer_under_two_names_stays_one() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.again = nn.Sequential(self.first)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.first(x))

    made = tauten.quantize(task_of(Both(), VECTORS, vectors()))
    assert made.module.first is made.module.again[0]
    assert isinstance(made.module.first, QuantizedLayer)


def test_a_model_that_is_one_layer_is_treated() -> None:
    made = tauten.quantize(task_of(nn.Linear(6, 3), VECTORS, vectors()))
    assert isinstance(made.module, QuantizedLayer)
    assert made.history[-1].notes["layers"] == {"": "int8, a scale a channel, nearest"}


def test_layers_inside_pytorchs_encoder_compute_on_their_grids() -> None:
    """Its fused kernel would read the weights past the layers."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    spec = tauten.TensorSpec(name="x", shape=("batch", 5, 8))
    data = [({"x": np.random.default_rng(0).standard_normal((16, 5, 8)).astype(np.float32)}, None)]
    task = task_of(encoder, (spec,), data)
    made = tauten.quantize(task)
    layers = {name: part for name, part in made.module.named_modules() if isinstance(part, QuantizedLayer)}
    assert sorted(layers) == [f"layers.{number}.linear{which}" for number in (0, 1) for which in (1, 2)]
    called: list[str] = []
    plain = forward(made.module, made.inputs, made.outputs, data[0][0])["output"]
    handles = [layer.register_forward_hook(lambda *_, name=name: called.append(name)) for name, layer in layers.items()]
    hooked = forward(made.module, made.inputs, made.outputs, data[0][0])["output"]
    for handle in handles:
        handle.remove()
    assert len(called) == 4
    assert np.array_equal(plain, hooked)


def test_dynamic_and_weight_only_need_no_ranges() -> None:
    model, context = begin(odd())
    for step, kinds in ((Dynamic(), (nn.Linear, nn.Embedding)), (WeightOnly(bits=8), (nn.Linear, nn.Embedding))):
        made = apply(step, model, context)
        grids = {name: part for name, part in made.module.named_modules() if isinstance(part, QuantizedLayer)}
        assert sorted(grids) == ["asked", "plain", "table", "twice", "zeros"]
        assert all(isinstance(part.layer, kinds) and part.input_range is None for part in grids.values())


def test_weights_that_are_not_finite_are_left() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    with torch.no_grad():
        module[0].weight[0, 0] = -torch.inf
    model, context = begin(task_of(module, VECTORS, vectors()))
    made = apply(PostTraining(), model, context)
    assert "finite" in made.history[-1].notes["refused"]["0"]
    assert "1" in made.history[-1].notes["refused"] or isinstance(made.module[1], QuantizedLayer)


def test_code_around_a_layer_may_ask_what_the_layer_has() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, stride=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.pad(x, (0, self.conv.stride[0] - 1) * 2)
            return self.conv(x).mean((2, 3)) * self.conv.weight.shape[0]

    made = tauten.quantize(task_of(Padded()))
    assert isinstance(made.module.conv, QuantizedLayer)
    assert made.module.conv.kernel_size == (3, 3)
    assert not hasattr(made.module.conv, "no_such_thing")
