"""One training loop, for a task's first fit and for the passes that train."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import PassError, TaskError
from tauten.make.model.apply import seed_all
from tauten.make.model.digest import code_of, digest
from tauten.make.model.pass_ import Context, Pass, Progress, silent
from tauten.make.model.run import Tensors, call, to_tensor
from tauten.make.model.task import Data
from tauten.make.model.training.checkpoint import Checkpoint, Checkpoints, identify
from tauten.make.model.training.loop import Loop, OnStep
from tauten.make.model.training.memory import PeakMemory
from tauten.make.model.training.precision import Precision, channels_last, computing_in, in_float32
from tauten.make.model.training.processes import Processes
from tauten.make.model.training.randomness import randomness_kept
from tauten.make.model.training.recompute import recomputing
from tauten.make.model.training.settings import Trained, Training
from tauten.make.model.training.stepper import Stepper

__all__ = ["Checkpoints", "Objective", "OnStep", "Precision", "Trained", "Trainer", "Training", "checkpoints_of"]

Objective = Callable[[Tensors, Arrays, torch.Tensor | None], torch.Tensor]
"""``(outputs by name, inputs by name, labels or None) -> scalar``: what training makes small."""


@dataclass(frozen=True)
class Trainer:
    """Trains a module in place on batches.

    ``inputs`` and ``outputs`` are the module's borders, as in ``Model``. ``teachers`` are the modules that the
    objective calls; ``companion`` one of its own that learns along, and is of no use afterwards. With ``checkpoints``,
    a training that was killed goes on after its last whole epoch, and gives the same weights.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    training: Training
    objective: Objective
    seed: int = 0
    progress: Progress = silent
    teachers: tuple[nn.Module, ...] = ()
    companion: nn.Module | None = None
    checkpoints: Checkpoints | None = None

    def __call__(
        self,
        module: nn.Module,
        train: Data,
        validate: Data | None = None,
        *,
        keep_zeros: bool = False,
        held: Collection[str] = (),
        on_step: OnStep | None = None,
        settled: float = 0.0,
    ) -> Trained:
        """Train ``module`` and leave it in evaluation mode, with the best weights where ``validate`` is given.

        ``keep_zeros`` holds weights (of two dimensions and more) that are exactly zero at zero, and those in the
        vectors named by ``held``, which have zeros because a pass made them. ``on_step`` may set more to zero, or free
        some; ``settled`` is the share of all steps after which it does so no more, and weights of an earlier epoch are
        then never handed back as the best. Raises ``PassError`` where nothing can be trained or the loss is not finite,
        ``TaskError`` for data that does not fit.
        """
        seed_all(self.seed)
        learning = [module] if self.companion is None else [module, self.companion]
        parameters = [one for part in learning for one in part.parameters() if one.requires_grad]
        if not any(one.requires_grad for one in module.parameters()):
            raise PassError("training: the module has no parameter that requires a gradient, so nothing can be trained")
        processes = Processes()
        checkpoint = self._checkpoint(module, train, validate, keep_zeros, processes)
        device = _device(module) if processes.count == 1 else processes.device
        with ExitStack() as stack:
            stack.enter_context(processes.holding(*learning, *self.teachers))
            processes.follow_main(*learning)
            trial = self._trial(module, train)
            stack.enter_context(channels_last(self.training.precision, trial, module, *self.teachers))
            recomputed = stack.enter_context(recomputing(self.training.recompute, module, trial))
            memory = PeakMemory(device)
            loop = Loop(
                module=module,
                companion=self.companion,
                train=train,
                validate=validate,
                training=self.training,
                seed=self.seed,
                loss=lambda inputs, labels: self._loss(module, inputs, labels),
                size=self._samples,
                stepper=Stepper(parameters, self.training, processes, _held(module, held) if keep_zeros else []),
                processes=processes,
                progress=self.progress,
                on_step=on_step,
                settled=settled,
            )
            trained = loop.run(checkpoint)
        for parameter in parameters:
            parameter.grad = None
        module.eval()
        return replace(trained, recomputed=recomputed, peak_mib=memory.mib())

    def _checkpoint(
        self, module: nn.Module, train: Data, validate: Data | None, keep_zeros: bool, processes: Processes
    ) -> Checkpoint | None:
        if self.checkpoints is None:
            return None
        parts = {
            "key": self.checkpoints.key,
            "training": self.training.to_json(),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": self.outputs,
            "seed": self.seed,
            "keep_zeros": keep_zeros,
            "processes": processes.count,
        }
        modules = (module,) if self.companion is None else (module, self.companion)
        with randomness_kept(train), randomness_kept(validate):
            key = identify(json.loads(json.dumps(parts)), modules, (train, validate))
        return Checkpoint(self.checkpoints.folder / f"{key}.safetensors", writes=processes.is_main)

    def _loss(self, module: nn.Module, inputs: Arrays, labels: Array | None) -> torch.Tensor:
        with computing_in(self.training.precision, _device(module)):
            outputs = in_float32(call(module, self.inputs, self.outputs, inputs))
        device = next(iter(outputs.values())).device
        return self.objective(outputs, inputs, None if labels is None else to_tensor(labels).to(device))

    def _trial(self, module: nn.Module, train: Data) -> Callable[[], object]:
        """One batch forward, as training does it."""

        def trial() -> None:
            with randomness_kept(train):
                inputs, labels = next(iter(train))
            was = module.training
            module.train(self._samples(inputs) > 1)
            try:
                self._loss(module, inputs, labels)
            finally:
                module.train(was)

        return trial

    def _samples(self, inputs: Arrays) -> int:
        for spec in self.inputs:
            if spec.batch_axis is not None:
                size = int(inputs[spec.name].shape[spec.batch_axis])
                if size == 0:
                    raise TaskError("training: expected batches of at least one sample, got an empty one")
                return size
        return 1


def checkpoints_of(context: Context, step: Pass, teachers: tuple[nn.Module, ...] = ()) -> Checkpoints | None:
    """Where the training of a pass is kept, known by its parameters and its teachers; ``None`` where nowhere."""
    if context.checkpoints is None:
        return None
    taught = [digest(teacher) for teacher in teachers]
    known = {"step": step.to_json(), "teachers": taught, "loss": code_of(context.task.loss)}
    return Checkpoints(context.checkpoints, json.dumps(known, sort_keys=True))


def _held(module: nn.Module, vectors: Collection[str]) -> list[nn.Parameter]:
    """The parameters in which zeros stay zero."""
    learning = ((name, one) for name, one in module.named_parameters() if one.requires_grad)
    return [one for name, one in learning if one.ndim >= 2 or name in vectors]


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
