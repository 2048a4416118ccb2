"""A module as one graph of ATen operations, with the named dimensions left open (``torch.export``)."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from tauten.core.rows import resize_rows
from tauten.core.tensor import BATCH, Array, Arrays, TensorSpec
from tauten.errors import LoweringError
from tauten.make.lower._zeros import drop_zero_sums
from tauten.make.model.imported import OnnxModule
from tauten.make.model.model import Model
from tauten.make.model.run import name_outputs

PREFIX = "module."
"""What the names of parameters and modules begin with in an exported program: the wrapper that names the outputs."""

EXPORTED_BATCH = 2  # torch.export takes a dimension of 1 for a constant
_LARGEST_BATCH = 65536
_FIXED = re.compile(
    r"You marked L\['inputs'\]\[(\d+)\]\.size\(\)\[(\d+)\] as dynamic "
    r"but your code specialized it to be a constant \((\d+)\)"
)
"""How torch.export tells of a dimension that was to stay open and did not."""


@dataclass(frozen=True)
class Exported:
    """An exported program, and what its outputs look like."""

    program: ExportedProgram
    outputs: tuple[TensorSpec, ...]


class _Named(nn.Module):
    """Returns the outputs as a plain tuple, in the order of their names."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.module = model.module
        self._outputs = model.outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # A tensor that is returned twice, or an input that is returned, would become one value with two names.
        found = list(name_outputs(self.module(*inputs), self._outputs).values())
        return tuple(t.clone() if any(t is o for o in (*found[:i], *inputs)) else t for i, t in enumerate(found))


def export(model: Model, example: Mapping[str, Array]) -> Exported:
    """Export ``model`` with every named dimension open.

    ``example`` is one batch of inputs; it is cut or repeated to ``EXPORTED_BATCH`` samples. Raises ``LoweringError``
    where the module cannot be exported so.
    """
    if isinstance(model.module, OnnxModule):
        raise LoweringError(
            "the model came as an ONNX file, without code that PyTorch could export: use onnx or openvino"
        )
    if any(tensor.device.type != "cpu" for tensor in (*model.module.parameters(), *model.module.buffers())):
        model = model.but(module=copy.deepcopy(model.module).cpu())
    arrays = example_inputs(model.inputs, example)
    tensors = tuple(torch.from_numpy(arrays[spec.name]) for spec in model.inputs)
    wrapper = _Named(model).eval()
    try:
        program = _attempt(wrapper, tensors, model.inputs, Dim(BATCH, min=1, max=_LARGEST_BATCH))
    except LoweringError as first:
        # A module that bounds its batch itself is refused with the range above and exported without one.
        try:
            program = _attempt(wrapper, tensors, model.inputs, Dim.DYNAMIC)
        except LoweringError:
            raise first from first.__cause__
    drop_zero_sums(program, lifted(program))
    return Exported(program, _outputs(program, model))


def export_again(module: nn.Module, specs: Sequence[TensorSpec], tensors: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Export a module that was itself made of an exported program, with every named dimension open again."""
    try:
        return _attempt(module, tensors, specs, Dim(BATCH, min=1, max=_LARGEST_BATCH))
    except LoweringError as first:
        try:
            return _attempt(module, tensors, specs, Dim.DYNAMIC)
        except LoweringError:
            raise first from first.__cause__


def _attempt(
    wrapper: nn.Module, tensors: tuple[torch.Tensor, ...], specs: Sequence[TensorSpec], batch: Any
) -> ExportedProgram:
    # Other dimensions are DYNAMIC: the bound that a table of positions sets is found, where a plain Dim is refused.
    shapes = tuple(
        {axis: batch if dim == BATCH else Dim.DYNAMIC for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in specs
    )
    try:
        with quiet(), torch.no_grad():
            # The wrapper takes its inputs as one tuple, a module made of a program takes them one by one.
            given = (shapes,) if isinstance(wrapper, _Named) else shapes
            return torch.export.export(wrapper, tensors, dynamic_shapes=given, strict=False)
    except Exception as fault:  # torch.export raises what the user's forward raises, and much of its own
        if fixed := _FIXED.search(str(fault)):
            spec, axis, size = specs[int(fixed[1])], int(fixed[2]), fixed[3]
            raise LoweringError(
                f"{spec.name}: dimension {spec.shape[axis]!r} is declared to vary, but the model fixes it at {size} "
                f"when it is exported (a recurrent layer does, or a size written in forward): declare it as {size}"
            ) from fault
        raise LoweringError(f"torch.export: {type(fault).__name__}: {str(fault).strip()[:2000]}") from fault


def example_inputs(specs: Sequence[TensorSpec], example: Mapping[str, Array]) -> Arrays:
    """The example with ``EXPORTED_BATCH`` samples, and no open dimension of size 0 or 1."""
    arrays = resize_rows(specs, example, EXPORTED_BATCH)
    for spec in specs:
        array = arrays[spec.name]
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and array.shape[axis] < 2:
                array = np.repeat(array, 2, axis=axis)
        arrays[spec.name] = np.ascontiguousarray(array)
    return arrays


def lifted(program: ExportedProgram) -> list[torch.Tensor | None]:
    """What stands behind each placeholder of the graph: a parameter, buffer or constant; ``None`` for an input."""
    found: list[torch.Tensor | None] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            found.append(None)
        elif spec.target in program.state_dict:
            found.append(program.state_dict[spec.target])
        elif isinstance(program.constants.get(spec.target or ""), torch.Tensor):
            found.append(program.constants[spec.target or ""])
        else:
            raise LoweringError(f"torch.export: an input of kind {spec.kind.name} ({spec.target}) is not supported")
    return found


def module_path(node: torch.fx.Node) -> str:
    """The path of the user's module that a node came from, such as ``features.0``; empty at the top."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return strip(path)


def strip(name: str) -> str:
    """A name without the wrapper."""
    return "" if name == PREFIX[:-1] else name.removeprefix(PREFIX)


def _outputs(program: ExportedProgram, model: Model) -> tuple[TensorSpec, ...]:
    """Specs of the outputs: a size that comes from a named dimension of an input carries its name."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    for spec, placeholder in zip(model.inputs, program.graph_signature.user_inputs, strict=True):
        for dim, size in zip(spec.shape, placeholders[str(placeholder)].meta["val"].shape, strict=True):
            if isinstance(dim, str):
                names.setdefault(str(size), dim)
    returned = next(node for node in program.graph.nodes if node.op == "output").args[0]
    specs = []
    for name, node in zip(model.outputs, returned, strict=True):
        value = node.meta["val"]
        shape = [
            size if isinstance(size, int) else names.get(str(size), f"{_identifier(name)}_{axis}")
            for axis, size in enumerate(value.shape)
        ]
        specs.append(TensorSpec(name=name, shape=tuple(shape), dtype=str(value.dtype)))
    return tuple(specs)


def _identifier(name: str) -> str:
    return "d_" + "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' notices on what they skip or will rename; their errors are exceptions and stay."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    before: dict[str, Any] = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
