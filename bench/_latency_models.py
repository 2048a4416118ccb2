"""The five models whose speed is compared, with weights that mean something.

LeNet (LeCun et al., 1998, in the sizes of Caffe) is trained on MNIST. ResNet-18 (He et al., 2016), MobileNetV2
(Sandler et al., 2018) and ViT-small (Touvron et al., 2021: 12 blocks of 384 with 6 heads, patches of 16) are modules of
``transformers``, trained on Fashion-MNIST, enlarged first to 64 and then to their 224 pixels in three equal channels:
long enough that their answers are far from chance, which is what fidelity needs. MiniLM is a sentence encoder with its
published weights.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import Arrays, TensorSpec
from tauten.make.datasets import mnist

CACHE = Path(os.environ.get("TAUTEN_BENCH_CACHE", "build/bench"))
"""Where trained networks are kept between runs; remove it to train anew."""
SIDE = 224
SMALL = 64
TOKENS = 64
CLASSES = 10
CALIBRATION = 128
"""Samples that quantizers may look at."""
VALIDATION = 64
"""Samples that a choice between files may look at."""
JUDGED = 256
"""Samples, none of them for calibration, choice or training, on which fidelity is told."""


class Lenet(nn.Module):
    """``(batch, 1, 28, 28) -> (batch, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.conv1(x), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


class Logits(nn.Module):
    """A classifier of ``transformers`` that returns its logits alone: ``(batch, 3, side, side) -> (batch, 10)``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def resnet18() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=CLASSES
    )
    return Logits(ResNetForImageClassification(config))


def mobilenet_v2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return Logits(MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=CLASSES)))


def vit_small(side: int = SIDE) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=side,
        num_labels=CLASSES,
    )
    return Logits(ViTForImageClassification(config))


@dataclass(frozen=True)
class Subject:
    """A model with its borders and its samples; ``classes`` where the first output tells one of so many.

    ``named`` are the inputs again, where the model takes any number of columns and all samples come with one number.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    calibrate: Arrays
    validate: Arrays
    judge: Arrays
    classes: int = 0
    named: tuple[TensorSpec, ...] = ()


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "lenet": Lenet, "resnet-18": resnet18, "mobilenet-v2": mobilenet_v2, "vit-small": vit_small,
}  # fmt: skip
MODELS = ("resnet-18", "mobilenet-v2", "vit-small", "minilm", "lenet")

_STEPS: dict[str, tuple[int, int]] = {
    "lenet": (1500, 0), "resnet-18": (300, 100), "mobilenet-v2": (300, 120), "vit-small": (800, 40),
}  # fmt: skip
"""Training steps at the small and at the full size."""


def subject(name: str) -> Subject:
    """The model of that name, trained (from the cache where that was done before), in evaluation mode."""
    if name == "minilm":
        return _minilm()
    module = _trained(name).eval()
    channels, side = (1, 28) if name == "lenet" else (3, SIDE)
    data = "mnist" if name == "lenet" else "fashion-mnist"
    train, test = (mnist(split, data)[0] for split in ("train", "test"))
    enlarge = (lambda images: images) if name == "lenet" else (lambda images: _enlarge(images, side))
    return Subject(
        name=name,
        module=module,
        inputs=(TensorSpec(name="image", shape=("batch", channels, side, side)),),
        calibrate={"image": enlarge(train[:CALIBRATION])},
        validate={"image": enlarge(train[-VALIDATION:])},
        judge={"image": enlarge(test[:JUDGED])},
        classes=CLASSES,
    )


def _enlarge(images: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """``(samples, 1, 28, 28)`` from 0 to 1 as ``(samples, 3, side, side)`` around 0."""
    wide = functional.interpolate(torch.from_numpy(images), size=(side, side), mode="bilinear")
    return ((wide - 0.5) / 0.5).expand(-1, 3, -1, -1).contiguous().numpy()


def _trained(name: str) -> nn.Module:
    path = CACHE / f"latency-{name}.safetensors"
    torch.manual_seed(0)
    module = MAKERS[name]()
    if path.is_file():
        module.load_state_dict(safetensors.torch.load_file(path))
        return module
    started = time.perf_counter()
    small, full = _STEPS[name]
    if name == "vit-small":
        first = vit_small(SMALL)
        _fit(first, small, SMALL, 32, 5e-4)
        module.load_state_dict(_wider_positions(first.state_dict(), module.state_dict()))
    elif name == "lenet":
        _fit(module, small, 28, 64, 1e-3)
    else:
        _fit(module, small, SMALL, 32, 1e-3)
    if full:
        _fit(module, full, SIDE, 16, 1e-4 if name == "vit-small" else 7e-4)
        _settle(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)
    print(
        f"{name}: trained in {time.perf_counter() - started:.0f} s, {_accuracy(module, name):.1f} % right", flush=True
    )
    return module


def _wider_positions(small: dict[str, torch.Tensor], full: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with each table of positions ``(1, 1 + patches, width)`` spread over more patches."""
    found = {}
    for key, tensor in small.items():
        if tensor.shape != full[key].shape:
            head, grid = tensor[:, :1], tensor[:, 1:]
            before, after = math.isqrt(grid.shape[1]), math.isqrt(full[key].shape[1] - 1)
            square = grid.reshape(1, before, before, -1).permute(0, 3, 1, 2)
            wide = functional.interpolate(square, size=(after, after), mode="bicubic")
            tensor = torch.cat([head, wide.permute(0, 2, 3, 1).reshape(1, after * after, -1)], 1)
        found[key] = tensor
    return found


def _fit(module: nn.Module, steps: int, side: int, batch: int, rate: float) -> None:
    images, labels = mnist("train", "mnist" if side == 28 else "fashion-mnist")
    order = np.random.default_rng(0).permutation(len(images))
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    # On a processor without products of bfloat16, PyTorch's take sixty times as long as those of float32.
    bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    module.train()
    started = time.perf_counter()
    for step in range(steps):
        chosen = order[np.arange(step * batch, (step + 1) * batch) % len(order)]
        x = torch.from_numpy(images[chosen] if side == 28 else _enlarge(images[chosen], side))
        with torch.autocast("cpu", torch.bfloat16, enabled=side != 28 and bfloat16):
            answers = module(x)
        loss = functional.cross_entropy(answers.float(), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"  step {step + 1} of {steps} at {side} pixels: loss {loss.item():.3f}, "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    module.eval()


def _settle(module: nn.Module) -> None:
    """Take the statistics of batch normalization anew, over many batches: while training they follow the last few."""
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)]
    if not norms:
        return
    images, _ = mnist("train", "fashion-mnist")
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    with torch.no_grad():
        for at in range(0, 512, 16):
            module(torch.from_numpy(_enlarge(images[at : at + 16], SIDE)))
    module.eval()


def _accuracy(module: nn.Module, name: str) -> float:
    images, labels = mnist("train", "mnist" if name == "lenet" else "fashion-mnist")
    x = images[-JUDGED:] if name == "lenet" else _enlarge(images[-JUDGED:], SIDE)
    with torch.inference_mode():
        answers = torch.cat([module(torch.from_numpy(x[at : at + 32])) for at in range(0, len(x), 32)])
    return float((answers.argmax(1).numpy() == labels[-JUDGED:]).mean() * 100)


def _minilm() -> Subject:
    """The sentence encoder of ``examples/minilm.py``, on sentences padded to ``TOKENS`` tokens with their masks."""
    from tokenizers import Tokenizer

    from examples import minilm

    tokenizer = Tokenizer.from_file(str(minilm.folder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(minilm.sentences())
    arrays = {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }
    second = minilm.CALIBRATE + VALIDATION
    return Subject(
        name="minilm",
        module=minilm.build().eval(),
        inputs=tuple(TensorSpec(name=name, shape=("batch", TOKENS), dtype="int64") for name in arrays),
        named=tuple(TensorSpec(name=name, shape=("batch", "length"), dtype="int64") for name in arrays),
        calibrate={name: array[: minilm.CALIBRATE] for name, array in arrays.items()},
        validate={name: array[minilm.CALIBRATE : second] for name, array in arrays.items()},
        judge={name: array[second : second + JUDGED] for name, array in arrays.items()},
    )


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    for which in sys.argv[1:] or MODELS:
        subject(which)
