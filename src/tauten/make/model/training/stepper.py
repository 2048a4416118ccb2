"""Steps along gradients: AdamW, clipped, with what is to stay zero held there."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tauten.errors import PassError
from tauten.make.model.training.processes import Processes
from tauten.make.model.training.settings import Training


class Stepper:
    """Gathers the gradients of a step's batches, then takes it."""

    def __init__(
        self, parameters: list[nn.Parameter], training: Training, processes: Processes, held: list[nn.Parameter]
    ) -> None:
        self._parameters = parameters
        self._training = training
        self._processes = processes
        self._held = held
        self._masks: list[torch.Tensor] = []
        # Decay pulls biases and the scales of normalization off their optimum without making the function simpler.
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # All of a step in one walk over memory: on a processor several times as fast as PyTorch's default.
        self._optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, fused=_fusible(parameters))
        self._scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=training.precision == "float16")
        self.hold_zeros()

    def hold_zeros(self) -> None:
        """What is zero now stays so."""
        self._masks = [parameter != 0 for parameter in self._held]

    def add(self, loss: torch.Tensor, share: float) -> None:
        """Gradients of a batch's loss, which counts for ``share`` of the step."""
        torch.autograd.backward(self._scaler.scale(loss if share == 1 else loss * share))

    def step(self, rate: float, where: str) -> None:
        """Take the step. Raises ``PassError`` where the gradient is not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._processes.add_gradients(self._parameters)
        self._scaler.unscale_(self._optimizer)
        # Before clipping, so that pruned weights take no part of the norm.
        for parameter, mask in zip(self._held, self._masks, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._training.clip_norm))
        # With float16 a norm that overflows makes the scaler leave this step out and scale less.
        if not self._scaler.is_enabled() or self._scaler.get_scale() < 1:
            check_finite(norm, "norm of the gradient", where, rate)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, mask in zip(self._held, self._masks, strict=True):
                parameter.mul_(mask)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The optimizer's moments, for a checkpoint."""
        state = self._optimizer.state_dict()["state"]
        return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}

    def numbers(self) -> dict[str, Any]:
        """The scale of the loss, as JSON."""
        return dict(self._scaler.state_dict())

    def load(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """What ``tensors`` and ``numbers`` gave."""
        document = self._optimizer.state_dict()
        ordered = [one for group in self._optimizer.param_groups for one in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            # A checkpoint's numbers lie row by row, a kernel's with its channels side by side do not.
            lying = value if name == "step" else torch.empty_like(ordered[int(index)]).copy_(value)
            state.setdefault(int(index), {})[name] = lying
        self._optimizer.load_state_dict({**document, "state": state})
        if numbers:
            self._scaler.load_state_dict(numbers)
        self.hold_zeros()


def _fusible(parameters: list[nn.Parameter]) -> bool:
    """Whether one kernel may step them: it walks memory as it lies, where gradients and moments must lie alike."""
    return all(one.device.type == "cpu" and torch.empty_like(one).stride() == one.stride() for one in parameters)


def check_finite(value: float, what: str, where: str, rate: float) -> None:
    """``PassError`` for a number that training cannot go on from."""
    if not math.isfinite(value):
        raise PassError(
            f"training: the {what} became {value} in {where}, at a learning rate of {rate:.2g}; use a smaller "
            "learning_rate, and see that inputs and labels hold no NaN and are scaled to about one"
        )
