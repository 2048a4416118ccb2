"""Each operation between two convolutions: what goes together, and that the smaller module answers as masked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import TensorSpec
from tauten.make.graph.groups import Removal
from tauten.make.graph.rules import RULES
from tauten.make.graph.trace import Call as Operation
from tauten.make.graph.trace import Trace
from tauten.make.graph.value import Axis, Value, opaque
from tests.unit.graph import nets
from tests.unit.graph.nets import Recurrent, Shuffle
from tests.unit.graph.reference import assert_alike


class Between(nn.Module):
    """A convolution, something, and a linear layer that reads the mean over space of what comes."""

    def __init__(self, between: nn.Module | Callable[[torch.Tensor], torch.Tensor], out: int = 12) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 12, 1)
        self.between = between if isinstance(between, nn.Module) else Call(between)
        self.two, self.head = nn.Conv2d(out, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.two(self.between(self.one(x)))).mean((2, 3)))


class Call(nn.Module):
    def __init__(self, call: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


class Cells(nn.Module):
    """Each row of the image a step."""

    def __init__(self, lstm: bool) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(12, 12) if lstm else nn.GRUCell(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for step in x.mean(3).unbind(2):
            state = self.cell(step, state)
        return (state[0] if isinstance(state, tuple) else state)[:, :, None, None]


def _pads_channels(x: torch.Tensor) -> torch.Tensor:
    return functional.pad(x, (0, 0, 0, 0, 2, 2))


def _picks(x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2).mT
    best = tokens.mean(0, keepdim=True).sum(2, keepdim=True).argsort(1)[:, :5] * 0 + 3
    return torch.gather(tokens, 1, best.expand(tokens.shape[0], -1, tokens.shape[2])).mT[..., None]


# What stands between, how many units the first convolution has, and how many channels come out.
BETWEEN: dict[str, tuple[Callable[[], nn.Module | Callable[[torch.Tensor], torch.Tensor]], int, int]] = {
    "instance_norm": (lambda: nn.InstanceNorm2d(12), 12, 12),
    "instance_norm_affine": (lambda: nn.InstanceNorm2d(12, affine=True, track_running_stats=True), 12, 12),
    "group_norm_whole": (lambda: nn.GroupNorm(4, 12), 4, 12),
    "group_norm_positions": (lambda: nn.GroupNorm(2, 12), 6, 12),
    "group_norm_one": (lambda: nn.GroupNorm(1, 12), 12, 12),
    "group_norm_plain": (lambda: nn.Sequential(nn.Sigmoid(), nn.GroupNorm(2, 12, affine=False)), 6, 12),
    "group_norms": (lambda: nn.Sequential(nn.GroupNorm(6, 12), nn.ReLU(), nn.GroupNorm(3, 12)), 2, 12),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), 3, 3),
    "pixel_unshuffle": (lambda: nn.PixelUnshuffle(2), 12, 48),
    "pixel_shuffle_written_out": (
        lambda: lambda x: x.view(x.shape[0], -1, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(x.shape[0], -1, 16, 16),
        3,
        3,
    ),
    "channel_shuffle": (lambda: nn.ChannelShuffle(3), 4, 12),
    "shuffle_written_out": (lambda: Shuffle(3), 4, 12),
    "shuffle_flattened": (lambda: Shuffle(2, flat=True), 6, 12),
    "unfold": (lambda: lambda x: functional.unfold(x, 2)[..., None], 12, 48),
    "fold": (lambda: lambda x: functional.fold(x.flatten(2), (9, 9), 2), 3, 3),
    "windows": (lambda: lambda x: x.unfold(2, 3, 1).amax(-1), 12, 12),
    "repeat": (lambda: lambda x: x.repeat(1, 2, 1, 1), 12, 24),
    "tile": (lambda: lambda x: x.tile(3, 1, 1), 12, 36),
    "repeat_interleave": (lambda: lambda x: x.repeat_interleave(2, 1), 12, 24),
    "glu": (lambda: nn.GLU(1), 6, 6),
    "movedim": (lambda: lambda x: x.movedim(1, -1).relu().moveaxis((3, 1, 2), (1, 2, 3)), 12, 12),
    "gather": (lambda: _picks, 12, 12),
    "unpool": (lambda: lambda x: functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2), 12, 12),
    "grid_sample": (lambda: lambda x: functional.grid_sample(x, torch.zeros(x.shape[0], 2, 2, 2), align_corners=False),
                    12, 12),
    "normalize": (lambda: lambda x: functional.normalize(x, dim=1), 12, 12),
    "cosine": (lambda: lambda x: x * functional.cosine_similarity(x, x.tanh(), dim=1)[:, None], 12, 12),
    "pad_channels": (lambda: _pads_channels, 12, 16),
    "pad_reflect": (lambda: nn.ReflectionPad2d(1), 12, 12),
    "pad_circular": (lambda: nn.CircularPad2d(1), 12, 12),
    "pad_value": (lambda: nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.PReLU(12)), 12, 12),
    "pools": (lambda: nn.Sequential(nn.LPPool2d(2, 2), nn.AdaptiveMaxPool2d(2)), 12, 12),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="nearest-exact"), 12, 12),
    "resize": (lambda: lambda x: functional.interpolate(x, (5, 5), mode="bicubic", antialias=True), 12, 12),
    "einsum": (lambda: lambda x: torch.einsum("bchw,bcij->bcij", x, x.tanh()), 12, 12),
    "lerp": (lambda: lambda x: torch.lerp(x, x.tanh(), 0.3).addcmul(x, x), 12, 12),
    "zeros": (lambda: lambda x: torch.maximum(x, torch.zeros_like(x)) + x.new_zeros(x.shape), 12, 12),
    "constant": (lambda: lambda x: x + torch.full((1, x.shape[1], 1, 1), 2.0), 12, 12),
    "expand": (lambda: lambda x: x * x.sigmoid().amax((2, 3), keepdim=True).expand_as(x), 12, 12),
    "spatial_gate": (lambda: lambda x: x * x.sum(1, keepdim=True).sigmoid().expand_as(x), 12, 12),
    "transposed_groups": (lambda: nn.ConvTranspose2d(12, 6, 2, 2, groups=3), 4, 6),
    "transposed_depthwise": (lambda: nn.ConvTranspose2d(12, 24, 2, 2, groups=12), 12, 24),
    "lstm": (lambda: Recurrent(nn.LSTM(12, 5, 2, batch_first=True, bidirectional=True)), 12, 10),
    "lstm_projected": (lambda: Recurrent(nn.LSTM(12, 5, proj_size=3, batch_first=True)), 12, 3),
    "gru": (lambda: Recurrent(nn.GRU(12, 5, batch_first=True, bias=False)), 12, 5),
    "rnn": (lambda: Recurrent(nn.RNN(12, 5, 2, batch_first=True, nonlinearity="relu")), 12, 5),
    "lstm_cell": (lambda: Cells(lstm=True), 12, 12),
    "gru_cell": (lambda: Cells(lstm=False), 12, 12),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BETWEEN))
def test_what_stands_between(name: str) -> None:
    make, units, out = BETWEEN[name]
    torch.manual_seed(0)
    module = nets.lively(Between(make(), out))
    coupling = nets.of(module)
    found = {group.name: group.units for group in coupling.groups}
    assert found["one.weight"] == units
    assert found["two.weight"] == 4
    assert coupling.refused_layers() == {"head": "model output"}
    for seed in range(2):
        small = assert_alike(module, nets.IMAGE, nets.random_removal(coupling, seed))
    assert small(torch.ones(5, 3, 8, 8)).shape == (5, 2)


def test_bags_of_embeddings_are_as_wide_as_what_reads_them() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(8, 6, mode="sum"), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.bag(x))

    specs = (TensorSpec(name="input", shape=("batch", 5), dtype="int64"),)
    module = Bag().eval()
    coupling = nets.of(module, specs)
    assert [(group.name, group.units) for group in coupling.groups] == [("bag.weight:1", 6)]
    assert assert_alike(module, specs, nets.random_removal(coupling, 0)).bag.embedding_dim < 6


def test_a_recurrent_layer_is_cut_alike_in_all_gates_layers_and_directions() -> None:
    module = Between(Recurrent(nn.LSTM(12, 5, 2, bidirectional=True)), 10).eval()
    coupling = nets.of(module)
    place = next(at for at, group in enumerate(coupling.groups) if group.name == "between.layer.weight_ih_l0")
    small = assert_alike(module, nets.IMAGE, Removal(coupling.groups, {place: np.array([0, 3])})).between.layer
    torch.testing.assert_close(small.weight_hh_l1_reverse[1], module.between.layer.weight_hh_l1_reverse[2, [1, 2, 4]])
    torch.testing.assert_close(small.bias_ih_l0[3:6], module.between.layer.bias_ih_l0[[6, 7, 9]])
    assert (small.input_size, small.hidden_size, small.weight_ih_l1.shape) == (12, 3, (12, 6))


class Stateful(nn.Module):
    """A GRU whose first state is made by a layer, or written down with its size."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.start = fixed, nn.Linear(12, 5)
        self.gru, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = torch.zeros(x.shape[0], 5) if self.fixed else torch.tanh(self.start(x))
        return self.head(self.gru(x.view(-1, 3, 4), start[None])[1][0])


def test_a_state_that_a_layer_makes_goes_with_the_units() -> None:
    module = Stateful(fixed=False).eval()
    coupling = nets.of(module, nets.VECTOR)
    assert [(group.name, group.units) for group in coupling.groups] == [("start.weight", 5)]
    assert_alike(module, nets.VECTOR, nets.random_removal(coupling, 0))


def test_a_state_that_is_not_zero_when_removed_cannot_be_summed() -> None:
    class Summed(Stateful):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = self.gru(x.view(-1, 3, 4), torch.sigmoid(self.start(x))[None])[1][0]
            return self.head(state * state.sum(1, keepdim=True))

    coupling = nets.of(Summed(fixed=False).eval(), nets.VECTOR)
    assert coupling.groups == ()
    assert "aten.sum" in coupling.refused_layers()["gru"]


def test_a_state_whose_size_stands_in_the_code_is_found_by_running() -> None:
    module = Stateful(fixed=True).eval()
    coupling = nets.of(module, nets.VECTOR)
    removal = nets.random_removal(coupling, 0)
    broken = nets.prover(module, nets.VECTOR).broken(removal)
    assert "gru.weight_ih_l0" in {coupling.groups[place].name for place in broken}
    assert any("aten.zeros" in why for why in broken.values())


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda x: functional.group_norm(x, 3), "aten.group_norm"),
        (lambda x: torch.einsum("bchw,bcij->bhij", x.sigmoid(), x.cos())[:, :1] * x, "aten.einsum"),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 2, 2), "circular")[:, 2:-2], "aten.pad"),
        (lambda x: x * functional.normalize(x + 1, dim=1).cos(), "aten.linalg_vector_norm"),
        (lambda x: torch.repeat_interleave(x, torch.ones(12, dtype=torch.int64), 1, output_size=12), "repeat_inter"),
        (lambda x: x.gather(1, x.argsort(1)), "aten.argsort"),
        (lambda x: x.unfold(1, 2, 2).mean(-1).repeat_interleave(2, 1) * x, "aten.unfold"),
        (lambda x: x * torch.fft.rfft(x, dim=1).abs().mean(), "aten.fft_rfft"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(between: Callable, words: str) -> None:
    coupling = nets.of(Between(between))
    assert [group.name for group in coupling.groups] == ["two.weight"]
    assert words in coupling.refused_layers()["one"]


def _wrong_pixels(trace: Trace, call: Operation) -> Value:
    """Takes the channels of one pixel for those that lie far apart."""
    axis = call["self"].axes[1]
    rows = axis.ids.reshape(call["upscale_factor"] ** 2, -1)
    trace.ids.union(rows, rows[:1])
    shape = call.shapes[0]
    return Value((call["self"].axes[0], Axis(shape[1], rows[0], zero=True), *opaque(shape[2:], "space").axes))


def _wrong_lstm(trace: Trace, call: Operation) -> tuple[Value, ...]:
    """Forgets that a unit has a row in each gate."""
    found = RIGHT["lstm"](trace, call)
    of_input = call["params"][0].axes[0].ids
    fresh = [Axis(len(of_input) // 4, part, zero=True) for part in of_input.reshape(4, -1)]
    shifted = Axis(found[0].axes[-1].size, np.roll(fresh[0].ids, 1), zero=True)
    return Value((*found[0].axes[:-1], shifted)), *found[1:]


def _wrong_through(trace: Trace, call: Operation) -> Value:
    """Passes the data on as if nothing happened to its channels."""
    data = next(iter(call.arguments.values()))
    return Value((*data.axes[:2], *opaque(call.shapes[0][2:], "space").axes))


def _wrong_zero(trace: Trace, call: Operation) -> Value:
    """Takes channels for zero where they are not."""
    return call["self"]


RIGHT = dict(RULES)
# A rule made wrong, and what shows it.
MUTANTS: dict[str, tuple[Callable[..., object], Callable[[], nn.Module], int]] = {
    "pixel_shuffle": (_wrong_pixels, lambda: nn.PixelShuffle(2), 3),
    "lstm": (_wrong_lstm, lambda: Recurrent(nn.LSTM(12, 12)), 12),
    "channel_shuffle": (_wrong_through, lambda: nn.ChannelShuffle(3), 12),
    "group_norm": (_wrong_through, lambda: nn.GroupNorm(3, 12), 12),
    "flip": (_wrong_through, lambda: Call(lambda x: x.flip(1)), 12),
    "cos": (_wrong_zero, lambda: Call(lambda x: x * x.cos().sum(1, keepdim=True)), 12),
    "linalg_vector_norm": (
        lambda trace, call: Value((call["self"].axes[0], Axis(1), *call["self"].axes[2:])),
        lambda: Call(lambda x: functional.normalize(x.cos(), dim=1)), 12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_wrong_rule_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, make, out = MUTANTS[name]
    torch.manual_seed(0)
    module = nets.lively(Between(make(), out))
    monkeypatch.setitem(RULES, name, wrong)
    coupling = nets.of(module)
    removal = nets.random_removal(coupling, 1)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        assert_alike(module, nets.IMAGE, removal)
    # And in use: the prover leaves out what the rule got wrong.
    prover = nets.prover(module)
    held = prover.broken(removal)
    assert held
    assert not prover.fault(removal.only(removal.units.keys() - held.keys()))
