"""N:M sparsity: how many of each block, which of them, along which dimension, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.errors import PassError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.task import Task
from tauten.make.passes.prune._pattern import Pattern, fit_pattern
from tauten.make.passes.prune.magnitude import Magnitude


def masks(module: nn.Module, pattern: Pattern) -> dict[str, torch.Tensor]:
    found, _ = fit_pattern(module, {n: p for n, p in module.named_parameters() if p.ndim >= 2}, pattern)
    return found


def held(blocks: torch.Tensor, gone: torch.Tensor, pattern: Pattern) -> None:
    """``(…, block)``: exactly so many go of each block, and none of them is larger than one that stays."""
    assert (gone.sum(-1) == pattern.block - pattern.keep).all()
    largest_gone = blocks.abs().masked_fill(~gone, -1).amax(-1)
    smallest_kept = blocks.abs().masked_fill(gone, float("inf")).amin(-1)
    assert (largest_gone <= smallest_kept).all()


@given(st.integers(2, 8).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))), st.data())
def test_of_each_block_the_largest_stay(sizes: tuple[int, int], data: st.DataObject) -> None:
    pattern = Pattern(*sizes)
    outputs, blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    layer = nn.Linear(blocks * pattern.block, outputs)
    numbers = st.floats(-4, 4, width=16)
    count = layer.weight.numel()
    with torch.no_grad():
        layer.weight.copy_(
            torch.tensor(data.draw(st.lists(numbers, min_size=count, max_size=count))).reshape(outputs, -1)
        )
    gone = masks(layer, pattern)["weight"]
    held(layer.weight.detach().reshape(outputs, blocks, -1), gone.reshape(outputs, blocks, -1), pattern)


@pytest.mark.parametrize(
    ("layer", "order"),
    [
        (nn.Conv2d(8, 5, 3), (0, 2, 3, 1)),
        (nn.Conv2d(16, 6, (3, 2), groups=2), (0, 2, 3, 1)),
        (nn.Conv1d(8, 5, 3), (0, 2, 1)),
        (nn.Conv3d(4, 5, 2), (0, 2, 3, 4, 1)),
        (nn.ConvTranspose2d(8, 5, 3), (1, 2, 3, 0)),
        (nn.ConvTranspose1d(16, 6, 3, groups=2), (1, 2, 0)),
    ],
)
def test_a_convolutions_blocks_are_input_channels_at_one_position(layer: nn.Module, order: tuple[int, ...]) -> None:
    pattern = Pattern(2, 4)
    gone = masks(layer, pattern)["weight"]
    weight = layer.weight.detach()
    held(weight.permute(order).unflatten(-1, (-1, 4)), gone.permute(order).unflatten(-1, (-1, 4)), pattern)


def test_a_block_holds_what_one_output_sums() -> None:
    """Set to one at a time, the inputs of a block all reach the output to which the block belongs."""
    layer = nn.Conv2d(8, 1, 3, bias=False)
    gone = masks(layer, Pattern(2, 4))["weight"]
    with torch.no_grad():
        layer.weight.masked_fill_(gone, 0)
    for position in range(9):
        for block in range(2):
            live = 0
            for channel in range(4 * block, 4 * block + 4):
                picture = torch.zeros(1, 8, 9)
                picture[0, channel, position] = 1
                live += int(layer(picture.reshape(1, 8, 3, 3)).abs().sum() > 0)
            assert live == 2


def test_a_large_weight_is_taken_in_parts() -> None:
    layer = nn.Linear(2048, 1500, bias=False)
    gone = masks(layer, Pattern(4, 8))["weight"]
    held(layer.weight.detach().unflatten(-1, (-1, 8)), gone.unflatten(-1, (-1, 8)), Pattern(4, 8))


class Transposed(nn.Module):
    """A linear layer that keeps its weight as (in, out), as GPT-2's does."""

    def __init__(self) -> None:
        super().__init__()
        self.nf = 5
        self.weight = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


Transposed.__name__ = "Conv1D"


def test_a_weight_that_is_kept_transposed() -> None:
    layer = Transposed()
    gone = masks(layer, Pattern(2, 4))["weight"]
    held(layer.weight.detach().T.unflatten(-1, (-1, 4)), gone.T.unflatten(-1, (-1, 4)), Pattern(2, 4))


def prune(module: nn.Module, width: int, step: Magnitude) -> Model:
    task = Task(
        model=module,
        inputs=(TensorSpec(name="input", shape=("batch", width)),),
        calibrate=[np.ones((2, width), dtype="float32")],
    )
    model = to_model(task)
    return apply(step, model, Context(task=task, reference=model.module))


def test_layers_that_do_not_fit_are_left_and_named() -> None:
    module = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 2))
    before = copy.deepcopy(module)
    model = prune(module, 8, Magnitude(pattern="2:4"))
    notes = model.history[0].notes
    assert notes["refused"] == {"2.weight": "has 6 inputs at a position, which is no multiple of 4"}
    assert notes["layers"] == {"0.weight": 0.5, "2.weight": 0.0, "3.weight": 0.5}
    assert notes["sparsity"] == 32 / 112
    assert torch.equal(model.module[2].weight, before[2].weight)


def test_the_patterns_ratio_may_be_said() -> None:
    step = Magnitude(pattern="1:4", ratio=0.75)
    assert prune(nn.Linear(8, 4), 8, step).history[0].notes["sparsity"] == 0.75


def test_depthwise_convolutions_and_tables_are_refused() -> None:
    tied = nn.Linear(8, 10, bias=False)
    module = nn.ModuleDict(
        {"depth": nn.Conv2d(8, 8, 3, groups=8), "table": nn.Embedding(10, 8), "tied": nn.Embedding(10, 8), "out": tied}
    )
    tied.weight = module["tied"].weight
    weights = {name: tensor for name, tensor in module.named_parameters() if tensor.ndim >= 2}
    found, refused = fit_pattern(module, weights, Pattern(2, 4))
    assert set(found) == {"tied.weight"}
    assert refused["depth.weight"].startswith("has 1 inputs")
    assert refused["table.weight"] == "is looked up, not summed over"


def test_a_pattern_that_fits_nothing() -> None:
    with pytest.raises(PassError, match="2:4 fits no layer"):
        prune(nn.Linear(6, 6), 6, Magnitude(pattern="2:4"))
