"""What is done before rounding keeps the answers, and helps."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.make.layers.quantized import QuantizedLayer
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._equalize import equalize
from tauten.make.passes.quantize._fold import fold_batch_norms
from tauten.make.passes.quantize._smooth import smooth
from tauten.testing.tiny import encoder_task, residual_task, vision_transformer_task

from .trained import begin, task_of, trained, unseen_error


def treated(what, task, *parameters) -> tuple[nn.Module, nn.Module, dict]:
    """The module, what became of it, and notes; answers are held against each other."""
    model, context = begin(task)
    module, notes = what(model, Data(model, context, 64), *parameters)
    inputs = [torch.from_numpy(task.calibrate[0][0][spec.name]) for spec in model.inputs]
    with torch.no_grad():
        wanted, came = model.module(*inputs), module(*inputs)
    assert torch.allclose(wanted, came, atol=2e-5 * float(wanted.abs().max()))
    return model.module, module, notes


class Norms(nn.Module):
    """Batch norms after all kinds of layers, and two that cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up, self.norm2 = nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d(6, affine=False)
        self.read_twice, self.norm3 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.used_twice, self.norm4 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.head, self.norm5 = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm2(self.up(torch.relu(self.norm1(self.first(x)))))
        y = self.read_twice(x)
        y = y + self.norm3(y)
        y = self.norm4(self.used_twice(self.norm4(self.used_twice(y))))
        return self.norm5(self.head(y.mean((2, 3))))


def with_statistics(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 3)
            if part.affine:
                part.weight.data.normal_()
                part.bias.data.normal_()
    return module


def test_batch_norms_are_folded_where_they_alone_read_a_layer() -> None:
    torch.manual_seed(0)
    _, folded, notes = treated(fold_batch_norms, task_of(with_statistics(Norms())))
    assert notes["folded"] == {"norm1": "first", "norm2": "up", "norm5": "head"}
    assert isinstance(folded.norm1, nn.Identity)
    assert isinstance(folded.norm3, nn.BatchNorm2d)
    assert folded.first.bias is not None


def test_batch_norms_of_residual_blocks_are_folded() -> None:
    _, folded, notes = treated(fold_batch_norms, residual_task())
    assert len(notes["folded"]) == 6
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())


def test_a_layer_before_a_batch_norm_that_is_not_folded_is_left_to_the_engine() -> None:
    made = tauten.quantize(task_of(trained()), fold=False)
    assert made.history[-1].notes["refused"] == dict.fromkeys("04", "a batch norm follows, which engines fold into it")
    assert [isinstance(made.module[place], QuantizedLayer) for place in (0, 4, 8)] == [False, False, True]


class Unequal(nn.Module):
    """Layers that ReLU and pooling alone connect, with channels far apart in size, and some connected otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.deep, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)
        self.c, self.d = nn.Conv2d(8, 4, 1), nn.Linear(16, 6)
        self.e, self.f = nn.Linear(6, 6), nn.Linear(6, 3)
        with torch.no_grad():
            sizes = torch.logspace(-2, 2, 8).reshape(-1, 1, 1, 1)
            self.a.weight.mul_(sizes)
            self.a.bias.mul_(sizes.flatten())
            self.deep.weight.div_(sizes)
            self.a.weight[3] = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.a(x))))
        x = nn.functional.relu6(self.b(x))
        x = nn.functional.max_pool2d(torch.relu(self.c(x)), 2).flatten(1)
        return self.f(torch.sigmoid(self.e(torch.relu(self.d(x)))))


def test_scales_move_only_through_what_passes_them_on() -> None:
    torch.manual_seed(0)
    before, after, notes = treated(equalize, task_of(Unequal()))
    # After b comes a ReLU that ends at 6, after e a sigmoid: these keep their scales.
    assert notes["equalized"] == [["a", "deep"], ["deep", "b"], ["c", "d"], ["d", "e"]]

    def spread(layer: nn.Module) -> float:
        sizes = layer.weight.detach().abs().flatten(1).amax(1)
        return float(sizes.max() / sizes[sizes > 0].min())

    assert spread(after.a) < 0.01 * spread(before.a)
    assert torch.equal(after.f.weight, before.f.weight)


def test_equal_channels_serve_one_scale_for_all() -> None:
    module = copy.deepcopy(trained())
    sizes = torch.logspace(-2, 2, 32)
    with torch.no_grad():
        module[8].weight.mul_(sizes[:, None])
        module[8].bias.mul_(sizes)
        module[10].weight.div_(sizes)
    plain, equal = (
        unseen_error(module, tauten.quantize(task_of(module), granularity="tensor", equalize=way).module)
        for way in (False, True)
    )
    assert equal < 0.1 * plain


class Outliers(nn.Module):
    """A norm that makes a few features far larger than all others, before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 32)
        self.norm, self.read, self.also = nn.LayerNorm(32), nn.Linear(32, 16), nn.Linear(32, 16)
        self.head = nn.Linear(16, 4)
        with torch.no_grad():
            self.norm.weight[:2] *= 400

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.inner(x))
        return self.head(torch.tanh(self.read(x) * 0.01) + self.also(x) * 0.01)


def test_smoothed_activations_lose_less() -> None:
    torch.manual_seed(0)
    task = task_of(
        Outliers(),
        (tauten.TensorSpec(name="x", shape=("batch", 8)),),
        [({"x": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}, None)],
    )
    before, after, notes = treated(smooth, task, 0.5)
    assert notes["smoothed"] == {"norm": ["read.weight", "also.weight"]}
    assert not torch.equal(before.norm.weight, after.norm.weight)
    made = [tauten.quantize(task, smooth=alpha, correct_bias=False) for alpha in (0.0, 0.5)]
    found = [model.history[-1].notes["sqnr_db"]["output"] for model in made]
    assert found[1] > found[0] + 4


def test_norms_before_attention_are_smoothed_and_those_in_a_residual_stream_are_not() -> None:
    _, _, notes = treated(smooth, vision_transformer_task(), 0.5)
    assert len(notes["smoothed"]) == 4
    _, _, notes = treated(smooth, encoder_task(), 0.5)
    assert notes["smoothed"] == {}


class Stream(nn.Module):
    """A norm in a residual stream, as BERT has them: two linear layers and the sum after them read it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.norm.weight[:2] *= 200
            self.one.weight[:, :2] /= 200
            self.two.weight[:, :2] /= 200

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.norm(x)
        return torch.tanh(self.one(stream)) * self.two(stream) + stream * 1e-6


def test_layers_in_a_residual_stream_scale_their_input_themselves_by_one_scale() -> None:
    torch.manual_seed(0)
    task = task_of(
        Stream(),
        (tauten.TensorSpec(name="x", shape=("batch", 16)),),
        [({"x": np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)}, None)],
    )
    before, after, notes = treated(smooth, task, 0.5)
    assert notes == {"smoothed": {}, "scaled": ["one", "two"]}
    assert torch.equal(before.norm.weight, after.norm.weight)
    assert torch.equal(after.one.factor, after.two.factor)
    made = [tauten.quantize(task, smooth=alpha, correct_bias=False) for alpha in (0.0, 0.5)]
    found = [model.history[-1].notes["sqnr_db"]["output"] for model in made]
    assert found[1] > found[0] + 6


class Unexportable(nn.Module):
    """A module that no program can be made of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) > 1e9:
            x = x + 1
        return self.norm(self.layer(x)).mean((2, 3))


@pytest.mark.parametrize("what", [(fold_batch_norms,), (equalize,), (smooth, 0.5)], ids=["fold", "equalize", "smooth"])
def test_a_module_that_cannot_be_exported_is_left_alone(what) -> None:
    before, after, notes = treated(what[0], task_of(Unexportable()), *what[1:])
    assert after is before
    assert "torch.export" in next(iter(notes.values()))
