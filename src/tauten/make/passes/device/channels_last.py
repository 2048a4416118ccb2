"""Pictures with their channels side by side in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tauten.core.tensor import Array, Arrays
from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import forward
from tauten.make.model.training.precision import kernels_of, store_channels_last, store_in_rows
from tauten.make.passes.device._peak import compare, measure_peak

__all__ = ["ChannelsLast"]

_TOLERANCE = 1e-4  # of the largest answer: sums are added in another order


@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Stores the kernels of convolutions channels last, which makes their outputs lie so too.

    The kernels of processors and GPUs want it in 16 bits, and often in 32: a picture's channels are read together. The
    answers are the same but for the order of additions. Where the model's code does not bear it, as a ``view`` over
    channels does not, the kernels before it are left in rows and named under ``refused``.
    """

    name: ClassVar[str] = "device.channels_last"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, model: Model, context: Context) -> Change:
        """Change how kernels lie. Raises ``PassError`` where there is no convolution of two or three dimensions."""
        kernels = kernels_of(model.module)
        if not kernels:
            raise PassError(f"{self.name}: the model has no 2-d or 3-d convolution whose kernel lies in rows")
        example = next(iter(context.task.data("calibrate")))[0]
        before = forward(model.module, model.inputs, model.outputs, example)
        peak = measure_peak(model, example)
        names = {id(parameter): name for name, parameter in model.module.named_parameters()}
        refused: dict[str, str] = {}
        store_channels_last(kernels)
        if _why_not(model, example, before) is not None:
            store_in_rows(kernels)
            for kernel in kernels:
                store_channels_last([kernel])
                reason = _why_not(model, example, before)
                if reason is not None:
                    store_in_rows([kernel])
                    refused[names[id(kernel)]] = reason
        stored = [names[id(kernel)] for kernel in kernels if names[id(kernel)] not in refused]
        notes: dict[str, Any] = {
            "channels_last": stored,
            "refused": refused,
            "runs": {
                "pytorch": "channels last",
                "eager": "channels last: the graph keeps how weights lie",
                "onnx": "ONNX Runtime lays kernels out itself",
            },
            "peak": compare(peak, measure_peak(model, example)),
        }
        return Change(model.module, notes)


def _why_not(model: Model, example: Arrays, before: Mapping[str, Array]) -> str | None:
    """Why the module as it is now is not what it was; ``None`` where it is."""
    try:
        after = forward(model.module, model.inputs, model.outputs, example)
    except RuntimeError as fault:
        return f"the model's code wants channels in rows: {str(fault).strip().splitlines()[0][:200]}"
    for name, array in after.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        size = float(np.abs(before[name]).max(initial=0.0))
        if not np.allclose(array, before[name], rtol=0, atol=_TOLERANCE * size + 1e-6, equal_nan=True):
            return f"{name} is no longer what it was"
    return None
