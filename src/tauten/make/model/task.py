"""What the user brings: a model, its inputs, data, and a metric.

Importing this needs no PyTorch, so that a machine which only runs artifacts can evaluate them with the same task file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tauten.artifact.manifest import NAME
from tauten.core.tensor import Array, Arrays, TensorSpec, check_arrays
from tauten.errors import InputError, TaskError

if TYPE_CHECKING:
    from torch import nn

    from tauten.run.measure.metrics.metric import Metric

Batch = tuple[Arrays, Array | None]
Source = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Data:
    """Batches that can be walked any number of times, as ``(inputs by name, labels or None)`` in NumPy.

    ``source`` gives batches in any of these forms: ``(inputs, labels)`` as a tuple or list of two; or ``inputs`` alone,
    unlabelled. ``inputs`` is one array (where the model has one input) or a dict of arrays by name.
    Arrays may be NumPy arrays, PyTorch tensors or nested lists. A function that returns an iterable is called anew for
    each walk.
    """

    source: Source
    inputs: tuple[TensorSpec, ...]
    what: str = "data"

    def __post_init__(self) -> None:
        if not callable(self.source) and iter(self.source) is self.source:
            raise TaskError(
                f"{self.what}: expected batches that can be walked more than once (a list, a DataLoader, or a function "
                f"that returns an iterator), got a {type(self.source).__name__}, which is spent after one walk"
            )

    def __iter__(self) -> Iterator[Batch]:
        batches = self.source() if callable(self.source) else self.source
        empty = True
        for index, raw in enumerate(batches):
            empty = False
            try:
                yield self._batch(raw)
            except InputError as fault:
                raise TaskError(f"{self.what}, batch {index}: {fault}") from None
        if empty:
            raise TaskError(f"{self.what}: expected at least one batch, got none")

    def _batch(self, raw: Any) -> Batch:
        labelled = isinstance(raw, tuple | list) and len(raw) == 2
        given, labels = raw if labelled else (raw, None)
        if not isinstance(given, Mapping):
            if len(self.inputs) != 1:
                names = [spec.name for spec in self.inputs]
                raise InputError(f"expected inputs as a dict with {names}, got a {type(given).__name__}")
            given = {self.inputs[0].name: given}
        arrays = {name: to_array(value) for name, value in given.items()}
        check_arrays(self.inputs, arrays)
        return arrays, None if labels is None else to_array(labels)


def to_array(value: Any) -> Array:
    """A NumPy array of an array, a tensor on any device, or nested lists."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object:
        raise InputError(f"expected an array of numbers, got a {type(value).__name__} of objects")
    return array


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model to optimize, with all that is needed to judge it.

    Attributes:
        model: an ``nn.Module``, or a function without arguments that builds one.
        inputs: one spec an input, in the order of the module's ``forward``.
        calibrate: batches that show what real inputs look like; only pruning by the loss reads labels, if any.
        validate: batches that candidates are compared on. Defaults to ``calibrate`` where the metric needs no labels.
        test: batches that are looked at once, for the winner and the baselines.
        train: batches for passes that train.
        metric: a bundled metric's name, a ``Metric``, or a function ``(outputs, labels) -> float``.
        outputs: names for the outputs of ``forward``; default: a dict's keys, ``output``, or ``output_0``, ….
        teacher: whom passes that distil learn from, a module or a function that builds one: a larger one, or several as
            one, which takes the same inputs and answers in the same shapes. Default: the model, as it came.
        loss: ``(outputs by name, labels) -> scalar tensor``; default: cross entropy of the first output for integer
            labels, mean squared error for others.
        epochs: how many epochs ``fit`` trains the model for; 0 says that it is trained already.
        learning_rate: the peak rate of ``fit`` and of the passes that train.
        name: what the artifacts are called: letters, digits and ``_ . + -``.

    Raises ``TaskError`` where a value breaks a rule.
    """

    model: nn.Module | Callable[[], nn.Module]
    inputs: tuple[TensorSpec, ...]
    calibrate: Source
    validate: Source | None = None
    test: Source | None = None
    train: Source | None = None
    metric: str | Metric | Callable[[Arrays, Any], float] = "accuracy"
    outputs: tuple[str, ...] = ()
    teacher: nn.Module | Callable[[], nn.Module] | None = None
    loss: Callable[[Mapping[str, Any], Any], Any] | None = None
    epochs: int = 0
    learning_rate: float = 1e-3
    name: str = "model"
    _data: dict[str, Data] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        specs = tuple(self.inputs)
        if not specs or not all(isinstance(spec, TensorSpec) for spec in specs):
            raise TaskError(f"inputs: expected a list of tauten.TensorSpec, got {self.inputs!r}")
        if not callable(self.model):
            raise TaskError(f"model: expected an nn.Module or a function that builds one, got {self.model!r}")
        if self.teacher is not None and not callable(self.teacher):
            raise TaskError(f"teacher: expected an nn.Module or a function that builds one, got {self.teacher!r}")
        if self.epochs < 0 or (self.epochs and self.train is None):
            raise TaskError(f"epochs: expected 0, or a positive number together with train, got {self.epochs}")
        if not self.learning_rate > 0:
            raise TaskError(f"learning_rate: expected a number above 0, got {self.learning_rate}")
        if not re.fullmatch(NAME, self.name):
            raise TaskError(f"name: expected letters, digits and _ . + - (128 at most), got {self.name!r}")
        object.__setattr__(self, "inputs", specs)
        for what in ("train", "calibrate", "validate", "test"):
            source = getattr(self, what)
            if source is not None:
                self._data[what] = Data(source, specs, what)

    def data(self, what: str) -> Data:
        """The batches called ``train``, ``calibrate``, ``validate`` or ``test``; ``TaskError`` where there are none."""
        if what not in self._data:
            raise TaskError(f"{what}: expected batches, but the task has none; give tauten.Task(..., {what}=...)")
        return self._data[what]

    def has(self, what: str) -> bool:
        """Whether the task has batches of that name."""
        return what in self._data

    def build(self) -> nn.Module:
        """The module, built where ``model`` is a function, in evaluation mode. Needs PyTorch."""
        from tauten.make.model.build import build

        return build(self)

    def fit(self, seed: int = 0) -> Task:
        """The task with its model trained for ``epochs`` on ``train``; the task itself where ``epochs`` is 0."""
        from tauten.make.model.fit import fit

        return fit(self, seed)
