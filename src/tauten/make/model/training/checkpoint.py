"""Going on after a kill: all that training needs is written after each epoch, and read again where it is the same.

One safetensors file a training, its name what identifies the training, with numbers as JSON in its header. It is
written to a sibling and renamed, so that whenever the writer is killed there is a whole one. Nothing in it is a pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from tauten.core.tensor import Array
from tauten.make.model.digest import digest
from tauten.make.model.task import Data

_NUMBERS = "tauten"


@dataclass(frozen=True)
class Checkpoints:
    """The folder that checkpoints are kept in, and what the caller knows to identify the training by.

    The trainer adds what it knows: weights, data, settings, seed, versions.
    """

    folder: Path
    key: str = ""


class Unwritable(OSError):
    """The disk refuses a checkpoint: no fault of the task or of a pass, so that none of them answers for it."""


class Checkpoint:
    """The file of one training."""

    def __init__(self, path: Path, writes: bool) -> None:
        self._path = path
        self._writes = writes
        self._written = False

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and numbers that were saved last, or ``None`` where there is no whole file."""
        try:
            data = self._path.read_bytes()
            tensors = load_tensors(data)
            length = int.from_bytes(data[:8], "little")
            numbers = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_NUMBERS])
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
            return None
        return tensors, numbers

    def save(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
        """Replace what was saved. Raises ``Unwritable`` where the disk refuses."""
        if not self._writes:
            return
        # Tied weights share memory, which the format does not.
        apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        data = save_tensors(apart, {_NUMBERS: json.dumps(numbers)})
        fresh = self._path.parent / f".{self._path.name}.{secrets.token_hex(4)}.partial"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._written:
                for left in self._path.parent.glob(f".{self._path.name}.*.partial"):
                    left.unlink(missing_ok=True)
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as fault:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise Unwritable(
                fault.errno, f"the checkpoint cannot be written: {fault.strerror}", str(self._path)
            ) from fault
        self._written = True


def identify(parts: Mapping[str, Any], modules: tuple[nn.Module, ...], data: tuple[Data | None, ...]) -> str:
    """SHA-256 of what decides a training: settings as JSON, the modules it starts from, and every batch."""
    told = {**parts, "tauten": version("tauten"), "torch": torch.__version__}
    seen = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for module in modules:
        seen.update(digest(module).encode())
    for source in data:
        seen.update(b"|")
        for inputs, labels in source or ():
            for name in sorted(inputs):
                _add(seen, inputs[name])
            if labels is not None:
                _add(seen, labels)
    return seen.hexdigest()


def gather(prefix: str, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors under a common prefix."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def scatter(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What ``gather`` put under the prefix."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, those too that are not persistent."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def set_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """What ``state_of`` gave, in place."""
    with torch.no_grad():
        for name, tensor in state_of(module).items():
            tensor.copy_(state[name])


def _add(seen: hashlib._Hash, array: Array) -> None:
    seen.update(f"{array.dtype}{array.shape}".encode())
    seen.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
