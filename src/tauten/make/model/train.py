"""One training loop, for a task's first fit and for the passes that train."""

from __future__ import annotations

import json
import math
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
from tauten.make.model.training.loop import Loop, OnStep, batch_norm_for
from tauten.make.model.training.memory import PeakMemory, frugal, held_mib, trim
from tauten.make.model.training.parts import Parts, check_divisible, largest_rows
from tauten.make.model.training.precision import Precision, channels_last, computing_in, in_float32
from tauten.make.model.training.processes import Processes
from tauten.make.model.training.randomness import randomness_kept
from tauten.make.model.training.recompute import recomputing
from tauten.make.model.training.settings import Trained, Training
from tauten.make.model.training.stepper import Stepper
from tauten.make.model.training.trial import trying
from tauten.make.model.training.work import work_mib

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
            stack.enter_context(frugal(self.training.max_memory_mib is not None))
            stack.enter_context(processes.holding(*learning, *self.teachers))
            processes.follow_main(*learning)
            saves = self.training.saves_memory
            plain = (
                self._step_mib(module, train, validate, None, exact=True) if saves and processes.count == 1 else None
            )
            trial = self._trial(module, train)
            stack.enter_context(channels_last(self.training.precision, trial, module, *self.teachers))
            refused: dict[str, str] = {}
            recomputed = stack.enter_context(recomputing(self.training.recompute, module, trial, refused))
            rows = self._rows(module, train, validate, device)
            saved = self._step_mib(module, train, validate, rows) if saves and processes.count == 1 else None
            memory = PeakMemory(device)
            parts = Parts(self.inputs, rows, self.training.max_memory_mib, memory)
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
                parts=parts,
            )
            trained = loop.run(checkpoint)
        for parameter in parameters:
            parameter.grad = None
        module.eval()
        return replace(
            trained,
            recomputed=recomputed,
            not_recomputed=refused,
            rows=parts.rows,
            step_mib=(plain, saved) if saves and processes.count == 1 else None,
            peak_mib=memory.mib(),
        )

    def _rows(self, module: nn.Module, train: Data, validate: Data | None, device: torch.device) -> int | None:
        """How many samples are computed at once, where memory is bounded; ``PassError`` where one is too many."""
        limit = self.training.max_memory_mib
        if limit is None:
            return None
        check_divisible(self.inputs, "training")
        with randomness_kept(train):
            count = self._samples(next(iter(train))[0])
        # What is set up once, by the first gradients and the first step, is no part of what rows decide. Not with the
        # objective: one that keeps a teacher's answers would take this for a batch of the data.
        replace(self, objective=_sum_of)._step(module, train, validate, 1)()
        one = nn.Parameter(torch.zeros(1, device=device))
        one.grad = torch.zeros_like(one)
        torch.optim.AdamW([one]).step()
        trim()

        def needed(rows: int) -> float | None:
            held, work = held_mib(device), work_mib(self._step(module, train, validate, rows), device)
            return None if held is None or work is None else held + work

        rows, _ = largest_rows(count, needed, limit, "training")
        return rows

    def _step_mib(
        self, module: nn.Module, train: Data, validate: Data | None, rows: int | None, exact: bool = False
    ) -> float | None:
        """By how much memory grows in one step; ``None`` where that is unknown, or more than there is."""
        trainer = (
            replace(self, training=Training(**{**self.training.to_json(), "precision": "float32"})) if exact else self
        )
        try:
            found = work_mib(trainer._step(module, train, validate, rows), _device(module))
        except PassError:  # what cannot be computed is told where it is trained
            return None
        return round(found, 1) if found is not None and math.isfinite(found) else None

    def _step(self, module: nn.Module, train: Data, validate: Data | None, rows: int | None) -> Callable[[], object]:
        """The gradients of the first ``rows`` samples, with all in memory that training keeps. Leaves no trace."""
        with randomness_kept(train):
            inputs, labels = next(iter(train))
        inputs, labels = next(Parts(self.inputs, rows).of([(inputs, labels)]))
        learning = [module] if self.companion is None else [module, self.companion]
        parameters = [one for part in learning for one in part.parameters() if one.requires_grad]

        def step() -> None:
            # Filled, for pages that were never written are not in memory: two moments, and the best weights.
            kept = [torch.ones_like(one) for one in parameters for _ in range(2)]
            if validate is not None and self.training.keep_best:
                kept += [one.detach().clone() for one in module.state_dict().values() if isinstance(one, torch.Tensor)]
            was = module.training
            module.train()
            try:
                with trying(*learning), torch.enable_grad(), batch_norm_for(module, self._samples(inputs)):
                    torch.autograd.backward(self._loss(module, inputs, labels))
            finally:
                module.train(was)
                for one in parameters:
                    one.grad = None

        return step

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


def _sum_of(outputs: Tensors, inputs: Arrays, labels: torch.Tensor | None) -> torch.Tensor:
    sums = [tensor.sum() for tensor in outputs.values() if tensor.requires_grad]
    return sum(sums[1:], sums[0])


def _held(module: nn.Module, vectors: Collection[str]) -> list[nn.Parameter]:
    """The parameters in which zeros stay zero."""
    learning = ((name, one) for name, one in module.named_parameters() if one.requires_grad)
    return [one for name, one in learning if one.ndim >= 2 or name in vectors]


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
