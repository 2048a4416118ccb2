"""The networks that token merging is measured on: vision transformers (Dosovitskiy et al., 2021)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

import tauten
from tauten.examples import digits


class Block(nn.Module):
    """``(batch, tokens, width) -> same``: attention and two linear layers, each on its normalized input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm1(x)
        query, key, value = (
            layer(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.mix(mixed)
        out: torch.Tensor = x + self.narrow(functional.gelu(self.wide(self.norm2(x))))
        return out


class ViT(nn.Module):
    """``(batch, channels, side, side) -> (batch, classes)``: ``stem`` makes tokens, and the class token is read."""

    def __init__(self, stem: nn.Conv2d, tokens: int, heads: int, depth: int, classes: int) -> None:
        super().__init__()
        width = stem.out_channels
        self.stem = stem
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.1 * torch.randn(1, tokens + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        patches = self.stem(image).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.first.expand(image.shape[0], -1, -1), patches], dim=1) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        scores: torch.Tensor = self.head(self.norm(hidden)[:, 0])
        return scores


def small() -> ViT:
    """For scans of 8x8: a token a pixel, made of its neighbourhood of 3x3; four blocks of width 48."""
    return ViT(nn.Conv2d(1, 48, 3, padding=1), tokens=64, heads=3, depth=4, classes=10)


def deit_tiny() -> ViT:
    """The sizes of DeiT-Ti (Touvron et al., 2021) with random weights: time does not depend on them."""
    return ViT(nn.Conv2d(3, 192, 16, 16), tokens=196, heads=3, depth=12, classes=1000)


def task() -> tauten.Task:
    """The small network, untrained, with the scanned digits."""
    return replace(digits.task(), name="vit", model=small, epochs=25, learning_rate=2e-3)
