"""One network trained towards a few bytes: the dense one, the compressed one, their written files, and a fresh process.

What a benchmark of trained networks gives is a ``Case``. The dense network is trained by AdamW with a weight decay of
0.01 and a cosine schedule, then the case's passes train it on with the dense network as a teacher. Both are written by
the codec ``arithmetic`` and decoded in a fresh process, which builds the network from the shapes in the file, and looks
at the test images once. All bytes of the file count. Finished seeds are kept in ``build/bench``, and what was begun
goes on after its last whole epoch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping
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
from tauten.make.datasets import Name, mnist
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.pass_ import Context
from tauten.make.passes import PASSES

HELD_OUT: Final = 5_000
"""So many of the last training images choose; the others are learned from."""
CODER: Final = "arithmetic"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Case:
    """A network and how it is compressed.

    ``network`` builds it, or with the shapes of a file that one. ``program`` is the module that was started: it is
    started again to look at a file, as ``python -m PROGRAM --evaluate NAME FILE``. ``passes`` compress it, the last
    of which is ``compress.rate``, with their parameters; they learn from what ``learnt`` gives, or from the task's own,
    and from the dense network, or in its place from one that is trained for what ``teacher`` gives.
    """

    name: str
    program: str
    pictures: Name
    network: Callable[[Shapes | None], nn.Module]
    task: Callable[[], tauten.Task]
    passes: Mapping[str, Mapping[str, Any]]
    learnt: Callable[[], Any] | None = None
    teacher: Callable[[], tauten.Task] | None = None


def run(case: Case, seed: int) -> dict[str, Any]:
    """One seed, from the cache where it was done before; errors are in percent, a ratio is of the bytes in float32."""
    path = CACHE / f"compression-{case.name}-{seed}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    task = case.task()
    clock = Clock(CACHE / f"compression-{case.name}-{seed}-seconds.json", f"{case.name}, seed {seed}")
    dense = fitted(task, seed)
    module, dense_seconds = build(dense), clock.stop("dense")
    taught = dense if case.learnt is None else replace(dense, train=case.learnt())
    if case.teacher is not None:
        taught = replace(taught, teacher=build(fitted(case.teacher(), seed)))
    teacher_seconds = clock.stop("teacher")
    context = Context(taught, module, seed, progress=clock, checkpoints=CACHE / "checkpoints")
    made = to_model(dense)
    for name, parameters in case.passes.items():
        made = apply(PASSES.get(name).from_parameters(parameters), made, context)
    seconds = dense_seconds + teacher_seconds + clock.stop("compressed")
    arrays, notes = weights_of(made.module), made.history[-1].notes
    coded = _written(case, seed, "coded", arrays)
    images, labels = held_out(case.pictures)
    parameters = sum(one.numel() for one in module.parameters())
    result = {
        "parameters": parameters,
        "bytes": coded.stat().st_size,
        "ratio": 4 * parameters / coded.stat().st_size,
        "val_error": error_of(made.module, images, labels),
        "dense_val_error": error_of(module, images, labels),
        "test_error": _fresh(case, coded),
        "dense_test_error": _fresh(case, _written(case, seed, "dense", weights_of(module))),
        "cpu_seconds": seconds,
        "dense_cpu_seconds": dense_seconds,
        "teacher_cpu_seconds": teacher_seconds,
        "coders": coders(arrays, notes["steps"]),
        "units": {name: list(array.shape) for name, array in arrays.items()},
        "notes": {key: notes[key] for key in ("best_epoch", "epochs", "bits_per_weight", "zeros", "steps", "resumed")},
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(case.name, seed, json.dumps({key: one for key, one in result.items() if key != "notes"}), flush=True)
    return result


def summary(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the seeds that ``runs`` are by, with the distance from the least to the greatest beside each."""
    found: dict[str, Any] = {}
    for key in ("bytes", "ratio", "test_error", "dense_test_error", "val_error", "dense_val_error", "cpu_seconds"):
        values = [one[key] for one in runs.values()]
        found[key] = statistics.fmean(values)
        found[f"{key}_spread"] = max(values) - min(values)
    names = next(iter(runs.values()))["coders"]
    coded = {name: statistics.fmean(one["coders"][name] for one in runs.values()) for name in names}
    return {**found, "seeds": list(runs), "coders": coded}


def coders(arrays: Arrays, steps: Mapping[str, float]) -> dict[str, int]:
    """Bytes of the same weights by coder; zlib and zstandard get whole numbers as int8, and 4 bytes a step."""
    levels = b"".join(np.rint(array / steps[name]).astype(np.int8).tobytes() for name, array in arrays.items())
    return {
        "float32": sum(array.nbytes for array in arrays.values()),
        "zlib_9": len(zlib.compress(levels, 9)) + 4 * len(arrays),
        "zstd_22": len(zstandard.ZstdCompressor(level=22).compress(levels)) + 4 * len(arrays),
        **{name: len(CODECS.get(name).encode(arrays)) for name in ("huffman", CODER)},
    }


def held_out(pictures: Name) -> tuple[Array, Array]:
    """The pictures that choose."""
    images, labels = mnist("train", pictures)
    return images[-HELD_OUT:], labels[-HELD_OUT:]


def batches(images: Array, labels: Array, size: int = 500) -> list[tuple[Array, Array]]:
    """In order."""
    return [(images[at : at + size], labels[at : at + size]) for at in range(0, len(images), size)]


def weights_of(module: nn.Module) -> Arrays:
    """All that a file of the module holds."""
    return {name: one.detach().contiguous().numpy() for name, one in module.state_dict().items()}


def test_error(case: Case, path: Path) -> float:
    """Percent of the test images that the network in a coded file gets wrong."""
    arrays = CODECS.get(CODER).decode(path.read_bytes())
    module = case.network({name: array.shape for name, array in arrays.items()})
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return error_of(module.eval(), *mnist("test", case.pictures))


def error_of(module: nn.Module, images: Array, labels: Array) -> float:
    """In percent."""
    with torch.inference_mode():
        wrong = sum(
            int((module(torch.from_numpy(some)).argmax(1).numpy() != right).sum())
            for some, right in batches(images, labels)
        )
    return 100 * wrong / len(labels)


def _written(case: Case, seed: int, kind: str, arrays: Arrays) -> Path:
    path = CACHE / f"compression-{case.name}-{seed}-{kind}.tauten"
    path.write_bytes(CODECS.get(CODER).encode(arrays))
    return path


def _fresh(case: Case, path: Path) -> float:
    command = [sys.executable, "-m", case.program, "--evaluate", case.name, str(path)]
    found: float = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


class Clock:
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
