"""Takes residual branches out of a module, and holds the rest against the original with those branches times zero."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from tauten.core.rows import resize_rows
from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import PassError
from tauten.make.graph.prove import TOLERANCE, Run
from tauten.make.graph.residual import Block, Branches
from tauten.make.layers.nothing import Nothing, blueprint

_GATE: Final = "tauten_gate_{}"
Undo = Callable[[], object]


class Shortener:
    """Removes residual blocks from one module, which it changes in place.

    ``program`` was exported from ``module``, and ``example`` is one batch. ``run`` calls a module on inputs by name, in
    evaluation mode and without gradients. ``blocks`` are those that can be removed, one at a time at least; ``refused``
    tells why others cannot: a removal is believed when the shortened module answers as the program does with the
    branch multiplied by zero.
    """

    def __init__(
        self,
        module: nn.Module,
        program: ExportedProgram,
        inputs: Sequence[TensorSpec],
        example: Mapping[str, Array],
        run: Run,
    ) -> None:
        self._module = module
        self._run = run
        self._example = resize_rows(inputs, example, 2)  # as many samples as the program was made from
        plain = program.module(check_guards=False)
        found = Branches(plain.graph, module).find()
        self._program = _gated(torch.fx.GraphModule(plain, plain.graph), found.blocks)
        self._sized: dict[str, bool] = {}
        self.refused = dict(found.refused)
        self._forms = _Forms(module, {path for block in found.blocks for path in block.layers})
        self._forms.watch(lambda: run(module, self._example))
        why = _differs(run(self._program, self._example), run(module, self._example))
        if why:
            raise PassError(f"the exported program answers otherwise than the model: {why}")
        self._other = self._of_another_size(inputs)
        self.blocks = tuple(block for block in found.blocks if self._is_proven(block))

    def fault(self, removed: Sequence[Block]) -> str:
        """Why the module without these blocks is not the original with their branches at zero; empty where it is."""
        gone = {block.cut for block in removed}
        for index, cut in enumerate(self._program.cuts):
            getattr(self._program, _GATE.format(index)).fill_(0 if cut in gone else 1)
        for example in (self._example, self._other):
            expected = self._run(self._program, example)
            try:
                with self.without(removed) as shorter:
                    found = self._run(shorter, example)
            except Exception as fault:  # noqa: BLE001 - whatever the module's own code raises is the finding
                return f"the shorter module does not run ({type(fault).__name__}: {_first_line(fault)})"
            why = _differs(expected, found)
            if why:
                return why
        return ""

    @contextmanager
    def without(self, removed: Sequence[Block]) -> Iterator[nn.Module]:
        """The module with these blocks gone for as long as this lasts."""
        undo = self._replace(removed)
        try:
            yield self._module
        finally:
            for step in reversed(undo):
                step()

    def remove(self, removed: Sequence[Block]) -> None:
        """Take them out for good."""
        self._replace(removed)

    def _of_another_size(self, inputs: Sequence[TensorSpec]) -> Arrays:
        """Three samples, and one less along every other open dimension: so that no size is fixed by chance.

        The example itself where the program is bound to its sizes.
        """
        other = resize_rows(inputs, self._example, 3)
        for spec in inputs:
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, str) and axis != spec.batch_axis and other[spec.name].shape[axis] > 2:
                    other[spec.name] = other[spec.name].take(range(other[spec.name].shape[axis] - 1), axis)
        try:
            bound = _differs(self._run(self._module, other), self._run(self._program, other))
            return self._example if bound else other
        except Exception:  # noqa: BLE001 - the module's own code says that it takes no other size
            return self._example

    def _is_proven(self, block: Block) -> bool:
        # Zeros of one element cost nothing at all. Where the code around a layer asks for sizes, or overwrites what it
        # answers, full tensors are made.
        why = ""
        for sized in (False, True):
            self._sized[block.name] = sized
            why = self.fault([block])
            if not why:
                return True
        self.refused[block.name] = why
        return False

    def _replace(self, removed: Sequence[Block]) -> list[Undo]:
        """Put ``Nothing`` in the place of their layers, by whatever names they are held; what undoes that."""
        modules = dict(self._module.named_modules())
        wanted = {
            id(modules[path]): self._forms.nothing(path, sized=self._sized[block.name])
            for block in removed
            for path in block.layers
        }
        places = [
            (owner, name, layer)
            for owner in self._module.modules()
            for name, layer in owner.named_children()
            if id(layer) in wanted
        ]
        undo: list[Undo] = []
        for owner, name, layer in places:
            nothing = wanted[id(layer)].to(_device(layer))
            owner.register_module(name, nothing.eval())
            undo.append(partial(owner.register_module, name, layer))
            if isinstance(owner, nn.TransformerEncoderLayer) and owner.activation_relu_or_gelu:
                # It has a kernel of its own for all of it at once, which reads the weights and calls no part.
                undo.append(partial(setattr, owner, "activation_relu_or_gelu", owner.activation_relu_or_gelu))
                owner.activation_relu_or_gelu = 0
        return undo


class _Forms:
    """In which form layers answer."""

    def __init__(self, module: nn.Module, paths: Collection[str]) -> None:
        self._layers = {path: module.get_submodule(path) for path in sorted(paths)}
        self._seen: dict[tuple[str, bool], Any] = {}
        self._faults: dict[str, str] = {}

    def watch(self, run: Any) -> None:
        """Note what each layer answers with while ``run`` runs."""
        hooks = [
            layer.register_forward_hook(self._hook(path), with_kwargs=True) for path, layer in self._layers.items()
        ]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()

    def nothing(self, path: str, *, sized: bool) -> Nothing:
        """What can stand in the layer's place; ``PassError`` where nothing can."""
        if path in self._faults or (path, sized) not in self._seen:
            raise PassError(f"{path}: {self._faults.get(path, 'was not called')}")
        return Nothing(self._seen[path, sized], self._layers[path])

    def _hook(self, path: str) -> Any:
        def note(layer: nn.Module, given: Any, named: Any, answer: Any) -> None:
            try:
                for sized in (False, True):
                    form = blueprint(answer, (given, named), sized=sized)
                    if self._seen.setdefault((path, sized), form) != form:
                        raise PassError("answers in another form at each call")
            except PassError as fault:
                self._faults[path] = str(fault)

        return note


class _Program(torch.fx.GraphModule):
    """A program with a factor at each branch that may go."""

    cuts: tuple[Any, ...]


def _gated(program: torch.fx.GraphModule, blocks: Sequence[Block]) -> _Program:
    graph = program.graph
    nodes = {node.name: node for node in graph.nodes}
    for index, block in enumerate(blocks):
        total, operand = nodes[block.cut.sum], block.cut.operand
        program.register_buffer(_GATE.format(index), torch.ones(()))
        with graph.inserting_before(total):
            gate = graph.get_attr(_GATE.format(index))
            factor = graph.call_function(torch.ops.aten.mul.Tensor, (total.args[operand], gate))
        # Where the sum overwrites the branch, which nothing else reads, it overwrites the product now.
        total.args = tuple(factor if place == operand else given for place, given in enumerate(total.args))
    made = _Program(program, graph)
    made.cuts = tuple(block.cut for block in blocks)
    return made


def _device(layer: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))


def _differs(expected: Arrays, found: Arrays) -> str:
    for name, array in expected.items():
        other = found.get(name)
        if other is None or other.shape != array.shape or other.dtype != array.dtype:
            return f"{name} has another shape or type"
        if not np.issubdtype(array.dtype, np.floating):
            if not np.array_equal(array, other):
                return f"{name} differs"
            continue
        scale = float(np.abs(array).max(initial=0.0))
        worst = float(np.abs(np.subtract(array, other)).max(initial=0.0))
        if not worst <= max(TOLERANCE, 16 * float(np.finfo(array.dtype.name).eps)) * scale:
            return (
                f"{name} differs by {worst:.3g} (its largest number is {scale:.3g}) from what the block's absence gives"
            )
    return ""


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [""])[0][:200]
