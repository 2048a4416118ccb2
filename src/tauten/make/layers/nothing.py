"""What stands where layers were taken out of a residual branch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tauten.errors import PassError


@dataclass(frozen=True)
class Blank:
    """One tensor that a layer answered with: its rank and type, and its sizes where they matter.

    A size is a number, or ``(argument, axis)``: the size of that tensor among all that the layer is called with.
    """

    rank: int
    dtype: torch.dtype
    sizes: tuple[int | tuple[int, int], ...] | None = None

    def __str__(self) -> str:
        sizes = "" if self.sizes is None else f", sizes {list(self.sizes)}"
        return f"{str(self.dtype).removeprefix('torch.')} of rank {self.rank}{sizes}"


class Nothing(nn.Module):
    """Answers with zeros in the form in which the layer did that it replaces: a tensor, or tensors in tuples and dicts.

    The zeros have one element in each dimension, and broadcast where they are added: no engine computes anything for
    them. Where the code around the layer reads sizes off its answer or overwrites it, ``blueprint`` asks for zeros in
    full size. Plain attributes of the layer stay readable, and its parameters as tensors without elements, since that
    code may ask for a size or a type.
    """

    def __init__(self, form: Any, layer: nn.Module) -> None:
        super().__init__()
        self._form = form
        own = set(vars(self))
        for name, value in vars(layer).items():
            if name not in own and isinstance(value, bool | int | float | str | tuple):
                setattr(self, name, value)
        for name, parameter in layer._parameters.items():
            empty = None if parameter is None else parameter.detach().new_empty(0)
            self.register_buffer(name, empty, persistent=False)
        for index, blank in enumerate(_blanks(form)):
            # A constant of the module, not a part of its state: nothing to load, nothing to train.
            zero = torch.zeros((1,) * blank.rank, dtype=blank.dtype)
            self.register_buffer(f"zero_{index}", zero, persistent=False)

    def forward(self, *given: Any, **named: Any) -> Any:
        arguments = list(_tensors((given, named)))
        zeros = iter([getattr(self, f"zero_{index}") for index, _ in enumerate(_blanks(self._form))])

        def fill(blank: Blank) -> torch.Tensor:
            zero: torch.Tensor = next(zeros)
            if blank.sizes is None:
                return zero
            sizes = [size if isinstance(size, int) else arguments[size[0]].shape[size[1]] for size in blank.sizes]
            return zero.new_zeros(sizes)

        return _map(self._form, Blank, fill)

    def extra_repr(self) -> str:
        return ", ".join(str(blank) for blank in _blanks(self._form))


def blueprint(answer: Any, given: Any, *, sized: bool) -> Any:
    """The form of a layer's answer with a ``Blank`` for each tensor; ``given`` is all it was called with.

    With ``sized``, the zeros will have full size: a dimension that an argument has too, at the same place, follows it,
    and any other is fixed at what it is. Raises ``PassError`` for an answer in a form that cannot be rebuilt.
    """
    arguments = list(_tensors(given))

    def blank(tensor: torch.Tensor) -> Blank:
        return Blank(tensor.ndim, tensor.dtype, _sizes(tensor, arguments) if sized else None)

    return _map(answer, torch.Tensor, blank)


def _sizes(tensor: torch.Tensor, arguments: list[torch.Tensor]) -> tuple[int | tuple[int, int], ...]:
    # The argument that is most alike tells sizes first, so that all of them follow one tensor where one has them all.
    def alike(index: int) -> int:
        return sum(one == other for one, other in zip(arguments[index].shape, tensor.shape, strict=False))

    order = sorted(range(len(arguments)), key=alike, reverse=True)
    found: list[int | tuple[int, int]] = []
    for axis, size in enumerate(tensor.shape):
        same = (index for index in order if arguments[index].ndim > axis and arguments[index].shape[axis] == size)
        index = next(same, None)
        found.append(int(size) if index is None else (index, axis))
    return tuple(found)


def _map(form: Any, kind: type, make: Callable[[Any], Any]) -> Any:
    if isinstance(form, kind):
        return make(form)
    if form is None or isinstance(form, bool | int | float | str):
        return form
    if isinstance(form, Mapping):
        items = {key: _map(value, kind, make) for key, value in form.items()}
        return items if type(form) is dict else type(form)(**items)  # such as the outputs of transformers
    if type(form) in (tuple, list):
        return type(form)(_map(item, kind, make) for item in form)
    raise PassError(f"a layer answers with a {type(form).__name__}")


def _blanks(form: Any) -> Iterator[Blank]:
    yield from _walk(form, Blank)


def _tensors(form: Any) -> Iterator[torch.Tensor]:
    yield from _walk(form, torch.Tensor)


def _walk(form: Any, kind: type) -> Iterator[Any]:
    if isinstance(form, kind):
        yield form
    elif isinstance(form, Mapping):
        for value in form.values():
            yield from _walk(value, kind)
    elif isinstance(form, tuple | list):
        for item in form:
            yield from _walk(item, kind)
