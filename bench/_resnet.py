"""The network that the pruning benchmarks cut: a ResNet of ResNet-18's widths, trained on 28x28 pictures.

Blocks and widths (64, 128, 256, 512) are those of ResNet-18 (He et al., 2016), with one block a stage in place of two;
the stem is one 3x3 convolution of stride 2 without the pooling that images of 224 pixels need. 4.9 million parameters.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

import tauten
from tauten.make.datasets import Images, Labels, Name, mnist

BATCH = 128
HELD_OUT = 5_000
WIDTHS = (64, 128, 256, 512)
CACHE = Path(os.environ.get("TAUTEN_BENCH_CACHE", "build/bench"))
"""Where trained networks are kept between runs; remove it to train anew."""
EPOCHS: dict[Name, int] = {"fashion-mnist": 5, "mnist": 2}
PEAK_RATE = 2e-3


class Block(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.short = nn.Sequential()
        if stride != 1 or channels != out:
            self.short = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(inner + self.short(x))


class ResNet(nn.Module):
    """``(batch, 1, 28, 28) -> (batch, 10)``."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        channels = widths[0]
        for stage, width in enumerate(widths, 1):
            self.add_module(f"layer{stage}", Block(channels, width, 1 if stage == 1 else 2))
            channels = width
        self.stages = len(widths)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.head(x.mean((2, 3)))


def task(name: Name, seed: int, say: Callable[[str], None] = print) -> tauten.Task:
    """The trained network with its data: the last 5,000 training images choose, the test images are looked at once."""
    images, labels = mnist("train", name)
    train, train_labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    flips = name == "fashion-mnist"
    module = trained(name, seed, train, train_labels, flips, say)
    return tauten.Task(
        name=name,
        model=module,
        inputs=(tauten.TensorSpec(name="image", shape=("batch", 1, 28, 28)),),
        train=Walk(train, train_labels, flips),
        calibrate=batches(train[:512], train_labels[:512]),
        validate=batches(images[-HELD_OUT:], labels[-HELD_OUT:]),
        test=batches(*mnist("test", name)),
        metric="accuracy",
    )


class Walk:
    """Batches in a new order at each walk, shifted by up to two pixels and, where ``flips``, mirrored by chance.

    Drawn from NumPy's global generator, which Tauten seeds.
    """

    def __init__(self, images: Images, labels: Labels, flips: bool) -> None:
        self.images, self.labels, self.flips = images, labels, flips

    def __len__(self) -> int:
        return math.ceil(len(self.images) / BATCH)

    def __iter__(self) -> Iterator[tuple[Images, Labels]]:
        order = np.random.permutation(len(self.images))
        for at in range(0, len(order), BATCH):
            chosen = order[at : at + BATCH]
            yield augment(self.images[chosen], self.flips), self.labels[chosen]


def augment(images: Images, flips: bool) -> Images:
    """Each picture shifted by up to two pixels either way, and mirrored in half of the cases where ``flips``."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    down, right = np.random.randint(0, 5, (2, count))
    rows = down[:, None, None] + np.arange(height)[None, :, None]
    columns = right[:, None, None] + np.arange(width)[None, None, :]
    if flips:
        mirrored = np.random.rand(count) < 0.5
        columns = np.where(mirrored[:, None, None], columns[..., ::-1], columns)
    return np.ascontiguousarray(padded[np.arange(count)[:, None, None], 0, rows, columns][:, None])


def batches(images: Images, labels: Labels) -> list[tuple[Images, Labels]]:
    """Batches in order."""
    return [(images[at : at + BATCH], labels[at : at + BATCH]) for at in range(0, len(images), BATCH)]


def trained(
    name: Name, seed: int, images: Images, labels: Labels, flips: bool, say: Callable[[str], None] = print
) -> nn.Module:
    """The network after ``EPOCHS`` (AdamW, cosine, bfloat16 autocast), from the cache where it was trained before."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    module = ResNet()
    path = CACHE / f"{name}-{seed}-{EPOCHS[name]}.safetensors"
    if path.is_file():
        module.load_state_dict(safetensors.torch.load_file(path))
        return module.eval()
    started = time.perf_counter()
    module.train().to(memory_format=torch.channels_last)
    decayed = [p for p in module.parameters() if p.ndim >= 2]
    plain = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=PEAK_RATE
    )
    walk = Walk(images, labels, flips)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, EPOCHS[name] * len(walk), pct_start=0.2)
    for epoch in range(EPOCHS[name]):
        total = 0.0
        for batch, truth in walk:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                scores = module(torch.from_numpy(batch).to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(scores.float(), torch.from_numpy(truth))
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        say(f"{name}, seed {seed}: epoch {epoch + 1}/{EPOCHS[name]}, loss {total / len(walk):.4f}")
    module.eval().to(memory_format=torch.contiguous_format)
    say(f"{name}, seed {seed}: trained in {time.perf_counter() - started:.0f} s")
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
    return module
