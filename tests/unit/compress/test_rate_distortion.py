"""Rounding after training: exact grids, error against bits, and what calibration data adds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tauten.codecs import CODECS
from tauten.core.tensor import TensorSpec
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes import PASSES
from tauten.make.passes.compress._feedback import Factor, Rule, factor, round_columns, round_diagonals
from tauten.make.passes.compress._steps import short_step
from tauten.make.passes.compress._symbols import read_symbols
from tauten.testing.tiny import encoder_task, residual_task

RateDistortion = PASSES.get("compress.rate_distortion")


def rounded(task, **parameters):
    model = to_model(task)
    return model, apply(RateDistortion(**parameters), model, Context(task, build(task), seed=0))


def error(task, model, made) -> float:
    """The squared error of the first output over its squared size, on calibration data."""
    off = power = 0.0
    for inputs, _ in task.data("calibrate"):
        one, other = (
            next(iter(forward(each.module, each.inputs, each.outputs, inputs).values())) for each in (model, made)
        )
        off += float(np.square(one - other).sum())
        power += float(np.square(one).sum())
    return off / power


def on_grid(row: torch.Tensor) -> bool:
    """Whether numbers are whole multiples, up to 4095, of one step of 12 bits."""
    held = row[row != 0].abs().double()
    if not len(held):
        return True
    for parts in range(1, 4096):
        step = float(held.min()) / parts
        if short_step(step) == step and bool((held / step == (held / step).round()).all()):
            return float(held.max()) / step < 4096
    return False


def curve(size: int, seed: int) -> torch.Tensor:
    draw = torch.randn((4 * size, size), generator=torch.Generator().manual_seed(seed))
    draw = draw @ torch.diag(torch.linspace(0.2, 2, size)) + draw.mean(1, keepdim=True) * 3
    return draw.T @ draw / len(draw)


def loss(matrix, levels, steps, inputs, outputs) -> float:
    off = (matrix - levels * steps[:, None]).double()
    return float(torch.trace(outputs.double() @ off @ inputs.double() @ off.T))


@pytest.fixture(scope="module")
def small():
    """A task, its model, and that model in 2,500 bytes."""
    task = encoder_task()
    return task, *rounded(task, bytes=2500)


def test_every_row_is_whole_multiples_of_a_short_step(small) -> None:
    for name, parameter in small[2].module.named_parameters():
        rows = parameter.detach().reshape(len(parameter), -1) if parameter.ndim > 1 else parameter.detach()[None]
        assert all(on_grid(row) for row in rows), name


def test_the_bytes_that_were_asked_for_are_not_exceeded_and_nearly_used(small) -> None:
    _, _, made = small
    arrays = {name: parameter.detach().numpy() for name, parameter in made.module.named_parameters()}
    assert made.history[-1].notes["bytes"] == len(CODECS.get("arithmetic").encode(arrays))
    assert 2400 < made.history[-1].notes["bytes"] <= 2500


def test_data_and_feedback_spare_error_of_plain_rounding_for_the_same_bits(small) -> None:
    task, model, made = small
    notes = made.history[-1].notes
    bits = sum(notes["bits"][name] * p.numel() for name, p in made.module.named_parameters() if p.ndim > 1)
    plain = copy.deepcopy(model.module)
    low, high = 1e-3, 10.0
    for _ in range(30):
        share = (low * high) ** 0.5
        found = 0.0
        for one, other in zip(plain.parameters(), model.module.parameters(), strict=True):
            if other.ndim > 1:
                steps = other.detach().square().mean(1, keepdim=True).sqrt() * share
                levels = (other.detach() / steps).round()
                one.data = levels * steps
                found += read_symbols(levels).total(levels)
        low, high = (share, high) if found > bits else (low, share)
    assert error(task, model, made) < 0.7 * error(task, model, model.but(module=plain))


def test_rounding_in_diagonals_is_the_nearest_plane() -> None:
    """Against numbers taken one by one, with what is free after each solved anew."""
    draw = torch.Generator().manual_seed(3)
    matrix = torch.randn((4, 5), generator=draw)
    inputs, outputs = curve(5, 1), curve(4, 2)
    steps = torch.full((4,), 0.5)
    rule = Rule(steps)
    found = round_diagonals(matrix, factor(inputs, 0.0), factor(outputs, 0.0), rule)
    whole = torch.kron(inputs.double(), outputs.double())  # column by column
    want = matrix.double().T.reshape(-1)
    value = want.clone()
    for at in range(len(want)):
        value[at] = (value[at] / 0.5).round() * 0.5
        if at + 1 < len(want):
            past = want[: at + 1] - value[: at + 1]
            ahead = torch.linalg.solve(whole[at + 1 :, at + 1 :], whole[at + 1 :, : at + 1] @ past)
            value[at + 1 :] = want[at + 1 :] + ahead
    assert torch.equal(found.double() * 0.5, value.reshape(5, 4).T)


def test_feedback_along_rows_and_columns_loses_less_than_rounding_to_the_nearest() -> None:
    matrix = torch.randn((24, 32), generator=torch.Generator().manual_seed(0))
    inputs, outputs = curve(32, 1), curve(24, 2)
    steps = torch.full((24,), 0.5)
    rule = Rule(steps)
    nearest = loss(matrix, (matrix / 0.5).round(), steps, inputs, outputs)
    columns = round_columns(matrix, factor(inputs, 0.0), outputs.diagonal(), rule)
    both = round_diagonals(matrix, factor(inputs, 0.0), factor(outputs, 0.0), rule)
    assert loss(matrix, columns, steps, inputs, outputs) < 0.8 * nearest
    assert loss(matrix, both, steps, inputs, outputs) < 0.8 * loss(matrix, columns, steps, inputs, outputs)


def test_a_slope_buys_bits_with_error() -> None:
    matrix = torch.randn((64, 64), generator=torch.Generator().manual_seed(0))
    steps, even = torch.full((64,), 0.7), Factor(torch.ones(64))
    plain = round_columns(matrix, even, torch.ones(64), Rule(steps))
    rule = Rule(steps, 0.15 * 0.7**2, read_symbols(plain))
    cheap = round_columns(matrix, even, torch.ones(64), rule)
    gain = read_symbols(plain).total(plain) - read_symbols(cheap).total(cheap)
    assert gain > 0.03 * read_symbols(plain).total(plain)
    more = (matrix - cheap * 0.7).square().sum() - (matrix - plain * 0.7).square().sum()
    assert 0 < more < rule.slope * gain * 1.5


def test_zeros_stay() -> None:
    task = encoder_task()
    module = build(task)
    with torch.no_grad():
        module.wide.weight[::2] = 0
    task = Task(model=module, inputs=task.inputs, calibrate=[inputs for inputs, _ in task.data("calibrate")])
    _, made = rounded(task, step=0.003)
    assert not made.module.wide.weight[::2].any()


class Shared(nn.Module):
    """An embedding that is the head as well, an LSTM, a grouped convolution, and a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 16)
        self.first = nn.Parameter(torch.randn(1, 1, 16))
        self.memory = nn.LSTM(16, 16, batch_first=True)
        self.mix = nn.Conv1d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Linear(16, 50, bias=False)
        self.unused = nn.Linear(4, 4)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, _ = self.memory(self.tokens(ids) + self.first)
        return self.head(self.mix(x.transpose(1, 2)).transpose(1, 2))


def test_tied_grouped_recurrent_and_unused_weights() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (16, 6)).numpy()
    specs = (TensorSpec(name="ids", shape=("batch", 6), dtype="int64"),)
    task = Task(model=Shared().eval(), inputs=specs, calibrate=[{"ids": ids}], metric="sqnr")
    model, made = rounded(task, step=0.003)
    assert made.module.head.weight is made.module.tokens.weight
    assert error(task, model, made) < 0.02
    for parameter in made.module.parameters():
        rows = parameter.detach().reshape(len(parameter), -1) if parameter.ndim > 1 else parameter.detach()[None]
        assert all(on_grid(row) for row in rows)


class Scaled(nn.Module):
    """A number that is no array, and an array that holds no number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(0, 7))
        self.layer = nn.Linear(20, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale + self.nothing.sum()


def test_parameters_without_dimensions_or_numbers() -> None:
    torch.manual_seed(0)
    data = [{"x": torch.randn(32, 20).numpy()}]
    specs = (TensorSpec(name="x", shape=("batch", 20)),)
    task = Task(model=Scaled().eval(), inputs=specs, calibrate=data, metric="sqnr")
    model, made = rounded(task, step=0.003)
    assert made.history[-1].notes["refused"] == {"nothing": "it is empty"}
    assert made.module.scale.shape == ()
    assert abs(made.module.scale.item() - 1.5) < 0.1
    assert error(task, model, made) < 0.02


def test_answers_without_gradients_are_told_and_still_rounded() -> None:
    task = encoder_task()

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build(task)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.inner(ids, mask).detach()

    silent = Task(model=Silent(), inputs=task.inputs, calibrate=[inputs for inputs, _ in task.data("calibrate")])
    model, made = rounded(silent, step=0.1)
    assert "gradient" in made.history[-1].notes["without_curvature"]
    assert error(silent, model, made) < 0.05


def test_biases_give_layers_their_means_back() -> None:
    task = encoder_task()
    model, made = rounded(task, step=0.03)
    assert len(made.history[-1].notes["bias_corrected"]) == 6
    _, plain = rounded(task, step=0.03, correct_bias=False)
    assert not plain.history[-1].notes["bias_corrected"]
    assert error(task, model, made) < error(task, model, plain)


def test_batch_norms_are_folded_first_as_engines_would() -> None:
    task = residual_task()
    model, made = rounded(task, step=0.003)
    assert len(made.history[-1].notes["folded"]) == 6
    assert error(task, model, made) < 0.02


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(PassError, match="expected at most 10 bytes"):
        rounded(encoder_task(), bytes=10)


@pytest.mark.parametrize(("number", "why"), [(1e20, "squares"), (float("nan"), "not finite")])
def test_numbers_that_cannot_be_weighed_are_left_as_they_are(number: float, why: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        module[2].weight[0, 0] = number
    specs = (TensorSpec(name="x", shape=("batch", 4)),)
    _, made = rounded(Task(model=module, inputs=specs, calibrate=[np.ones((2, 4), np.float32)]), step=0.1)
    assert list(made.history[-1].notes["refused"]) == ["2.weight"]
    assert why in made.history[-1].notes["refused"]["2.weight"]


def test_a_model_without_weights_is_refused() -> None:
    specs = (TensorSpec(name="x", shape=("batch", 4)),)
    task = Task(model=nn.ReLU(), inputs=specs, calibrate=[np.ones((2, 4), np.float32)])
    with pytest.raises(PassError, match="two dimensions"):
        rounded(task)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"share": 0}, "share"),
        ({"bytes": -1}, "bytes"),
        ({"step": float("inf")}, "step"),
        ({"step": 1.0, "bytes": 5}, "bytes or step"),
        ({"samples": 0}, "samples"),
        ({"rare": 0}, "rare"),
    ],
)
def test_parameters_that_do_not_fit(parameters, told) -> None:
    with pytest.raises(RecipeError, match=told):
        RateDistortion(**parameters)
