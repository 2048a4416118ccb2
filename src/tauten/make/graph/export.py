"""A module as an exported program."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from tauten.core.rows import resize_rows
from tauten.core.tensor import Array, TensorSpec
from tauten.errors import PassError


def export(module: nn.Module, specs: Sequence[TensorSpec], example: Mapping[str, Array]) -> ExportedProgram:
    """The module's ATen program for inputs of any batch; ``PassError`` where ``torch.export`` cannot follow it."""
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    # Two samples: a batch of one would be baked in as a constant.
    arrays = resize_rows(specs, example, 2)
    inputs = tuple(torch.as_tensor(arrays[spec.name]).to(device) for spec in specs)
    # AUTO: a size that the module fixes itself becomes a constant of the program instead of an error.
    shapes = tuple({axis: Dim.AUTO for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in specs)
    arguments = inspect.signature(module.forward).parameters.values()
    # torch.export sees ``*inputs`` as one argument, a tuple.
    nested = any(argument.kind is argument.VAR_POSITIONAL for argument in arguments)
    was = module.training
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, inputs, dynamic_shapes=(shapes,) if nested else shapes, strict=False)
    except Exception as fault:
        raise PassError(
            f"torch.export cannot follow the model: {type(fault).__name__}: {str(fault).strip().splitlines()[0]}"
        ) from fault
    finally:
        module.train(was)
