"""LeNet-300-100 and LeNet-5 trained towards a few kilobytes: error on the test images from decoded files.

``python -m bench._compress_lenet [NET] …``; needs TAUTEN_DATA or a network. Finished seeds are kept in
``build/bench``, so that the same command goes on after an interruption; remove that folder to measure anew.

Everything runs on one thread. The last 5,000 training images choose; the others are learned from, each moved by up to
one pixel in each direction anew at every visit: two of three times in each, and every other time while LeNet-5 is
compressed. The dense network is trained by AdamW with a weight decay of 0.01 and a cosine schedule, then
``compress.rate`` trains it on with the dense network as a teacher; LeNet-5 first loses half of its channels. The file
is written by the codec ``arithmetic``, decoded in a fresh process, which builds the network from the shapes in the
file, and the test images are looked at once. All bytes of the file count. Beside it stand the same weights by other
coders: ``zlib_9`` and ``zstd_22`` are given the whole numbers as int8, and 4 bytes a layer for its step.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import zstandard
from torch import nn

import tauten
from bench._fitted import CACHE, fitted
from tauten.codecs import CODECS
from tauten.core.tensor import Array, Arrays
from tauten.make.datasets import mnist
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.pass_ import Context
from tauten.make.passes import PASSES

SEEDS: Final = (0, 1, 2)
BATCH: Final = 128
HELD_OUT: Final = 5_000
SIDE: Final = 28
FULL: Final = (0, 1, 2)
MILD: Final = (0, 1, 1, 2)
"""A small network errs on what it has learned from nearly as often as on what it has not: variety costs it more than it
gives. Chosen on the held-out pictures, with another seed."""


@dataclass(frozen=True)
class Net:
    """One network: how long the dense one is trained, the passes that compress it, and how pictures move meanwhile."""

    epochs: int
    dense_bytes: int
    passes: Mapping[str, Mapping[str, Any]]
    moves: tuple[int, ...] = FULL


RATE: Final = {"prune": 0.6, "levels": 0.55, "learning_rate": 2e-3}
NETS: Final = {
    "lenet_300_100": Net(15, 4 * 266_610, {"compress.rate": {"bytes": 5_380, "epochs": 80, **RATE}}),
    "lenet_5": Net(
        6,
        4 * 431_080,
        {
            # An epoch of what follows then takes half the time.
            "prune.structured": {"ratio": 0.5, "ratios": (("7.weight", 0.6),), "scope": "layer"},
            "compress.rate": {"bytes": 3_510, "epochs": 48, **RATE},
        },
        MILD,
    ),
}


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--evaluate"]:
        print(json.dumps(test_error(*sys.argv[2:4])))
        return
    figures = {}
    for name in sys.argv[1:] or NETS:
        runs = [run(name, seed) for seed in SEEDS]
        figures[name] = summary(runs)
        print(name, json.dumps(figures[name], indent=1))
    path = CACHE / "compression-lenet.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**kept, **figures}, indent=1) + "\n")


def run(name: str, seed: int) -> dict[str, Any]:
    """One seed of one network, from the cache where it was done before."""
    path = CACHE / f"compression-{name}-{seed}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    net, task = NETS[name], task_of(name)
    clock = _Clock(CACHE / f"compression-{name}-{seed}-seconds.json", f"{name}, seed {seed}")
    dense = fitted(task, seed)
    module, dense_seconds = build(dense), clock.stop("dense")
    learnt = replace(dense, train=training(net.moves))
    context = Context(learnt, module, seed, progress=clock, checkpoints=CACHE / "checkpoints")
    made = to_model(dense)
    for step, parameters in net.passes.items():
        made = apply(PASSES.get(step).from_parameters(parameters), made, context)
    seconds = dense_seconds + clock.stop("compressed")
    notes = made.history[-1].notes
    arrays = {key: value.contiguous().numpy() for key, value in made.module.state_dict().items()}
    dense_arrays = {key: value.contiguous().numpy() for key, value in module.state_dict().items()}
    files = {}
    for kind, weights in (("coded", arrays), ("dense", dense_arrays)):
        files[kind] = CACHE / f"compression-{name}-{seed}-{kind}.tauten"
        files[kind].write_bytes(CODECS.get("arithmetic").encode(weights))
    images, labels = held_out()
    result = {
        "bytes": files["coded"].stat().st_size,
        "ratio": net.dense_bytes / files["coded"].stat().st_size,
        "val_error": error_of(made.module, images, labels),
        "dense_val_error": error_of(module, images, labels),
        "test_error": _fresh(name, files["coded"]),
        "dense_test_error": _fresh(name, files["dense"]),
        "cpu_seconds": seconds,
        "dense_cpu_seconds": dense_seconds,
        "coders": coders(arrays, notes["steps"]),
        "units": [list(array.shape) for array in arrays.values()],
        "notes": {key: notes[key] for key in ("best_epoch", "epochs", "bits_per_weight", "zeros", "steps", "resumed")},
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(name, seed, json.dumps({key: value for key, value in result.items() if key != "notes"}), flush=True)
    return result


def coders(arrays: Arrays, steps: Mapping[str, float]) -> dict[str, int]:
    """Bytes of the same weights by coder."""
    levels = b"".join(np.rint(array / steps[name]).astype(np.int8).tobytes() for name, array in arrays.items())
    return {
        "float32": sum(array.nbytes for array in arrays.values()),
        "zlib_9": len(zlib.compress(levels, 9)) + 4 * len(arrays),
        "zstd_22": len(zstandard.ZstdCompressor(level=22).compress(levels)) + 4 * len(arrays),
        **{name: len(CODECS.get(name).encode(arrays)) for name in ("huffman", "arithmetic")},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, with the distance from the least to the greatest beside each."""
    found: dict[str, Any] = {}
    for key in ("bytes", "ratio", "test_error", "dense_test_error", "val_error", "dense_val_error", "cpu_seconds"):
        values = [run[key] for run in runs]
        found[key] = statistics.fmean(values)
        found[f"{key}_spread"] = max(values) - min(values)
    coded = {name: statistics.fmean(run["coders"][name] for run in runs) for name in runs[0]["coders"]}
    return {**found, "seeds": list(SEEDS[: len(runs)]), "coders": coded}


class Moved:
    """Batches in a new order at every walk, each picture moved down and to the right by one of ``moves`` less one."""

    def __init__(self, images: Array, labels: Array, moves: tuple[int, ...]) -> None:
        padded = np.pad((images[:, 0] * 255).round().astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
        self.pixels = torch.from_numpy(padded.reshape(len(images), -1))
        self.labels = torch.from_numpy(labels)
        rows = torch.arange(SIDE)
        self.places = (rows[:, None] * (SIDE + 2) + rows).flatten()
        self.moves = torch.tensor(moves)

    def __len__(self) -> int:
        return -(-len(self.labels) // BATCH)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        order = torch.randperm(len(self.labels))
        for chosen in order.split(BATCH):
            down, right = self.moves[torch.randint(len(self.moves), (2, len(chosen), 1))]
            places = self.places + down * (SIDE + 2) + right
            moved = self.pixels[chosen].gather(1, places).float().div_(255)
            yield moved.view(-1, 1, SIDE, SIDE).numpy(), self.labels[chosen].numpy()


def task_of(name: str) -> tauten.Task:
    """Without test images: they are looked at by another process."""
    images, labels = mnist("train")
    return tauten.Task(
        name=name.replace("_", "-"),
        model=lambda: network(name),
        inputs=(tauten.TensorSpec(name="image", shape=("batch", 1, SIDE, SIDE)),),
        train=training(FULL),
        calibrate=batches(images[:512], labels[:512]),
        validate=batches(*held_out()),
        metric="accuracy",
        epochs=NETS[name].epochs,
        learning_rate=1e-3,
    )


def training(moves: tuple[int, ...]) -> Moved:
    """The pictures that are learned from."""
    images, labels = mnist("train")
    return Moved(images[:-HELD_OUT], labels[:-HELD_OUT], moves)


def held_out() -> tuple[Array, Array]:
    """The pictures that choose."""
    images, labels = mnist("train")
    return images[-HELD_OUT:], labels[-HELD_OUT:]


def batches(images: Array, labels: Array, size: int = 500) -> list[tuple[Array, Array]]:
    """In order."""
    return [(images[at : at + size], labels[at : at + size]) for at in range(0, len(images), size)]


def network(name: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
    """After LeCun et al. (1998), LeNet-5 in Caffe's sizes, a ReLU after each layer; as wide as ``shapes`` say."""
    if name == "lenet_300_100":
        first, second = [300, 100] if shapes is None else [shapes[f"{layer}.weight"][0] for layer in (1, 3)]
        return nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(SIDE**2, first), nn.ReLU()),
            *(nn.Linear(first, second), nn.ReLU()),
            nn.Linear(second, 10),
        )
    widths = [20, 50, 500] if shapes is None else [shapes[f"{layer}.weight"][0] for layer in (0, 3, 7)]
    first, second, third = widths
    module = nn.Sequential(
        nn.Conv2d(1, first, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(first, second, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * second, third), nn.ReLU(), nn.Linear(third, 10),
    )  # fmt: skip
    # On a processor, half as fast again.
    return module.to(memory_format=torch.channels_last)


def test_error(name: str, path: str) -> float:
    """Percent of the test images that the network in a coded file gets wrong."""
    arrays = CODECS.get("arithmetic").decode(Path(path).read_bytes())
    module = network(name, {key: array.shape for key, array in arrays.items()})
    module.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    return error_of(module.eval(), *mnist("test"))


def error_of(module: nn.Module, images: Array, labels: Array) -> float:
    """In percent."""
    with torch.inference_mode():
        wrong = sum(
            int((module(torch.from_numpy(some)).argmax(1).numpy() != right).sum())
            for some, right in batches(images, labels)
        )
    return 100 * wrong / len(labels)


def _fresh(name: str, path: Path) -> float:
    command = [sys.executable, "-m", "bench._compress_lenet", "--evaluate", name, str(path)]
    found: float = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


class _Clock:
    """Processor seconds of what is done one after the other, kept in a file over interruptions; tells of epochs."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.last = path, what, ""
        self.spent: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
        self.since = time.process_time()

    def __call__(self, said: str, share: float) -> None:
        """Progress of the compression."""
        epoch = said.partition(",")[0]
        if epoch != self.last:
            print(f"{self.what}: {said}", flush=True)
            self.stop("compressed")
        self.last = epoch

    def stop(self, part: str) -> float:
        """All that this part took until now."""
        now = time.process_time()
        self.spent[part] = self.spent.get(part, 0.0) + now - self.since
        self.since = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.spent))
        return self.spent[part]


if __name__ == "__main__":
    main()
