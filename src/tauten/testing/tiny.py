"""Tasks with tiny models, seeded and untrained, to hold passes, lowerings and engines against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.make.model.task import Task

Batches = list[tuple[Arrays, Array]]


class Residual(nn.Module):
    """Two convolutions around which the input is added, with a 1x1 convolution where the sizes differ."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()
        same = stride == 1 and channels == out
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return torch.relu(inner + self.short(x))


class TwoInTwoOut(nn.Module):
    """Two inputs side by side; returns class scores and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(4, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.relu(torch.cat([self.left(left), self.right(right)], dim=1))
        scores = self.head(hidden)
        return {"scores": scores, "sure": scores.max(dim=1).values > 0}


class Encoder(nn.Module):
    """One transformer layer over tokens of any number up to 32, averaged over those that the mask keeps."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(100, width)
        self.places = nn.Embedding(32, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        seen = (mask[:, None, None, :] > 0).expand(-1, 1, ids.shape[1], -1)
        query, key, value = (layer(hidden).unsqueeze(1) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen).squeeze(1)
        hidden = self.norm1(hidden + self.mix(mixed))
        hidden = self.norm2(hidden + self.narrow(nn.functional.gelu(self.wide(hidden))))
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        average: torch.Tensor = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return average


class TransformerBlock(nn.Module):
    """Attention between tokens, then two linear layers, each on its normalized input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, width) -> (batch, tokens, width)``."""
        inner = self.norm1(x)
        query, key, value = (
            layer(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        out: torch.Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """``(batch, 1, 8, 8) -> (batch, 4)``: 16 patches and a class token go through blocks; the class token is read."""

    def __init__(self, width: int = 16, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 17, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.first.expand(image.shape[0], -1, -1), patches], dim=1) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        scores: torch.Tensor = self.head(self.norm(hidden)[:, 0])
        return scores


def cnn_task(seed: int = 0) -> Task:
    """Two convolutions with batch norm, pooling and a linear layer; 8 x 8 pictures, 4 classes."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4),
    )  # fmt: skip
    return _pictures(module, seed)


def residual_task(seed: int = 0) -> Task:
    """A stem and two residual blocks, averaged over the picture; 8 x 8 pictures, 4 classes."""
    torch.manual_seed(seed)
    stem = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return _pictures(nn.Sequential(*stem, Residual(8, 8, 1), Residual(8, 16, 2), *head), seed)


def vision_transformer_task(seed: int = 0) -> Task:
    """Two transformer blocks over patches and a class token; 8 x 8 pictures, 4 classes."""
    torch.manual_seed(seed)
    return _pictures(VisionTransformer(), seed)


def two_inputs_task(seed: int = 0) -> Task:
    """Inputs ``left (batch, 6)`` and ``right (batch, 4)``, outputs ``scores (batch, 3)`` and ``sure (batch,)``."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    data: Batches = [
        ({"left": _normal(draw, size, 6), "right": _normal(draw, size, 4)}, draw.integers(0, 3, size))
        for size in (16, 16)
    ]
    specs = (TensorSpec(name="left", shape=("batch", 6)), TensorSpec(name="right", shape=("batch", 4)))
    return Task(model=TwoInTwoOut().eval(), inputs=specs, name="two", **_splits(data))


def encoder_task(seed: int = 0) -> Task:
    """Inputs ``ids`` and ``mask``, both ``(batch, length)`` int64 with lengths that differ from batch to batch."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    data: Batches = []
    for size, length in ((16, 12), (16, 7)):
        mask = (np.arange(length) < draw.integers(1, length + 1, (size, 1))).astype(np.int64)
        data.append(({"ids": draw.integers(0, 100, (size, length)), "mask": mask}, draw.integers(0, 4, size)))
    specs = tuple(TensorSpec(name=name, shape=("batch", "length"), dtype="int64") for name in ("ids", "mask"))
    return Task(model=Encoder().eval(), inputs=specs, name="encoder", **_splits(data))


def _pictures(module: nn.Module, seed: int) -> Task:
    draw = np.random.default_rng(seed)
    data: Batches = [({"image": _normal(draw, 32, 1, 8, 8)}, draw.integers(0, 4, 32)) for _ in range(2)]
    # A pass over the data gives batch norm statistics of its own, without which its folding could not be seen to fail.
    module.train()
    with torch.no_grad():
        for inputs, _ in data:
            module(torch.from_numpy(inputs["image"]))
    specs = (TensorSpec(name="image", shape=("batch", 1, 8, 8)),)
    return Task(model=module.eval(), inputs=specs, name="pictures", **_splits(data))


def _normal(draw: np.random.Generator, *shape: int) -> Array:
    return draw.standard_normal(shape).astype(np.float32)


def _splits(data: Batches) -> dict[str, Any]:
    return {"calibrate": data, "train": data, "validate": data, "test": data}
