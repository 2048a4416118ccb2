"""Small networks of the common kinds, and random ones put together from the same parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.make.graph.coupling import Coupling, couple
from tauten.make.graph.groups import Removal
from tauten.make.graph.prove import Prover

IMAGE = (TensorSpec(name="input", shape=("batch", 3, 8, 8)),)
VECTOR = (TensorSpec(name="input", shape=("batch", 12)),)


def example(specs: Sequence[TensorSpec], batch: int = 4) -> Arrays:
    """Normal numbers, or for integers those from 0 to 7."""
    generator = np.random.default_rng(0)
    made: Arrays = {}
    for spec in specs:
        shape = spec.concrete(batch)
        numbers = generator.integers(0, 8, shape) if "int" in spec.dtype else generator.standard_normal(shape)
        made[spec.name] = numbers.astype(spec.dtype)
    return made


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with statistics, scales and shifts as after training: fresh ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.PReLU):
            for tensor in layer.parameters():
                tensor.data.copy_(torch.randn(tensor.shape, generator=generator))
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
    return module.eval()


def of(module: nn.Module, specs: Sequence[TensorSpec] = IMAGE) -> Coupling:
    return couple(module, specs, example(specs))


def random_removal(coupling: Coupling, seed: int) -> Removal:
    """Some units of every group, at least one where there are two."""
    generator = np.random.default_rng(seed)
    units = {}
    for place, group in enumerate(coupling.groups):
        if group.units > 1:
            units[place] = generator.permutation(group.units)[: generator.integers(1, group.units)]
    return Removal(coupling.groups, units)


def prover(module: nn.Module, specs: Sequence[TensorSpec] = IMAGE) -> Prover:
    def run(one: nn.Module, arrays: Mapping[str, Array]) -> Arrays:
        with torch.no_grad():
            return {"output": one(*(torch.from_numpy(arrays[spec.name]) for spec in specs)).numpy()}

    return Prover(module, specs, example(specs), run)


def conv_bn(inside: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    def __init__(self, inside: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn(inside, out, stride=stride)
        self.conv2 = conv_bn(out, out)
        self.relu = nn.ReLU(inplace=True)
        same = inside == out and stride == 1
        self.down = nn.Identity() if same else conv_bn(inside, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.relu(self.conv1(x)))
        y += self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.layer1 = BasicBlock(8, 8)
        self.layer2 = BasicBlock(8, 12, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 10), nn.Sigmoid(), nn.Linear(10, 5),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(nn.functional.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class InvertedResidual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.body = nn.Sequential(
            conv_bn(channels, wide, 1), nn.Hardswish(), conv_bn(wide, wide, groups=wide), nn.ReLU6(),
            SqueezeExcite(wide), conv_bn(wide, channels, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Pooled(nn.Module):
    """A body, then the mean over space and a linear layer."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(inside + 4), nn.Conv2d(inside + 4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.conv1(torch.relu(self.norm1(x)))], 1)
        return torch.cat([x, self.conv2(torch.relu(self.norm2(x)))], 1)


class Gated(nn.Module):
    """Two halves of one layer, the one gating the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        data, gate = self.conv(x).chunk(2, dim=1)
        return data * torch.sigmoid(gate)


class ChannelsLast(nn.Module):
    """ConvNeXt's block: depthwise, then a layer norm and linear layers over the last dimension."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 10), nn.Linear(10, channels)
        self.scale = nn.Parameter(torch.randn(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(nn.functional.gelu(self.up(y))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, 10), nn.BatchNorm1d(10), nn.PReLU(10), nn.Linear(10, 8), nn.LayerNorm(8), nn.GELU()
        )
        self.residual, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x)
        return self.head(x + torch.tanh(self.residual(x)))


class Attention(nn.Module):
    """Heads of a fixed width, as many as the layers have; ``shared`` heads of keys and values serve several queries."""

    def __init__(self, channels: int, heads: int = 4, shared: int = 4, fused: bool = True) -> None:
        super().__init__()
        self.width, self.repeat, self.fused = 3, heads // shared, fused
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, heads * self.width)
        self.key, self.value = (nn.Linear(channels, shared * self.width) for _ in range(2))
        self.out = nn.Linear(heads * self.width, channels)

    def heads(self, x: torch.Tensor, repeat: int = 1) -> torch.Tensor:
        x = x.view(*x.shape[:2], -1, self.width).transpose(1, 2)
        batch, heads, length, width = x.shape
        return x[:, :, None].expand(-1, -1, repeat, -1, -1).reshape(batch, heads * repeat, length, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        query = self.heads(self.query(y))
        key, value = self.heads(self.key(y), self.repeat), self.heads(self.value(y), self.repeat)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = torch.softmax(query @ key.transpose(-1, -2) / self.width**0.5, -1) @ value
        return x + self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


class Tokens(nn.Module):
    """An image as a row of tokens with a place each, some attention, and the mean."""

    def __init__(self, channels: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, channels, 4, 4), nn.Parameter(torch.randn(1, 4, channels))
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2) + self.places).mean(1))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and the two side by side; then up by interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.bottom = conv_bn(3, 4), nn.MaxPool2d(2), conv_bn(4, 8)
        self.up, self.leave = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.enter(x)
        low = torch.relu(self.bottom(self.down(first)))
        high = nn.functional.interpolate(low, scale_factor=2.0)
        return self.leave(torch.cat([first, self.up(low), high], 1))


class HardCoded(nn.Module):
    """The code fixes the number of flattened elements."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(512, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).view(-1, 512))


class Shuffle(nn.Module):
    """ShuffleNet's, written out."""

    def __init__(self, groups: int, flat: bool = False) -> None:
        super().__init__()
        self.groups, self.flat = groups, flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, self.groups, channels // self.groups, height, width)
        if self.flat:
            return x.permute(0, 2, 1, 3, 4).flatten(1, 2)
        return x.transpose(1, 2).contiguous().view(batch, -1, height, width)


class Recurrent(nn.Module):
    """An image's columns as steps, and back."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).flatten(0, 1)
        made = self.layer(rows)[0] if self.layer.batch_first else self.layer(rows.transpose(0, 1))[0].transpose(0, 1)
        return made.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class Mixed(nn.Module):
    """A linear layer over channels as a sum over named dimensions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels) / channels**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,dc->bdhw", x, self.weight)


HANDMADE = {
    "resnet": (ResNet, IMAGE),
    "vgg": (vgg, IMAGE),
    "mobilenet": (lambda: Pooled(nn.Sequential(conv_bn(3, 6), InvertedResidual(6), InvertedResidual(6)), 6), IMAGE),
    "densenet": (lambda: Pooled(nn.Sequential(nn.Conv2d(3, 4, 3), Dense(4), nn.Conv2d(12, 6, 1)), 6), IMAGE),
    "grouped": (lambda: Pooled(nn.Sequential(conv_bn(3, 8), conv_bn(8, 12, groups=4), conv_bn(12, 6)), 6), IMAGE),
    "multiplier": (lambda: Pooled(nn.Sequential(conv_bn(3, 4), conv_bn(4, 12, groups=4), conv_bn(12, 6)), 6), IMAGE),
    "gated": (lambda: Pooled(nn.Sequential(conv_bn(3, 6), Gated(6)), 6), IMAGE),
    "convnext": (lambda: Pooled(nn.Sequential(conv_bn(3, 6), ChannelsLast(6), ChannelsLast(6)), 6), IMAGE),
    "mlp": (Mlp, VECTOR),
    "attention": (lambda: Tokens(8, Attention(8), Attention(8, fused=False)), IMAGE),
    "grouped_query": (lambda: Tokens(8, Attention(8, 4, 2), Attention(8, 6, 3, fused=False)), IMAGE),
    "unet": (UNet, IMAGE),
}


class Generated(nn.Module):
    """Parts by name, one after the other, on eight-by-eight images; ``flat`` ends in a flatten, else in a mean."""

    def __init__(self, parts: Sequence[str], width: int, flat: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(3, width)]
        channels = width
        for part in parts:
            layers += _PARTS[part](channels)
            channels = {"widen": 2 * channels, "dense": channels + 8, "pad": channels + 4}.get(part, channels)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2 if flat else 1), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(channels * (4 if flat else 1), 7), nn.Tanh(), nn.Linear(7, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


_PARTS = {
    "plain": lambda c: [conv_bn(c, c), nn.ReLU()],
    "widen": lambda c: [nn.Conv2d(c, 2 * c, 1), nn.Hardsigmoid()],
    "residual": lambda c: [BasicBlock(c, c)],
    "downsample": lambda c: [BasicBlock(c, c, 2)],
    "depthwise": lambda c: [conv_bn(c, c, groups=c), nn.SiLU()],
    "grouped": lambda c: [nn.Conv2d(c, c, 3, padding=1, groups=2), nn.LeakyReLU()],
    "dense": lambda c: [Dense(c)],
    "inverted": lambda c: [InvertedResidual(c)],
    "gated": lambda c: [Gated(c)],
    "convnext": lambda c: [ChannelsLast(c)],
    "pool": lambda c: [nn.MaxPool2d(3, 1, 1), nn.ZeroPad2d(1)],
    "group_norm": lambda c: [nn.Conv2d(c, c, 1), nn.GroupNorm(2, c), nn.PReLU(c)],
    "layer_norm": lambda c: [nn.Conv2d(c, c, 1), nn.GroupNorm(1, c)],
    "instance_norm": lambda c: [nn.InstanceNorm2d(c, affine=True), nn.Conv2d(c, c, 1), nn.InstanceNorm2d(c)],
    "shuffle": lambda c: [nn.Conv2d(c, c, 1, groups=2), nn.ChannelShuffle(2)],
    "shuffle_written_out": lambda c: [Shuffle(2)],
    "pixels": lambda c: [nn.Conv2d(c, 4 * c, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)],
    "unpixels": lambda c: [nn.PixelUnshuffle(2), nn.Conv2d(4 * c, c, 1), nn.Upsample(scale_factor=2.0)],
    "transposed": lambda c: [nn.ConvTranspose2d(c, c, 3, padding=1, groups=2), nn.ConvTranspose2d(c, c, 1, groups=c)],
    "lstm": lambda c: [Recurrent(nn.LSTM(c, c // 2, bidirectional=True, batch_first=True))],
    "gru": lambda c: [Recurrent(nn.GRU(c, c))],
    "glu": lambda c: [nn.Conv2d(c, 2 * c, 1), nn.GLU(1)],
    "einsum": lambda c: [Mixed(c), nn.CircularPad2d(1)],
    "pad": lambda c: [nn.ConstantPad3d((0, 0, 0, 0, 2, 2), 0.0)],
}
PARTS = sorted(_PARTS)
