"""From an exported program to the bytes of an ExecuTorch program, with XNNPACK for all that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from tauten.core.rows import resize_rows
from tauten.core.tensor import BATCH, Array, TensorSpec
from tauten.errors import ExtraMissing, LoweringError
from tauten.make.lower._export import export_again
from tauten.make.lower._notices import without_notices
from tauten.run.engines._pte import method_for

LONGEST: Final = 512
"""How far a named dimension beside the batch may go where neither the model nor the calibration data say more."""


def to_pte(programs: Mapping[str, ExportedProgram], specs: Sequence[TensorSpec], limits: Mapping[str, int]) -> bytes:
    """A ``.pte`` file with a method for each of ``programs``, weights inside.

    It is planned for sizes of at most ``limits`` by dimension. Raises ``LoweringError`` where ExecuTorch refuses it,
    ``ExtraMissing`` where it is not installed.
    """
    with without_notices(), torch.no_grad():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ModuleNotFoundError as fault:
            raise ExtraMissing(f"lowering 'executorch' ({fault.name} is not installed)", "edge") from fault
        try:
            edge = to_edge_transform_and_lower(dict(programs), partitioner=[XnnpackPartitioner()])
            for method in programs:
                _bound(edge.exported_program(method), specs, limits)
            return bytes(edge.to_executorch().buffer)
        except Exception as fault:  # each of the exporter's many passes raises errors of its own
            raise LoweringError(f"executorch: {type(fault).__name__}: {str(fault).strip()[:2000]}") from fault


def fix_batches(
    program: ExportedProgram, specs: Sequence[TensorSpec], sample: Mapping[str, Array], batches: Sequence[int]
) -> dict[str, ExportedProgram]:
    """The program exported again for each of ``batches``, by the name of its method; other dimensions stay open.

    ``sample`` is a batch of any size. Raises ``LoweringError``.
    """
    found = {}
    for rows in batches:
        fixed = tuple(
            spec.model_copy(update={"shape": tuple(rows if dim == BATCH else dim for dim in spec.shape)})
            for spec in specs
        )
        arrays = resize_rows(specs, sample, rows)
        tensors = tuple(torch.from_numpy(np.ascontiguousarray(arrays[spec.name])) for spec in specs)
        # The module runs what was made for a batch that varies, whose conditions on it are no longer asked.
        found[method_for(rows)] = export_again(program.module(check_guards=False), fixed, tensors)
    return found


def largest_sizes(
    program: ExportedProgram, specs: Sequence[TensorSpec], batch: int, seen: Mapping[str, int]
) -> dict[str, int]:
    """How far each named dimension may go: the memory of a program is planned for it.

    The batch goes to ``batch``. Others go as far as the module lets them (a table of positions ends), at most to
    ``LONGEST`` or to what was ``seen`` in the data, where that is more.
    """
    limits = {}
    for dim, size in _symbols(program, specs):
        if dim == BATCH:
            limits[dim] = batch
            continue
        upper = size.node.shape_env.var_to_range[size.node.expr].upper
        most = max(LONGEST, seen.get(dim, 0))
        limits[dim] = min(int(upper), most) if upper.is_Integer else most
    return limits


def _bound(program: ExportedProgram, specs: Sequence[TensorSpec], limits: Mapping[str, int]) -> None:
    """Set the ranges by which memory is planned: retracing has widened some of them, and narrowed others."""
    for dim, size in _symbols(program, specs):
        size.node.shape_env.var_to_range[size.node.expr] = ValueRanges(1, limits[dim])


def _symbols(program: ExportedProgram, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, torch.SymInt]]:
    """Each named dimension of an input, and the symbol that stands for it."""
    places = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec, name in zip(specs, program.graph_signature.user_inputs, strict=True):
        for dim, size in zip(spec.shape, places[str(name)].meta["val"].shape, strict=True):
            if isinstance(dim, str) and isinstance(size, torch.SymInt) and size.node.expr.is_symbol:
                yield dim, size
