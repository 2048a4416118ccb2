"""The state of every generator that training and data draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from tauten.make.model.task import Data


def read_randomness(data: Data | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of PyTorch's, NumPy's and Python's global generators, and of a data loader's own: tensors and JSON."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    tensors |= {f"loader{index}": own.get_state() for index, own in enumerate(_generators(data))}
    numbers = {
        "python": [version, list(words), gauss],
        "numpy": [int(position), int(has_gauss), float(cached)],
    }
    return tensors, numbers


def write_randomness(tensors: dict[str, torch.Tensor], numbers: dict[str, Any], data: Data | None = None) -> None:
    """Put back what ``read_randomness`` gave."""
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    position, has_gauss, cached = numbers["numpy"]
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    for name, state in tensors.items():
        if name.startswith("cuda") and torch.cuda.is_available():
            torch.cuda.set_rng_state(state, int(name.removeprefix("cuda")))
    for index, own in enumerate(_generators(data)):
        if f"loader{index}" in tensors:
            own.set_state(tensors[f"loader{index}"])


@contextmanager
def randomness_kept(data: Data | None = None) -> Iterator[None]:
    """Whatever is drawn meanwhile, afterwards every generator stands where it stood."""
    before = read_randomness(data)
    try:
        yield
    finally:
        write_randomness(*before, data)


def _generators(data: Data | None) -> list[torch.Generator]:
    """The generators that a PyTorch ``DataLoader`` holds: its own and its sampler's."""
    source = None if data is None else data.source
    holders = (source, getattr(source, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list(dict.fromkeys(own for own in found if isinstance(own, torch.Generator)))
