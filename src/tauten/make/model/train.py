"""One training loop, for a task's first fit and for the passes that train."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.core.value import Value
from tauten.errors import PassError, TaskError
from tauten.make.model.apply import seed_all
from tauten.make.model.pass_ import Progress, silent
from tauten.make.model.precision import Precision, channels_last, computing_in, in_float32
from tauten.make.model.run import Tensors, call, to_tensor
from tauten.make.model.task import Data

OnStep = Callable[[int, int], None]
"""Called with ``(step, steps)`` before each step, from 0 on; it may change weights in place."""
Objective = Callable[[Tensors, Arrays, torch.Tensor | None], torch.Tensor]
"""``(outputs by name, inputs by name, labels or None) -> scalar``: what training makes small."""

_REPORTS_AN_EPOCH = 20


class Training(Value):
    """How to train: AdamW (Loshchilov, Hutter 2019), warm-up, then cosine decay to zero (Loshchilov, Hutter 2017).

    ``learning_rate`` is the peak, ``warmup`` the share of all steps that rise to it, ``weight_decay`` holds for
    matrices and kernels alone, ``clip_norm`` bounds the norm of the gradient. ``keep_best`` keeps the weights of the
    epoch with the smallest validation loss, the start among them, where there is validation data. ``steps`` asks for
    more epochs where ``epochs`` of them have fewer steps than that: a small data set needs more walks.

    ``precision`` is what products and convolutions are computed in; weights, their updates and the loss stay float32.
    ``bfloat16`` needs no care; ``float16`` scales the loss so that small gradients are not lost (Micikevicius et al.,
    2018).
    """

    epochs: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0)] = 0
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-2
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    keep_best: bool = True
    precision: Precision = "float32"

    def epochs_of(self, batches: int) -> int:
        """How many epochs of ``batches`` steps to train for."""
        return max(self.epochs, math.ceil(self.steps / batches))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) of ``steps``."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        done = min(1.0, (step - rising) / max(1, steps - rising))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Trained:
    """What training did.

    ``losses`` are the mean training loss of each epoch; ``validation`` that of the start and then of each epoch, in
    evaluation mode, or empty. ``best_epoch`` is the one whose weights were kept: 0 is the start.
    """

    best_epoch: int
    losses: tuple[float, ...]
    validation: tuple[float, ...]
    samples: int

    def to_notes(self) -> dict[str, Any]:
        """As JSON: losses before and after, epochs run, best epoch, samples seen (each counted at each visit)."""
        if self.validation:
            before, after, on = self.validation[0], self.validation[self.best_epoch], "validation"
        else:
            before, after, on = self.losses[0], self.losses[-1], "training"
        return {
            "loss_before": before if math.isfinite(before) else None,
            "loss_after": after if math.isfinite(after) else None,
            "loss_on": on,
            "epochs": len(self.losses),
            "best_epoch": self.best_epoch,
            "samples": self.samples,
        }


@dataclass(frozen=True)
class Trainer:
    """Trains a module in place on batches.

    ``inputs`` and ``outputs`` are the module's borders, as in ``Model``. ``teachers`` are the modules that the
    objective calls.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    training: Training
    objective: Objective
    seed: int = 0
    progress: Progress = silent
    teachers: tuple[nn.Module, ...] = ()

    def __call__(
        self,
        module: nn.Module,
        train: Data,
        validate: Data | None = None,
        *,
        keep_zeros: bool = False,
        on_step: OnStep | None = None,
    ) -> Trained:
        """Train ``module`` and leave it in evaluation mode, with the best weights where ``validate`` is given.

        ``keep_zeros`` holds weights (of two dimensions and more) that are exactly zero at zero. ``on_step`` may set
        more of them to zero, or free some; with one, ``Training(keep_best=False)`` keeps what the last step left.
        Raises ``PassError`` where nothing can be trained or the loss is not finite, ``TaskError`` for data that does
        not fit.
        """
        seed_all(self.seed)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise PassError("training: the module has no parameter that requires a gradient, so nothing can be trained")
        precision = self.training.precision
        with channels_last(precision, lambda: self._try(module, train), module, *self.teachers):
            trained = self._train(module, train, validate, _Stepper(parameters, self.training, keep_zeros), on_step)
        for parameter in parameters:
            parameter.grad = None
        module.eval()
        return trained

    def _train(
        self, module: nn.Module, train: Data, validate: Data | None, stepper: _Stepper, on_step: OnStep | None
    ) -> Trained:
        batches = _count(train)
        epochs = self.training.epochs_of(batches)
        best = _Best(module, self.training.keep_best)
        losses: list[float] = []
        validation: list[float] = []
        samples = 0
        if validate is not None:
            validation.append(best.see(self._validate(module, validate)))
        for epoch in range(epochs):
            loss, seen = self._epoch(module, train, stepper, on_step, epoch, epochs, batches)
            losses.append(loss)
            samples += seen
            if validate is not None:
                validation.append(best.see(self._validate(module, validate)))
        best_epoch = best.restore() if validate is not None else epochs
        return Trained(best_epoch, tuple(losses), tuple(validation), samples)

    def _epoch(
        self,
        module: nn.Module,
        train: Data,
        stepper: _Stepper,
        on_step: OnStep | None,
        epoch: int,
        epochs: int,
        batches: int,
    ) -> tuple[float, int]:
        every = max(1, batches // _REPORTS_AN_EPOCH)
        module.train()
        total, samples = 0.0, 0
        for index, (inputs, labels) in enumerate(train):
            step, steps = epoch * batches + index, epochs * batches
            where = f"epoch {epoch + 1}/{epochs}, batch {index + 1}"
            rate = self.training.rate(step, steps)
            if on_step is not None:
                on_step(min(step, steps - 1), steps)
                stepper.hold_zeros()
            size = self._samples(inputs)
            with _batch_norm_for(module, size):
                loss = self._loss(module, inputs, labels)
            value = float(loss.detach())
            _check_finite(value, "loss", where, rate)
            stepper.step(loss, rate, where)
            total += value * size
            samples += size
            if index % every == 0:
                share = (epoch + min(1.0, (index + 1) / batches)) / epochs
                self.progress(f"epoch {epoch + 1}/{epochs}, loss {total / samples:.4f}", share)
        return total / samples, samples

    def _loss(self, module: nn.Module, inputs: Arrays, labels: Array | None) -> torch.Tensor:
        with computing_in(self.training.precision, _device(module)):
            outputs = in_float32(call(module, self.inputs, self.outputs, inputs))
        device = next(iter(outputs.values())).device
        return self.objective(outputs, inputs, None if labels is None else to_tensor(labels).to(device))

    def _validate(self, module: nn.Module, data: Data) -> float:
        module.eval()
        total, samples = 0.0, 0
        with torch.no_grad():
            for inputs, labels in data:
                size = self._samples(inputs)
                total += float(self._loss(module, inputs, labels)) * size
                samples += size
        return total / samples

    def _try(self, module: nn.Module, train: Data) -> None:
        """One batch forward, as training does it."""
        inputs, labels = next(iter(train))
        was = module.training
        module.train()
        try:
            with _batch_norm_for(module, self._samples(inputs)):
                self._loss(module, inputs, labels)
        finally:
            module.train(was)

    def _samples(self, inputs: Arrays) -> int:
        for spec in self.inputs:
            if spec.batch_axis is not None:
                size = int(inputs[spec.name].shape[spec.batch_axis])
                if size == 0:
                    raise TaskError("training: expected batches of at least one sample, got an empty one")
                return size
        return 1


class _Stepper:
    """Takes steps along gradients: AdamW, clipped, with what is to stay zero held there."""

    def __init__(self, parameters: list[nn.Parameter], training: Training, keep_zeros: bool) -> None:
        self._parameters = parameters
        self._training = training
        self._held = [p for p in parameters if p.ndim >= 2] if keep_zeros else []
        self._masks: list[torch.Tensor] = []
        # Decay pulls biases and the scales of normalization off their optimum without making the function simpler.
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
        self._scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=training.precision == "float16")
        self.hold_zeros()

    def hold_zeros(self) -> None:
        """What is zero now stays so."""
        self._masks = [parameter != 0 for parameter in self._held]

    def step(self, loss: torch.Tensor, rate: float, where: str) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.unscale_(self._optimizer)
        # Before clipping, so that pruned weights take no part of the norm.
        for parameter, mask in zip(self._held, self._masks, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._training.clip_norm))
        # With float16 a norm that overflows makes the scaler leave this step out and scale less.
        if not self._scaler.is_enabled() or self._scaler.get_scale() < 1:
            _check_finite(norm, "norm of the gradient", where, rate)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with torch.no_grad():
            for parameter, mask in zip(self._held, self._masks, strict=True):
                parameter.mul_(mask)


class _Best:
    """The weights with the smallest loss so far, the first ones seen among them."""

    def __init__(self, module: nn.Module, keep: bool) -> None:
        self._module = module
        self._keep = keep
        self._seen = -1
        self._epoch = 0
        self._loss = math.inf
        self._state: dict[str, Any] = {}

    def see(self, loss: float) -> float:
        self._seen += 1
        if not self._keep:
            self._epoch = self._seen
        elif loss < self._loss or not self._state:
            self._epoch, self._loss = self._seen, loss if math.isfinite(loss) else math.inf
            self._state = {
                name: value.detach().clone() if isinstance(value, torch.Tensor) else value
                for name, value in self._module.state_dict().items()
            }
        return loss

    def restore(self) -> int:
        """Put them back; returns their epoch. Raises ``PassError`` where no loss was finite."""
        if self._keep:
            if not math.isfinite(self._loss):
                raise PassError(
                    "training: the loss on validation data was finite at no epoch, so none is the best; see that its "
                    "inputs and labels hold no NaN"
                )
            self._module.load_state_dict(self._state)
        return self._epoch


@contextmanager
def _batch_norm_for(module: nn.Module, size: int) -> Iterator[None]:
    """Batch normalization by running statistics for a batch of one, which has no variance over its samples."""
    if size > 1:
        yield
        return
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training]
    for layer in norms:
        layer.eval()
    try:
        yield
    finally:
        for layer in norms:
            layer.train()


def _count(data: Data) -> int:
    """How many batches a walk has: what the source says, or counted where it says nothing."""
    batches = data.source() if callable(data.source) else data.source
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:
        count = sum(1 for _ in batches)
    return max(1, count)


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))


def _check_finite(value: float, what: str, where: str, rate: float) -> None:
    if not math.isfinite(value):
        raise PassError(
            f"training: the {what} became {value} in {where}, at a learning rate of {rate:.2g}; use a smaller "
            "learning_rate, and see that inputs and labels hold no NaN and are scaled to about one"
        )
