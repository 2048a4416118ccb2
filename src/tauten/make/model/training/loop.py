"""Epochs of steps of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tauten.core.tensor import Array, Arrays
from tauten.make.model.apply import seed_all
from tauten.make.model.pass_ import Progress
from tauten.make.model.task import Batch, Data
from tauten.make.model.training.best import Best
from tauten.make.model.training.checkpoint import Checkpoint, gather, scatter, set_state, state_of
from tauten.make.model.training.parts import Parts
from tauten.make.model.training.processes import Processes
from tauten.make.model.training.randomness import randomness_kept, read_randomness, write_randomness
from tauten.make.model.training.settings import Trained, Training
from tauten.make.model.training.stepper import Stepper, check_finite

OnStep = Callable[[int, int], None]
"""Called with ``(step, steps)`` before each step, from 0 on; it may change weights in place."""
Measure = Callable[[Arrays, Array | None], torch.Tensor]
"""The loss of a batch, a scalar."""

_REPORTS_AN_EPOCH = 20


@dataclass
class Loop:
    """One training on its way: what it works on, and how far it came.

    ``companion`` is trained along with ``module``; ``size`` counts a batch's samples. ``settled`` is the share of all
    steps after which ``on_step`` leaves weights in their final form: what is earlier is never kept as the best.
    ``parts`` says how batches are divided where memory is bounded.
    """

    module: nn.Module
    companion: nn.Module | None
    train: Data
    validate: Data | None
    training: Training
    seed: int
    loss: Measure
    size: Callable[[Arrays], int]
    stepper: Stepper
    processes: Processes
    progress: Progress
    on_step: OnStep | None
    settled: float = 0.0
    parts: Parts = field(default_factory=Parts)
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    samples: int = 0

    def run(self, checkpoint: Checkpoint | None) -> Trained:
        """All epochs, from the checkpoint on where there is one, which is kept up to date."""
        best = Best(self.module, self.training.keep_best)
        steps = self._steps_an_epoch()
        epochs = self.training.epochs_of(steps)
        found = checkpoint.read() if checkpoint is not None else None
        done = self._load(best, *found) if found else False
        resumed = len(self.losses)
        if self.validate is not None and not found:
            self.validation.append(best.see(self._validate(self.validate), counts=self.settled == 0))
        stopped = self._has_stopped(best, epochs)
        while not done and not stopped and len(self.losses) < epochs:
            self._epoch(epochs, steps)
            if self.validate is not None:
                counts = self.settled == 0 or len(self.losses) * steps > self.settled * epochs * steps
                self.validation.append(best.see(self._validate(self.validate), counts=counts))
            stopped = self._has_stopped(best, epochs)
            if checkpoint is not None:
                self._save(checkpoint, best)
        best_epoch = best.restore() if self.validate is not None else len(self.losses)
        self.processes.follow_main(self.module)
        if checkpoint is not None and not done:
            self._save(checkpoint, best, done=True)
        return Trained(
            best_epoch=best_epoch,
            losses=tuple(self.losses),
            validation=tuple(self.validation),
            samples=self.samples,
            stopped_early=stopped,
            resumed=resumed,
            processes=self.processes.count,
        )

    def _epoch(self, epochs: int, steps: int) -> None:
        epoch = len(self.losses)
        if self.processes.count > 1:
            # What has drawn differently in each process begins anew alike, so that all walk the same batches.
            seed_all(self.seed + epoch)
        self._set_mode(True)
        every = max(1, steps // _REPORTS_AN_EPOCH)
        total, samples = 0.0, 0
        for index, group in enumerate(_grouped(self.train, self._batches_a_step)):
            step, last = epoch * steps + index, epochs * steps
            rate = self.training.rate(step, last)
            where = f"epoch {epoch + 1}/{epochs}, batch {index * self._batches_a_step + 1}"
            if self.on_step is not None:
                self.on_step(min(step, last - 1), last)
                self.stepper.hold_zeros()
            whole = sum(self.size(inputs) for inputs, _ in group)
            for inputs, labels in self.parts.of(self.processes.share(group)):
                size = self.size(inputs)
                with batch_norm_for(self.module, size):
                    loss = self.loss(inputs, labels)
                value = float(loss.detach())
                if self.processes.count == 1:  # else all shall hear of it, by the gradient
                    check_finite(value, "loss", where, rate)
                self.stepper.add(loss, size / whole)
                total += value * size
                samples += size
            self.stepper.step(rate, where)
            self.parts.hold()
            if index % every == 0 and self.processes.is_main:
                share = (epoch + min(1.0, (index + 1) / steps)) / epochs
                self.progress(f"epoch {epoch + 1}/{epochs}, loss {total / max(1, samples):.4f}", share)
        total, counted = self.processes.add(total, float(samples))
        self.processes.average_buffers(self.module)
        self.losses.append(total / counted)
        self.samples += round(counted)

    def _validate(self, data: Data) -> float:
        self._set_mode(False)
        total, samples = 0.0, 0
        with torch.no_grad():
            for group in _grouped(data, self.processes.count):
                for inputs, labels in self.parts.of(self.processes.share(group)):
                    size = self.size(inputs)
                    total += float(self.loss(inputs, labels)) * size
                    samples += size
        total, counted = self.processes.add(total, float(samples))
        return total / counted

    def _has_stopped(self, best: Best, epochs: int) -> bool:
        patience = self.training.patience
        return bool(patience and self.validation and len(self.losses) < epochs and best.waited() >= patience)

    @property
    def _batches_a_step(self) -> int:
        return self.training.accumulate * self.processes.count

    def _steps_an_epoch(self) -> int:
        with randomness_kept(self.train):
            batches = _count(self.train)
        return -(-batches // self._batches_a_step)

    def _set_mode(self, train: bool) -> None:
        self.module.train(train)
        if self.companion is not None:
            self.companion.train(train)

    def _save(self, checkpoint: Checkpoint, best: Best, done: bool = False) -> None:
        tensors = gather("module", state_of(self.module))
        random, numbers = read_randomness(self.train)
        if not done:
            tensors |= gather("best", best.tensors()) | gather("optimizer", self.stepper.tensors())
            tensors |= gather("random", random)
            if self.companion is not None:
                tensors |= gather("companion", state_of(self.companion))
        told: dict[str, Any] = {
            "done": done,
            "losses": self.losses,
            "validation": self.validation,
            "samples": self.samples,
            "best": best.numbers(),
            "scaler": self.stepper.numbers(),
            "rows": self.parts.rows,
            "random": numbers,
        }
        checkpoint.save(tensors, told)

    def _load(self, best: Best, tensors: dict[str, torch.Tensor], told: dict[str, Any]) -> bool:
        """Stand where ``_save`` was; returns whether training was over."""
        set_state(self.module, scatter("module", tensors))
        self.losses, self.validation, self.samples = told["losses"], told["validation"], told["samples"]
        self.parts.rows = told["rows"]
        if told["done"]:
            best.load({**self.module.state_dict()}, told["best"])
            return True
        best.load(scatter("best", tensors), told["best"])
        self.stepper.load(scatter("optimizer", tensors), told["scaler"])
        if self.companion is not None:
            set_state(self.companion, scatter("companion", tensors))
        write_randomness(scatter("random", tensors), told["random"], self.train)
        return False


@contextmanager
def batch_norm_for(module: nn.Module, size: int) -> Iterator[None]:
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


def _grouped(data: Data, size: int) -> Iterator[list[Batch]]:
    """Batches, ``size`` at a time; the last may be fewer."""
    group: list[Batch] = []
    for batch in data:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _count(data: Data) -> int:
    """How many batches a walk has: what the source says, or counted where it says nothing."""
    batches = data.source() if callable(data.source) else data.source
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:
        count = sum(1 for _ in batches)
    return max(1, count)
