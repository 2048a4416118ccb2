"""Where in a model a sample may leave early: outputs of modules through which all that was computed flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from tauten.core.rows import resize_rows
from tauten.core.tensor import Array, TensorSpec
from tauten.errors import PassError
from tauten.make.graph.export import export
from tauten.make.layers.early_exit import watch
from tauten.make.model.run import name_outputs, to_tensor

_LATEST: Final = 2 / 3
"""Up to which share of all products a point lies: after it, leaving saves little."""

_ROWS: Final = 2


@dataclass(frozen=True)
class Point:
    """The output of the module at ``path``: its shape for one sample, and the products that were made until then.

    ``share`` is their share of all products of the model.
    """

    path: str
    shape: tuple[int, ...]
    products: int
    share: float


def find_points(module: nn.Module, specs: Sequence[TensorSpec], example: Mapping[str, Array]) -> list[Point]:
    """All points where a sample may leave, in order of their share.

    Such a module is called once and returns one tensor of floats ``(batch, …)``, and of what parameters made of the
    inputs before, nothing but that tensor is read after: masks may be, and tables of positions. Raises ``PassError``
    where the model cannot be followed.
    """
    called = _called_once(module, specs, example)
    names = list(called)
    program = export(_Tapped(module, names), specs, example)
    answer, *taps = next(node for node in program.graph.nodes if node.op == "output").args[0]
    alone = _alone(program, answer)
    found: dict[torch.fx.Node, Point] = {}
    for path, node in zip(names, taps, strict=True):
        if node in alone:
            # Of modules that return the same tensor the outermost is named, and the first one's share counts.
            known = found.get(node, called[path])
            shorter = min(known.path, path, key=len)
            first = min(known, called[path], key=lambda point: point.products)
            found[node] = replace(first, path=shorter)
    inside = [point for point in found.values() if point.products and point.share <= _LATEST]
    return sorted(inside, key=lambda point: point.share)


def named_points(
    module: nn.Module, specs: Sequence[TensorSpec], example: Mapping[str, Array], paths: Sequence[str]
) -> list[Point]:
    """The points at ``paths``, in order of their share; ``PassError`` where one cannot be an exit."""
    called = _called_once(module, specs, example)
    for path in paths:
        if path not in dict(module.named_modules()):
            raise PassError(f"at: the model has no module {path!r}; it has {', '.join(list(called)[:20])}")
        if path not in called:
            raise PassError(f"at: {path}: expected a module that is called once and returns one tensor of floats")
    return sorted((called[path] for path in dict.fromkeys(paths)), key=lambda point: point.share)


def spread(points: Sequence[Point], count: int) -> list[Point]:
    """``count`` of the points, those nearest to even steps up to the latest share."""
    # Of points that cost the same the last is taken: behind the norm and the activation, and pooled.
    left = list({round(point.share, 2): point for point in points}.values())
    chosen = []
    for step in range(1, count + 1):
        if not left:
            break
        wanted = _LATEST * step / (count + 1)
        chosen.append(left.pop(min(range(len(left)), key=lambda index: abs(left[index].share - wanted))))
    return sorted(chosen, key=lambda point: point.share)


def count_products(module: nn.Module, *shape: int) -> int:
    """The products of one call on a tensor of ``shape``."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(shape))
    return int(counter.get_total_flops()) // 2


class _Tapped(nn.Module):
    """Returns the first output, and then the outputs of the modules at ``paths``."""

    def __init__(self, module: nn.Module, paths: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self._paths = paths

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen, returned = watch(self.module, self._paths, inputs, lambda _, output: output)
        return (next(iter(name_outputs(returned).values())), *seen)


def _called_once(module: nn.Module, specs: Sequence[TensorSpec], example: Mapping[str, Array]) -> dict[str, Point]:
    """Modules that are called once and return one tensor of floats with a row a sample, by path."""
    arrays = resize_rows(specs, example, _ROWS)
    inputs = [to_tensor(arrays[spec.name]) for spec in specs]
    paths = [path for path, _ in module.named_modules() if path]
    seen: dict[str, list[tuple[tuple[int, ...], int] | None]] = {}
    with FlopCounterMode(display=False) as counter, torch.no_grad():

        def see(index: int, output: Any) -> None:
            fits = isinstance(output, torch.Tensor) and output.is_floating_point() and 2 <= output.ndim <= 5
            entry = (tuple(output.shape), counter.get_total_flops()) if fits and len(output) == _ROWS else None
            seen.setdefault(paths[index], []).append(entry)

        watch(module, paths, inputs, see)
        total = max(1, counter.get_total_flops())
    return {
        path: Point(path, calls[0][0][1:], calls[0][1] // (2 * _ROWS), calls[0][1] / total)
        for path, calls in seen.items()
        if len(calls) == 1 and calls[0] is not None
    }


def _alone(program: ExportedProgram, answer: torch.fx.Node) -> set[torch.fx.Node]:
    """Nodes after which, of what parameters made of inputs on the way to ``answer``, nothing else is read."""
    inputs = set(program.graph_signature.user_inputs)
    wanted = _ancestors(answer)
    nodes = [node for node in program.graph.nodes if node in wanted and isinstance(node.meta.get("val"), torch.Tensor)]
    of_inputs = {node for node in nodes if node.op == "placeholder" and node.name in inputs}
    of_parameters = {node for node in nodes if node.op == "placeholder"} - of_inputs
    last: dict[torch.fx.Node, int] = {}
    for place, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[source] = place
            for kind in (of_inputs, of_parameters):
                if source in kind:
                    kind.add(node)
    found, read_until = set(), -1
    for place, node in enumerate(nodes):
        if node in of_inputs and node in of_parameters:
            # What was made before may be read by this node, but by none that comes after it.
            if read_until <= place:
                found.add(node)
            read_until = max(read_until, last.get(node, place))
    return found


def _ancestors(node: torch.fx.Node) -> set[torch.fx.Node]:
    found, left = set(), [node]
    while left:
        current = left.pop()
        if current not in found:
            found.add(current)
            left += current.all_input_nodes
    return found
