"""Takes the graph of a model with early exits apart: a graph a stage, each with what only it and later ones need.

The exported graph computes everything and then chooses, row by row: ``Where(sure_1, exit_1, Where(sure_2, exit_2,
whole))``. What ``sure_i`` and ``exit_i`` need, and earlier stages do not, is stage ``i``. An engine runs the stages in
turn, on the rows that are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from tauten.artifact.manifest import Stage
from tauten.core.rows import count_rows, take_rows
from tauten.core.tensor import BATCH, Array, Arrays, TensorSpec
from tauten.errors import LoweringError, MismatchError
from tauten.make.layers.early_exit import EarlyExits
from tauten.make.lower._compare import TOLERANCE, difference, open_session, run_session
from tauten.make.lower._graph import all_nodes, rename
from tauten.make.model.model import Model
from tauten.run.engines._stages import Rows, Stages, Step

GRAPH_NAME: Final = "graph.onnx"
_FORWARDED: Final = "handed_on_"
_DECIDES: Final = "leaves_"
_INT8_TOLERANCE: Final = 0.05  # a value on the border of two 8-bit steps may take the other in a smaller batch


Split = tuple[list[ModelProto], tuple[Stage, ...]]
"""The graphs of all stages in order, with their weights inside, and what the manifest tells of them."""


def count_exits(module: object) -> int:
    """How many early exits a module has that is to be lowered in stages."""
    return len(module.heads) if isinstance(module, EarlyExits) else 0


def choices(graph: GraphProto, count: int) -> list[NodeProto]:
    """The ``count`` nodes that choose between an exit's answer and a later one, the first exit's first."""
    producers = {name: node for node in graph.node for name in node.output}
    found: list[NodeProto] = []
    name = graph.output[0].name
    while len(found) < count:
        node = producers.get(name)
        if node is None or node.op_type != "Where":
            made_by = "an input" if node is None else node.op_type
            raise LoweringError(
                f"early exits: expected {count} choices at the end of the graph, found {made_by} instead"
            )
        found.append(node)
        name = node.input[2]
    return found


def choosable(graph: GraphProto, count: int) -> list[str]:
    """The answers that are chosen from: those of the exits, and last the whole model's."""
    wheres = choices(graph, count)
    return [*(where.input[1] for where in wheres), *(where.input[2] for where in wheres[-1:])]


def decisions(graph: GraphProto, count: int) -> list[str]:
    """Names of the nodes that find how sure an exit is: what no answer is computed from."""
    computed = _ancestors(graph, choosable(graph, count))
    deciding = _ancestors(graph, [where.input[0] for where in choices(graph, count)])
    return [graph.node[index].name for index in sorted(deciding - computed)]


def split(graph: ModelProto, model: Model, exits: EarlyExits, samples: Arrays) -> Split:
    """Stages of ``graph``, which is left as it was; held against it on ``samples``.

    Raises ``LoweringError`` where the graph does not end in the exits' choices or a stage needs what cannot be cut into
    rows, ``MismatchError`` where the stages answer otherwise.
    """
    wheres = choices(graph.graph, len(exits.heads))
    ends = [(where.input[0], where.input[1]) for where in wheres] + [("", wheres[-1].input[2])]
    parts = _parts(graph.graph, ends, {spec.name for spec in model.inputs})
    borders = sorted({name for part in parts for name in part.reads} - {spec.name for spec in model.inputs})
    values = _classify(graph, borders, model, samples)
    graphs = [_build(graph, part, parts[index + 1 :], values, index) for index, part in enumerate(parts)]
    whole = tuple(f"{_FORWARDED}{borders.index(name)}" for name in borders if not values[name].rows)
    for stage_graph in graphs:
        rename(stage_graph.graph, lambda name: f"{_FORWARDED}{borders.index(name)}" if name in values else name)
    stages = tuple(
        Stage(
            graph=GRAPH_NAME if index == 0 else f"graph_{index + 1}.onnx",
            decides=f"{_DECIDES}{index}" if decides else "",
            whole=tuple(value.name for value in graphs[index].graph.output if value.name in whole),
            at=exits.paths[index] if decides else "",
            confidence=exits.confidence if decides else "",
            threshold=float(exits.thresholds[index]) if decides else None,
            share=exits.shares[index] if decides else 1 - sum(exits.shares),
        )
        for index, (decides, _) in enumerate(ends)
    )
    _check((graphs, stages), graph, ends, model, samples)
    return graphs, stages


@dataclass(frozen=True)
class _Part:
    """The nodes of a stage in order, and the values that it reads from outside: inputs, and what others make."""

    nodes: tuple[NodeProto, ...]
    reads: tuple[str, ...]
    decides: str
    answer: str


@dataclass(frozen=True)
class _Value:
    """A value that is handed on: its type, whether it has a row a sample, and its dimensions, names for what varies."""

    kind: int
    rows: bool
    dims: tuple[int | str, ...]


def _parts(graph: GraphProto, ends: Sequence[tuple[str, str]], inputs: set[str]) -> list[_Part]:
    made: dict[str, int] = {name: index for index, node in enumerate(graph.node) for name in node.output}
    free = _size_only(graph)
    taken: set[int] = set()
    parts = []
    for decides, answer in ends:
        own = _ancestors(graph, [name for name in (decides, answer) if name]) - taken
        taken |= own
        # What an earlier stage has made is read from there, unless it costs nothing to make again: sizes, and floats of
        # 8-bit numbers, which are smaller to hand on and which the runtime fuses with what reads them.
        again: set[int] = set()
        reads: dict[str, None] = {}
        left = [name for index in sorted(own) for name in graph.node[index].input]
        left += [name for name in (decides, answer) if name and made.get(name) not in own]
        while left:
            name = left.pop()
            if name in inputs:
                reads[name] = None
            elif name in made and made[name] not in own | again:
                node = graph.node[made[name]]
                if made[name] in free or node.op_type == "DequantizeLinear":
                    again.add(made[name])
                    left += node.input
                else:
                    reads[name] = None
        nodes = tuple(graph.node[index] for index in sorted(own | again))
        parts.append(_Part(nodes, tuple(sorted(reads)), decides, answer))
    return parts


def _size_only(graph: GraphProto) -> set[int]:
    """Nodes whose results do not depend on what is in the inputs, only on its shape."""
    constant = {tensor.name for tensor in graph.initializer} | {""}
    found: set[int] = set()
    for index, node in enumerate(graph.node):
        known = all(name in constant for name in node.input) and not node.op_type.startswith("Random")
        if node.op_type in ("Shape", "Size") or known:
            found.add(index)
            constant.update(node.output)
    return found


def _ancestors(graph: GraphProto, names: Sequence[str]) -> set[int]:
    """Places of all nodes that ``names`` are computed by."""
    made = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    found: set[int] = set()
    left = [made[name] for name in names if name in made]
    while left:
        index = left.pop()
        if index not in found:
            found.add(index)
            left += [made[name] for name in graph.node[index].input if name in made]
    return found


def _classify(graph: ModelProto, names: Sequence[str], model: Model, samples: Arrays) -> dict[str, _Value]:
    """Which values have a row a sample, found by running two batches; ``LoweringError`` for what has neither."""
    if not names:
        return {}
    opened = ModelProto()
    opened.CopyFrom(graph)
    opened.graph.output.extend(ValueInfoProto(name=name) for name in names)
    session = open_session(opened, optimize=False)
    known = {value.name: value.type.tensor_type for value in onnx.shape_inference.infer_shapes(graph).graph.value_info}
    shapes = []
    for size in (2, 3):
        batch = take_rows(model.inputs, samples, [index % count_rows(model.inputs, samples) for index in range(size)])
        shapes.append(run_session(session, list(names), batch))
    found = {}
    for index, name in enumerate(names):
        two, three = shapes[0][name].shape, shapes[1][name].shape
        rows = len(two) > 0 and (two[0], three[0]) == (2, 3)
        if two[rows:] != three[rows:]:
            raise LoweringError(
                f"early exits: what is handed on to later layers ({name}) has shape {two} for 2 samples and {three} "
                "for 3: expected samples along the first dimension"
            )
        inferred = [dim.dim_value or None for dim in known[name].shape.dim] if name in known else []
        sizes = inferred if len(inferred) == len(two) else [None] * len(two)
        dims = tuple(size or f"d_{index}_{axis}" for axis, size in enumerate(sizes))
        kind = helper.np_dtype_to_tensor_dtype(shapes[0][name].dtype)
        found[name] = _Value(kind, rows, (BATCH, *dims[1:]) if rows else dims)
    return found


def _build(
    graph: ModelProto, part: _Part, later: Sequence[_Part], values: Mapping[str, _Value], index: int
) -> ModelProto:
    """A model of the stage's nodes alone, its answer under the name that the whole graph's has."""
    needed = {name for other in later for name in other.reads}
    gives = [name for node in part.nodes for name in node.output if name in needed & values.keys()]
    gives = [name for name in gives if name not in part.reads]
    output = graph.graph.output[0]
    made = ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import, functions=graph.functions)
    made.graph.name = graph.graph.name
    made.graph.node.extend(part.nodes)
    read = {name for node in all_nodes(made.graph) for name in node.input}
    made.graph.initializer.extend(tensor for tensor in graph.graph.initializer if tensor.name in read)
    inputs = {value.name: value for value in graph.graph.input}
    made.graph.input.extend(inputs.get(name) or _declared(name, values[name]) for name in part.reads)
    # The same value may be an answer and be handed on: each border has a name of its own.
    borders = {part.answer: output.name}
    if part.decides:
        borders[part.decides] = f"{_DECIDES}{index}"
    for name, border in borders.items():
        made.graph.node.append(helper.make_node("Identity", [name], [border]))
    made.graph.output.append(output)
    if part.decides:
        decides = helper.make_tensor_value_info(f"{_DECIDES}{index}", onnx.TensorProto.BOOL, [BATCH, 1])
        made.graph.output.append(decides)
    made.graph.output.extend(_declared(name, values[name]) for name in dict.fromkeys(gives))
    return made


def _declared(name: str, value: _Value) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, value.kind, list(value.dims))


class _ByTurns(Stages):
    """Rows leave by turns, however sure the exits are; or, where there is one turn, all stay to the end."""

    turns = 1

    def leaves(self, index: int, found: Arrays, count: int, rows: Rows | None) -> npt.NDArray[np.bool_]:
        last = index == len(self._steps) - 1
        here = np.arange(count) if rows is None else rows
        return np.full(count, last) if self.turns == 1 or last else here % self.turns == index


def _check(made: Split, graph: ModelProto, ends: Sequence[tuple[str, str]], model: Model, samples: Arrays) -> None:
    """Hold each stage's answers for some of the rows against what the whole graph says for all."""
    opened = ModelProto()
    opened.CopyFrom(graph)
    present = {value.name for value in graph.graph.output}
    answers = [answer for _, answer in ends]
    opened.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(answers) if name not in present)
    output = graph.graph.output[0]
    expected = run_session(open_session(opened, optimize=False), list(dict.fromkeys(answers)), samples)
    sessions = [open_session(part, optimize=False) for part in made[0]]
    steps = [_step(stage, session) for stage, session in zip(made[1], sessions, strict=True)]
    outputs = (TensorSpec(name=output.name, shape=(BATCH, 1)),)
    count = count_rows(model.inputs, samples)
    allowed = TOLERANCE if model.quantization is None else _INT8_TOLERANCE
    for turns in (1, len(steps)):
        runner = _ByTurns(steps, model.inputs, outputs)
        runner.turns = turns
        came = runner.run(samples)[output.name]
        place = np.minimum(np.arange(count) % turns, len(steps) - 1) if turns > 1 else np.full(count, len(steps) - 1)
        wanted = np.stack([expected[answers[stage]][row] for row, stage in enumerate(place)])
        off = difference(wanted, came)
        if off > allowed:
            raise MismatchError(
                f"early exits: rows that go on alone are answered otherwise than among all, by {off:.3g} of the "
                f"largest value (at most {allowed:g} is allowed): does the model compare the samples of a batch?"
            )


def _step(stage: Stage, session: onnxruntime.InferenceSession) -> Step:
    gives = tuple(value.name for value in session.get_outputs())
    reads = tuple(value.name for value in session.get_inputs())

    def run(arrays: Arrays) -> list[Array]:
        return list(run_session(session, list(gives), arrays).values())

    return Step(stage, reads, gives, run)
