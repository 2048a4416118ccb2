"""A CNN of a million weights on Fashion-MNIST, trained towards a hundredth of its bytes: error from decoded files.

``python -m bench._compress_cnn``; needs TAUTEN_DATA or a network. Four convolutions with batch norm and two linear
layers, on one thread. The last 5,000 training images choose; the others are learned from, each mirrored by chance and
moved by up to two pixels in each direction anew at every visit. ``_compress_training`` tells how it is compressed and
measured; the same command goes on after an interruption. Written to ``build/bench/compression-cnn.json``.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Final

import torch
from torch import nn

import tauten
from bench._compress_training import HELD_OUT, Case, Shapes, batches, held_out, run, summary, test_error
from bench._fitted import CACHE
from bench._measured import measured_now
from bench._resnet import Walk
from tauten.make.datasets import Name, mnist

SEEDS: Final = (0, 1, 2)
EPOCHS: Final = 7
PICTURES: Final[Name] = "fashion-mnist"
SIDE: Final = 28
WIDTHS: Final = (24, 32, 64, 128, 800)
LAYERS: Final = (0, 3, 7, 11, 15)
"""Where in the network the layers of these widths stand."""
STEP: Final = {"bytes": 28_000, "epochs": 14, "prune": 0.6, "levels": 0.55, "learning_rate": 2e-3, "cache_mib": 0}


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--evaluate"]:
        print(json.dumps(test_error(CASE, Path(sys.argv[3]))))
        return
    seeds = tuple(map(int, sys.argv[1:])) or SEEDS
    runs = {seed: run(CASE, seed) for seed in seeds}
    lost = [one["test_error"] - one["dense_test_error"] for one in runs.values()]
    figures = {
        "parameters": runs[seeds[0]]["parameters"],
        "drop_points": statistics.fmean(lost),
        "drop_points_spread": max(lost) - min(lost),
        "dense_epochs": EPOCHS,
        "epochs": STEP["epochs"],
        **summary(runs),
        "measured": measured_now(),
    }
    (CACHE / "compression-cnn.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def network(shapes: Shapes | None = None) -> nn.Module:
    """``(batch, 1, 28, 28) -> (batch, 10)``; as wide as ``shapes`` say, without norms where biases tell of none."""
    folded = shapes is not None and f"{LAYERS[0]}.bias" in shapes
    first, second, third, fourth, fifth = (
        WIDTHS if shapes is None else [shapes[f"{layer}.weight"][0] for layer in LAYERS]
    )

    def layer(channels: int, width: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
        norm = nn.Identity() if folded else nn.BatchNorm2d(width)
        return nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=folded), norm, nn.ReLU()

    module = nn.Sequential(
        *layer(1, first, 5, stride=2),
        *layer(first, second, 3), nn.MaxPool2d(2),
        *layer(second, third, 3), nn.MaxPool2d(2),
        *layer(third, fourth, 3),
        nn.Flatten(), nn.Linear(9 * fourth, fifth), nn.ReLU(), nn.Linear(fifth, 10),
    )  # fmt: skip
    # On a processor, half as fast again.
    return module.to(memory_format=torch.channels_last)


def task() -> tauten.Task:
    """Without test images: they are looked at by another process."""
    images, labels = mnist("train", PICTURES)
    train, train_labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    return tauten.Task(
        name=CASE.name,
        model=network,
        inputs=(tauten.TensorSpec(name="image", shape=("batch", 1, SIDE, SIDE)),),
        train=Walk(train, train_labels, flips=True),
        calibrate=batches(train[:512], train_labels[:512]),
        validate=batches(*held_out(PICTURES)),
        metric="accuracy",
        epochs=EPOCHS,
        learning_rate=2e-3,
    )


CASE: Final = Case("cnn", "bench._compress_cnn", PICTURES, network, task, {"compress.rate": STEP})


if __name__ == "__main__":
    main()
