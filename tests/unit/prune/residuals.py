"""Networks of residual blocks, whose branches have a factor that a test can set to zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import TensorSpec
from tauten.make.model.task import Task

PICTURE = TensorSpec(name="image", shape=("batch", 4, 6, 6))
TOKENS = TensorSpec(name="tokens", shape=("batch", "length", 8))


class Convolutions(nn.Module):
    """``relu(x + factor * f(x))`` by a bottleneck, with a sum in place if asked."""

    def __init__(self, channels: int, *, in_place: bool) -> None:
        super().__init__()
        half = channels // 2
        self.narrow, self.norm1 = nn.Conv2d(channels, half, 1, bias=False), nn.BatchNorm2d(half)
        self.conv, self.norm2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.wide, self.norm3 = nn.Conv2d(half, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.in_place = in_place
        self.factor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.norm1(self.narrow(x)))
        out = functional.relu(self.norm2(self.conv(out)))
        out = self.norm3(self.wide(out))
        if self.factor != 1:
            out = out * self.factor
        if not self.in_place:
            return functional.relu(x + out)
        out += x
        return functional.relu_(out)


class Attention(nn.Module):
    """Self-attention by one head; answers with a tuple, as many libraries do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, *, scale: float) -> tuple[torch.Tensor, None]:
        query, key, value = self.joint(x).chunk(3, dim=-1)
        return self.out((query @ key.transpose(1, 2) * scale).softmax(-1) @ value), None


class Layer(nn.Module):
    """One transformer layer: attention, then two linear layers, each added; norms before or after."""

    def __init__(self, width: int, *, first: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first = first
        self.factors = [1.0, 1.0]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        mixed, _ = self.attention(self.norm1(x) if self.first else x, scale=0.3)
        x = x + (mixed * self.factors[0] if self.factors[0] != 1 else mixed)
        x = x if self.first else self.norm1(x)
        wide = functional.gelu(self.wide(self.norm2(x) if self.first else x))
        added = self.narrow(wide)
        x = x + (added * self.factors[1] if self.factors[1] != 1 else added)
        return (x if self.first else self.norm2(x),)


class Transformer(nn.Module):
    """Two layers over tokens of any number, and their mean."""

    def __init__(self, *, first: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(8, first=first) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens)[0]
        answer: torch.Tensor = self.head(tokens.mean(1))
        return answer


class Shift(nn.Module):
    """``x + c``, by a linear layer of zeros with a bias: the difference that its absence makes is ``c``."""

    def __init__(self, *shift: float) -> None:
        super().__init__()
        self.linear = nn.Linear(len(shift), len(shift))
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.tensor(shift))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(x)


def convolutions(*, in_place: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        *(Convolutions(8, in_place=in_place) for _ in range(2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def lively(module: nn.Module) -> nn.Module:
    """Random numbers where a new layer has zeros and ones."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_floating_point():
                low = 0.5 if "var" in name or tensor.ndim == 1 else -0.5
                tensor.copy_(torch.rand(tensor.shape, generator=draw) * 0.8 + low)
    return module.eval()


def task(module: nn.Module, spec: TensorSpec, samples: int = 12) -> Task:
    draw = np.random.default_rng(0)
    size = [6 if isinstance(dim, str) else dim for dim in spec.shape[1:]]
    data: Any = [draw.standard_normal((samples, *size)).astype(np.float32)]
    return Task(model=module, inputs=(spec,), calibrate=data)
