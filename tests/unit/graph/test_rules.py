"""Each operation between two convolutions: what goes together, and that the smaller module answers as masked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.unit.graph import nets
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


class Shuffle(nn.Module):
    """ShuffleNet's, written out."""

    def __init__(self, groups: int, fold: str = "view") -> None:
        super().__init__()
        self.groups, self.fold = groups, fold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        x = x.transpose(1, 2).contiguous() if self.fold == "view" else x.permute(0, 2, 1, 3, 4)
        return x.view(batch, -1, height, width) if self.fold == "view" else x.flatten(1, 2)


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


class Recurrent(nn.Module):
    """The image's places as steps."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(2).mT)[0].mT[..., None]


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(8, 6, mode="sum"), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(x))


def _pads_channels(x: torch.Tensor) -> torch.Tensor:
    return functional.pad(x, (0, 0, 0, 0, 2, 2))


def _picks(x: torch.Tensor) -> torch.Tensor:
    tokens = x.flatten(2).mT
    best = tokens.mean(0, keepdim=True).sum(2, keepdim=True).argsort(1)[:, :5] * 0 + 3
    return torch.gather(tokens, 1, best.expand(tokens.shape[0], -1, tokens.shape[2])).mT[..., None]


# What stands between, how many units the first convolution has, and how many channels come out.
RULES: dict[str, tuple[Callable[[], nn.Module | Callable[[torch.Tensor], torch.Tensor]], int, int]] = {
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
    "shuffle_flattened": (lambda: Shuffle(2, "flatten"), 6, 12),
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


@pytest.mark.parametrize("name", sorted(RULES))
def test_what_stands_between(name: str) -> None:
    make, units, out = RULES[name]
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
