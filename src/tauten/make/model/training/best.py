"""The best weights so far, and when none better are to be hoped for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tauten.errors import PassError


class Best:
    """The weights with the smallest loss so far, the first ones seen among them; or the last, where ``keep`` is off."""

    def __init__(self, module: nn.Module, keep: bool) -> None:
        self._module = module
        self._keep = keep
        self._seen = -1
        self._epoch = -1
        self._loss = math.inf
        self._state: dict[str, Any] = {}

    def see(self, loss: float, *, counts: bool = True) -> float:
        """The loss of the next epoch, the start being the first; one that does not count is never the best."""
        self._seen += 1
        if counts and (loss < self._loss or self._epoch < 0):
            self._epoch, self._loss = self._seen, loss if math.isfinite(loss) else math.inf
            self._state = {} if not self._keep else _copy(self._module.state_dict())
        return loss

    def waited(self) -> int:
        """Epochs since the smallest loss."""
        return 0 if self._epoch < 0 else self._seen - self._epoch

    def restore(self) -> int:
        """Put them back; returns their epoch. Raises ``PassError`` where no loss was finite."""
        if not self._keep or self._epoch < 0:
            return self._seen
        if not math.isfinite(self._loss):
            raise PassError(
                "training: the loss on validation data was finite at no epoch, so none is the best; see that its "
                "inputs and labels hold no NaN"
            )
        self._module.load_state_dict(self._state)
        return self._epoch

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights it holds, for a checkpoint."""
        return {name: value for name, value in self._state.items() if isinstance(value, torch.Tensor)}

    def numbers(self) -> dict[str, Any]:
        """The rest of it, as JSON."""
        return {"seen": self._seen, "epoch": self._epoch, "loss": None if math.isinf(self._loss) else self._loss}

    def load(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """What ``tensors`` and ``numbers`` gave."""
        device = next((tensor.device for tensor in self._module.parameters()), torch.device("cpu"))
        # What is no tensor, a module's extra state, stays as it is.
        self._state = {**self._module.state_dict(), **{name: tensor.to(device) for name, tensor in tensors.items()}}
        self._seen, self._epoch = numbers["seen"], numbers["epoch"]
        self._loss = math.inf if numbers["loss"] is None else numbers["loss"]


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
