"""Walks an exported program once and finds which elements of which parameters are the same channel.

Every dimension of every parameter starts with an id an element; the rule of each operation (``rules/``) merges ids,
passes them on, or freezes them with a reason. An operation without a rule freezes all that it touches.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from tauten.errors import PassError
from tauten.make.graph.ids import IdArray, Ids
from tauten.make.graph.norms import find_norms
from tauten.make.graph.rules import RULES
from tauten.make.graph.shuffles import find_shuffles
from tauten.make.graph.value import Axis, Value, opaque

# These read shapes or check them; what they say of a tensor holds for the smaller one when it is traced anew.
_WITHOUT_EFFECT = frozenset(
    {"sym_size", "sym_numel", "sym_stride", "_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"}
)


@dataclass(frozen=True)
class Call:
    """One operation of the program, as its rule sees it.

    ``arguments`` are by the names of the ATen schema, defaults filled in; tensors are ``Value``s.
    ``shapes`` are those of the tensors that it returns. ``in_norm`` says that it averages inside of a module that does
    nothing but normalise (see ``norms``), and so may go on over the kept channels; ``shuffles`` that it splits channels
    into groups for a shuffle (see ``shuffles``).
    """

    op: str
    path: str
    arguments: Mapping[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    owner: nn.Module
    in_norm: bool = False
    shuffles: bool = False

    def __getitem__(self, name: str) -> Any:
        """An argument; ``PassError`` where this overload of the operation has none of that name."""
        if name not in self.arguments:
            raise PassError(f"this form has no argument {name}")
        return self.arguments[name]

    @property
    def where(self) -> str:
        """``aten.view at features.3``, for reasons."""
        return f"aten.{self.op} at {self.path or 'the top of the model'}"

    def values(self) -> list[Value]:
        """Every tensor among the arguments."""
        return list(_values(self.arguments.values()))


@dataclass
class Trace:
    """Ids, and what rules do to them."""

    ids: Ids = field(default_factory=Ids)
    produced: list[IdArray] = field(default_factory=list)
    consumed: list[IdArray] = field(default_factory=list)
    shaped: list[tuple[IdArray, str]] = field(default_factory=list)
    layers: dict[str, Axis] = field(default_factory=dict)

    def layer(self, call: Call, axis: Axis) -> Axis:
        """The layer that calls keeps the size of this axis as an attribute, or takes statistics over it.

        It is told what goes even where it has no tensor of that size; a layer that is called twice sees the same
        channels both times.
        """
        known = self.layers.get(call.path)
        self.layers[call.path] = axis if known is None else self.unify(known, axis)
        return axis

    def shapes(self, axis: Axis, where: str) -> None:
        """An operation names sizes of this axis, which the module's code may have fixed: the first to be suspected."""
        if axis.ids is not None:
            self.shaped.append((axis.ids, where))

    def unify(self, left: Axis, right: Axis) -> Axis:
        """The two axes index the same channels: their ids become one; an untracked side freezes the other.

        What comes is tracked where both are; ``zero`` where both are. Raises ``PassError`` where sizes differ.
        """
        if left.size != right.size:
            raise PassError(f"dimensions of {left.size} and {right.size} elements cannot hold the same channels")
        if left.ids is not None and right.ids is not None:
            self.ids.union(left.ids, right.ids)
            return left.with_zero(left.zero and right.zero)
        if left.alike or right.alike:
            # Copies of one number are as long as the other side; that its length is not fixed shows when it is run.
            other, copies = (right, left) if left.alike else (left, right)
            self.shapes(other, copies.reason)
            return other.with_zero(left.zero and right.zero)
        reason = left.reason or right.reason
        self.freeze(left, reason)
        self.freeze(right, reason)
        return Axis(left.size, reason=reason)

    def contract(self, data: Axis, weight: Axis, reason: str) -> None:
        """Sum over a shared axis: a removed channel must add nothing, so one of the two must be zero there."""
        self.unify(data, weight)
        self.consume(weight)
        if data.alike or weight.alike:
            # How many copies are summed up matters, and nothing but the code says it.
            self.freeze_all((data, weight), data.reason or weight.reason)
        if not (data.zero or weight.zero):
            self.freeze(data, reason)
            self.freeze(weight, reason)

    def produce(self, axis: Axis) -> Axis:
        """A layer makes channels along this axis of its weight: where they are frozen, the user is told why."""
        if axis.ids is not None:
            self.produced.append(axis.ids)
        return axis

    def consume(self, axis: Axis) -> None:
        """A layer sums over this axis of its weight."""
        if axis.ids is not None:
            self.consumed.append(axis.ids)

    def freeze(self, axis: Axis, reason: str) -> None:
        """No element of the axis can be removed."""
        if axis.ids is not None:
            self.ids.freeze(axis.ids, reason)

    def freeze_all(self, axes: Sequence[Axis], reason: str) -> None:
        for axis in axes:
            self.freeze(axis, reason)

    def block(self, axis: Axis, reason: str) -> Axis:
        """The axis frozen, and untracked from here on."""
        self.freeze(axis, reason)
        return Axis(axis.size, reason=reason)

    def tracked(self, axis: Axis) -> IdArray:
        """The ids of the axis; new frozen ones where it has none."""
        if axis.ids is not None:
            return axis.ids
        made = self.ids.fresh(axis.size)
        self.ids.freeze(made, axis.reason)
        return made


@dataclass(frozen=True)
class Traced:
    """What a walk found.

    ``holders`` are each parameter's and buffer's ids by dimension; ``produced`` and ``consumed`` the ids that layers
    make and sum over; ``shaped`` those whose sizes an operation names, with that operation; ``layers`` those of each
    norm layer, by its path in the module; ``norms`` the dimension of its input that a norm over channels averages.
    """

    ids: Ids
    holders: Mapping[str, tuple[IdArray, ...]]
    produced: tuple[IdArray, ...]
    consumed: tuple[IdArray, ...]
    shaped: tuple[tuple[IdArray, str], ...]
    layers: Mapping[str, IdArray] = field(default_factory=dict)
    norms: Mapping[str, int] = field(default_factory=dict)


def trace(program: ExportedProgram, module: nn.Module) -> Traced:
    """Walk ``program``, which was exported from ``module``."""
    return _Walk(program, module).run()


class _Walk:
    def __init__(self, program: ExportedProgram, module: nn.Module) -> None:
        self.program = program
        self.module = module
        self.trace = Trace()
        self.sizes = _Sizes()
        self.known: dict[Node, Any] = {}
        self.holders: dict[str, tuple[IdArray, ...]] = {}
        self.in_norms = find_norms(program)
        self.shuffles = find_shuffles(program, self.sizes.of)

    def run(self) -> Traced:
        signature = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        tensors = dict(_named_tensors(self.module))
        by_identity: dict[int, Value] = {}
        used = {id(tensors.get(signature[node.name].target or "")) for node in self._placeholders() if node.users}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                spec = signature[node.name]
                tensor = tensors.get(spec.target or "")
                if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and tensor is not None:
                    # A tensor under two names (tied weights) has one set of ids.
                    if id(tensor) not in by_identity:
                        by_identity[id(tensor)] = self._hold(str(spec.target), tensor, used=id(tensor) in used)
                    self.known[node] = by_identity[id(tensor)]
                elif isinstance(node.meta.get("val"), torch.Tensor):
                    what = f"model input {node.name}" if spec.kind is InputKind.USER_INPUT else f"constant {node.name}"
                    self.known[node] = opaque(self.sizes.of(node.meta["val"].shape), what)
            elif node.op == "get_attr":
                self.known[node] = _map_tensors(
                    node.meta.get("val"), lambda found: opaque(self.sizes.of(found.shape), "a constant of the model")
                )
            elif node.op == "output":
                for value in _values(self._arguments(node.args)):
                    self.trace.freeze_all(value.axes, "model output")
            elif node.target is operator.getitem:
                self.known[node] = self._getitem(node)
            else:
                self.known[node] = self._call(node)
        found = self.trace
        norms = self._norms()
        layers = {path: axis.ids for path, axis in found.layers.items() if axis.ids is not None}
        return Traced(
            found.ids, self.holders, tuple(found.produced), tuple(found.consumed), tuple(found.shaped), layers, norms
        )

    def _norms(self) -> dict[str, int]:
        """The dimension of channels of each norm over them: the one whose ids its own parameters have."""
        found: dict[str, int] = {}
        for norm in dict.fromkeys(self.in_norms.values()):
            averaged = self.trace.layers.get(norm.path)
            for scale in norm.scales:
                own = self.trace.tracked(self.known[scale].axes[0])
                dims = {self._dim_of(norm.data, own), self._dim_of(norm.result, own)}
                dim = dims.pop()
                along = averaged is None or averaged.ids is None or self._alike(averaged.ids, own)
                if dims or dim is None or found.setdefault(norm.path, dim) != dim or not along:
                    reason = f"{norm.path} normalises, but not along one dimension of channels"
                    self.trace.ids.freeze(own, reason)
                    self.trace.freeze_all([averaged] if averaged else [], reason)
        return found

    def _dim_of(self, node: Node, ids: IdArray) -> int | None:
        value = self.known.get(node)
        for dim, axis in enumerate(value.axes if isinstance(value, Value) else ()):
            if axis.ids is not None and self._alike(axis.ids, ids):
                return dim
        return None

    def _alike(self, one: IdArray, other: IdArray) -> bool:
        return np.array_equal(self.trace.ids.find(one), self.trace.ids.find(other))

    def _placeholders(self) -> list[Node]:
        return [node for node in self.program.graph.nodes if node.op == "placeholder"]

    def _hold(self, name: str, tensor: torch.Tensor, *, used: bool) -> Value:
        axes = tuple(Axis(size, self.trace.ids.fresh(size), zero=True) for size in tensor.shape)
        self.holders[name] = tuple(axis.ids for axis in axes if axis.ids is not None)
        if not used:
            self.trace.freeze_all(axes, f"{name} is not used")
        return Value(axes)

    def _getitem(self, node: Node) -> Any:
        source, index = node.args
        items = self.known.get(source) if isinstance(source, Node) else None
        if isinstance(items, tuple) and isinstance(index, int):
            return items[index]
        return _map_tensors(
            node.meta.get("val"), lambda found: opaque(self.sizes.of(found.shape), f"getitem of {source}")
        )

    def _call(self, node: Node) -> Any:
        schema = getattr(node.target, "_schema", None)
        full = schema.name.removeprefix("aten::") if schema is not None else str(node.target)
        in_place = schema is not None and full.endswith("_") and not full.endswith("__")
        op = full.removesuffix("_") if in_place else full
        path, owner = self._owner(node)
        found = node.meta.get("val")
        shapes = tuple(self.sizes.of(tensor.shape) for tensor in _tensors(found))
        call = Call(op, path, self._bind(node, schema), shapes, owner, node in self.in_norms, node in self.shuffles)
        if op in _WITHOUT_EFFECT:
            return None
        rule = RULES.get(op) if schema is None or schema.name.startswith("aten::") else None
        try:
            if rule is None:
                raise PassError("has no pruning rule")
            given = rule(self.trace, call)
            made = given if isinstance(given, tuple) else (given,)
            if tuple(value.shape for value in made) != shapes:
                raise PassError(f"gave shapes {list(shapes)}, its rule {[value.shape for value in made]}")
            if in_place:
                self._overwrite(node, call, made[0])
        except PassError as fault:
            # Refused, not broken: nothing that the operation touches is pruned, the rest of the model still is.
            reason = f"{call.where}: {fault}"
            for value in call.values():
                self.trace.freeze_all(value.axes, reason)
            made = tuple(opaque(shape, reason) for shape in shapes)
        results = iter(made)
        return _map_tensors(found, lambda _: next(results))

    def _overwrite(self, node: Node, call: Call, made: Value) -> None:
        """An operand that is overwritten in place may be read again, by its own name or through a view of it."""
        operand = node.args[0]
        if not isinstance(operand, Node) or (len(operand.users) == 1 and not _is_view(operand)):
            return
        for old, new in zip(self.known[operand].axes, made.axes, strict=True):
            if old.zero and not new.zero:
                self.trace.freeze(old, f"{call.where} changes a tensor in place")

    def _owner(self, node: Node) -> tuple[str, nn.Module]:
        stack = node.meta.get("nn_module_stack") or {}
        path = next((entry[0] for entry in reversed(list(stack.values()))), "")
        path = path.split("@", 1)[0]
        try:
            return path, self.module.get_submodule(path)
        except AttributeError:
            return path, self.module

    def _bind(self, node: Node, schema: Any) -> dict[str, Any]:
        if schema is None:
            named: dict[str, Any] = {str(index): argument for index, argument in enumerate(node.args)}
            return {name: self._arguments(argument) for name, argument in {**named, **node.kwargs}.items()}
        bound = {}
        for index, argument in enumerate(schema.arguments):
            if index < len(node.args):
                bound[argument.name] = self._arguments(node.args[index])
            elif argument.name in node.kwargs:
                bound[argument.name] = self._arguments(node.kwargs[argument.name])
            else:
                bound[argument.name] = argument.default_value
        return bound

    def _arguments(self, argument: Any) -> Any:
        if isinstance(argument, Node):
            known = self.known.get(argument)
            return known if known is not None else argument.meta.get("val")
        if isinstance(argument, list | tuple):
            return tuple(self._arguments(item) for item in argument)
        if isinstance(argument, dict):
            return {key: self._arguments(item) for key, item in argument.items()}
        return argument


class _Sizes:
    """Shapes as plain numbers: each symbol of the program stands as a large prime of its own.

    Products of sizes are then equal exactly where the symbolic products are, which is all that index maps ask for.
    """

    def __init__(self) -> None:
        self._primes: dict[sympy.Symbol, int] = {}

    def of(self, shape: Sequence[Any]) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else self._number(size) for size in shape)

    def _number(self, size: Any) -> int:
        expression = size.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._primes:
                self._primes[symbol] = sympy.nextprime(max(self._primes.values(), default=2**40))
        return int(expression.subs(self._primes))


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _is_view(node: Node) -> bool:
    """Whether the tensor shares memory with another: a parameter or input, or what an operation says is an alias."""
    returns = getattr(getattr(node.target, "_schema", None), "returns", None)
    return returns is None or any(value.alias_info is not None for value in returns)


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for item in found:
            yield from _tensors(item)


def _map_tensors(found: Any, make: Any) -> Any:
    if isinstance(found, torch.Tensor):
        return make(found)
    if isinstance(found, list | tuple):
        return tuple(_map_tensors(item, make) for item in found)
    return None


def _values(arguments: Any) -> Iterator[Value]:
    for argument in arguments:
        if isinstance(argument, Value):
            yield argument
        elif isinstance(argument, Mapping):
            yield from _values(argument.values())
        elif isinstance(argument, list | tuple):
            yield from _values(argument)
