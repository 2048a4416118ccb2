"""Calling a module by names, whatever its ``forward`` takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import TaskError

Tensors = dict[str, torch.Tensor]


def name_outputs(returned: Any, names: Sequence[str] = ()) -> Tensors:
    """Outputs by name: a mapping's keys, ``output`` for one tensor, ``output_0``, … for several; or ``names``.

    Entries of a mapping that are no tensors (``None``, caches) are left out.
    """
    if isinstance(returned, torch.Tensor):
        found = {"output": returned}
    elif isinstance(returned, Mapping):
        found = {str(key): value for key, value in returned.items() if isinstance(value, torch.Tensor)}
    elif isinstance(returned, tuple | list) and all(isinstance(value, torch.Tensor) for value in returned):
        found = {f"output_{index}": value for index, value in enumerate(returned)}
        found = {"output": returned[0]} if len(returned) == 1 else found
    else:
        raise TaskError(
            f"model: expected forward to return a tensor, a tuple of tensors or a dict of tensors, "
            f"got a {type(returned).__name__}"
        )
    if not names:
        return found
    if len(names) != len(found):
        raise TaskError(f"outputs: expected {len(found)} names for {list(found)}, got {list(names)}")
    return dict(zip(names, found.values(), strict=True))


def to_tensor(value: Any) -> torch.Tensor:
    """A tensor of an array, which shares memory where it can: read-only and reversed arrays are copied."""
    return value if isinstance(value, torch.Tensor) else torch.from_numpy(np.require(value, requirements=("C", "W")))


def call(module: nn.Module, specs: Sequence[TensorSpec], names: Sequence[str], inputs: Mapping[str, Any]) -> Tensors:
    """Outputs by name; inputs are passed in the order of ``specs``, as tensors on the module's device."""
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    given = [to_tensor(inputs[spec.name]).to(device) for spec in specs]
    return name_outputs(module(*given), names)


def forward(
    module: nn.Module, specs: Sequence[TensorSpec], names: Sequence[str], inputs: Mapping[str, Array]
) -> Arrays:
    """Outputs by name as NumPy arrays, without gradients, in evaluation mode."""
    was = module.training
    module.eval()
    try:
        with torch.inference_mode():
            found = call(module, specs, names, inputs)
            return {name: tensor.cpu().numpy() for name, tensor in found.items()}
    finally:
        module.train(was)
