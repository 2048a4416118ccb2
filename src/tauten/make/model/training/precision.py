"""Training in fewer bits: what is computed in them, and how pictures lie in memory meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import nn

from tauten.make.model.run import Tensors
from tauten.make.model.training.trial import trying

Precision = Literal["float32", "bfloat16", "float16"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """What a forward pass runs under: matrix products and convolutions in ``precision``, sums and norms in float32."""
    dtype = _DTYPES.get(precision, torch.bfloat16)
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def in_float32(outputs: Tensors) -> Tensors:
    """The same outputs, those in 16 bits widened, so that a loss is computed in float32."""
    half = (torch.float16, torch.bfloat16)
    return {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in outputs.items()}


@contextmanager
def channels_last(precision: Precision, trial: Callable[[], object], *modules: nn.Module) -> Iterator[bool]:
    """Kernels of 2-d convolutions stored channels last while this lasts, where training is in 16 bits.

    The 16-bit kernels of processors and GPUs want it so: in rows they lose what the fewer bits gain. Numbers stay
    where they are in the tensor, strides alone change. ``trial`` runs the modules on one batch; where it fails, as a
    ``view`` over channels does that wants them in rows, they are stored as they were and ``False`` is given.
    """
    kernels = [kernel for module in modules for kernel in kernels_of(module, dimensions=(2,))]
    kernels = kernels if precision != "float32" else []
    if not kernels:
        yield False
        return
    strides = [kernel.stride() for kernel in kernels]
    store_channels_last(kernels)
    worked = _runs(trial, modules)
    if not worked:
        _restore(kernels, strides)
    try:
        yield worked
    finally:
        if worked:
            _restore(kernels, strides)


def kernels_of(module: nn.Module, dimensions: tuple[int, ...] = (2, 3)) -> list[nn.Parameter]:
    """Kernels of convolutions over so many dimensions that lie in rows, each once."""
    kinds = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
    wanted = tuple(kind for dimension in dimensions for kind in kinds[dimension])
    found = dict.fromkeys(layer.weight for layer in module.modules() if isinstance(layer, wanted))
    return [kernel for kernel in found if isinstance(kernel, nn.Parameter) and kernel.is_contiguous()]


def store_channels_last(kernels: list[nn.Parameter]) -> None:
    """The same numbers, the channels of each place side by side."""
    for kernel in kernels:
        form = torch.channels_last if kernel.ndim == 4 else torch.channels_last_3d
        kernel.data = kernel.data.contiguous(memory_format=form)


def store_in_rows(kernels: list[nn.Parameter]) -> None:
    """The same numbers, in the order of their dimensions."""
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=torch.contiguous_format)


def _runs(trial: Callable[[], object], modules: tuple[nn.Module, ...]) -> bool:
    try:
        with trying(*modules):
            trial()
    except RuntimeError:
        return False
    return True


def _restore(kernels: list[nn.Parameter], strides: list[tuple[int, ...]]) -> None:
    for kernel, stride in zip(kernels, strides, strict=True):
        rows = torch.empty_strided(kernel.shape, stride, dtype=kernel.dtype, device=kernel.device)
        kernel.data = rows.copy_(kernel.data)
