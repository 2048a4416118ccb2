"""Where learned steps begin: which layers have them, and the grids that lose least without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from tauten.core.rows import count_rows, take_rows
from tauten.make.layers.learned_steps import LearnedLayer, LearnedRange, output_axis
from tauten.make.layers.quantized import QUANTIZABLE, round_to_range
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import call

_READS_PAST: Final = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of the layers inside them without calling these."""
_RECURRENT: Final = (nn.RNNBase, nn.RNNCellBase)
_WEIGHT_SHARES: Final = tuple(1.0 - 0.02 * step for step in range(36))  # of the largest weight, down to 0.3
_RANGE_SHARES: Final = tuple(1.0 - 0.025 * step for step in range(29))  # of the range seen, down to 0.3
_KEPT: Final = 8192  # values of a batch that a range is chosen by, evenly spaced


@dataclass
class Seen:
    """What a layer read: the least value, the greatest, and some of them; ``reads`` tells one tensor from another."""

    low: float = 0.0
    high: float = 0.0
    values: list[Tensor] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        """One call."""
        flat = x.detach().reshape(-1).float()
        flat = flat[torch.isfinite(flat)]
        if flat.numel():
            self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
            self.values.append(flat[:: -(-flat.numel() // _KEPT)].cpu())


def find_layers(module: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers that can learn steps, by path, and those that cannot, with the reason."""
    paths = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    owners = Counter(id(one) for part in module.modules() for one in part._parameters.values() if one is not None)
    found: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    inside: list[str] = []
    for path, part in module.named_modules():
        if path.startswith(tuple(inside)):
            continue
        if isinstance(part, _RECURRENT):
            refused[path] = f"{type(part).__name__} has several weights, which its own forward reads"
        elif isinstance(part, _READS_PAST):
            refused[path] = f"{type(part).__name__} reads the weights of its layers past them"
            inside.append(f"{path}." if path else "")
        elif isinstance(part, QUANTIZABLE):
            reason = _reason(part, paths[id(part)], owners)
            if reason:
                refused[path] = reason
            else:
                found[path] = part
    return found, refused


def _reason(layer: Any, paths: int, owners: Mapping[int, int]) -> str:
    if type(layer) not in QUANTIZABLE:
        return f"{type(layer).__name__} may compute otherwise than {type(layer).__mro__[1].__name__}"
    if paths > 1:
        return "the layer stands at several places of the model"
    if owners[id(layer.weight)] > 1:
        return "its weight is another layer's too"
    if layer.weight.dtype != torch.float32:
        return f"its weight is {str(layer.weight.dtype).removeprefix('torch.')}, and float32 is what can learn"
    if not bool(torch.isfinite(layer.weight).all()):
        return "its weight holds numbers that are not finite"
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
        return "the embedding changes its own rows, or has sparse gradients"
    return ""


def watch(layers: Mapping[str, nn.Module], model: Model, context: Context, samples: int) -> dict[str, Seen]:
    """What each layer read on ``samples`` samples of the calibration data, in the order of their first calls."""
    seen: dict[str, Seen] = {}
    alive: list[Tensor] = []  # to the end of a batch, so that no two values of it have one identity

    def hook(path: str) -> Any:
        def read(layer: nn.Module, given: tuple[Any, ...]) -> None:
            entry = seen.setdefault(path, Seen())
            if isinstance(given[0], Tensor):
                alive.append(given[0])
                entry.reads.append((id(given[0]), given[0]._version))
                if given[0].is_floating_point():
                    entry.add(given[0])

        return read

    handles = [layer.register_forward_pre_hook(hook(path)) for path, layer in layers.items()]
    try:
        with torch.no_grad():
            for inputs in _some(model, context, samples):
                call(model.module, model.inputs, model.outputs, inputs)
                alive.clear()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _some(model: Model, context: Context, samples: int) -> Iterator[Mapping[str, Any]]:
    left = samples
    for inputs, _ in context.task.data("calibrate"):
        rows = count_rows(model.inputs, inputs)
        yield inputs if rows <= left else take_rows(model.inputs, inputs, range(left))
        left -= rows
        if left <= 0:
            return


def best_steps(weight: Tensor, axis: int, bits: int) -> Tensor:
    """The step of each output channel of ``weight`` that leaves the least squared error, ``(outputs,)``.

    Tried are steps that reach from all of the largest weight down to 0.3 of it. A channel of zeros has a step of 1.
    """
    half = 2 ** (bits - 1)
    rows = weight.detach().movedim(axis, 0).reshape(weight.shape[axis], -1)
    # The grid reaches one step further below than above: a channel's largest weight may lie on either side.
    whole = torch.maximum(rows.amax(1).clamp_min(0) / (half - 1), -rows.amin(1).clamp_max(0) / half)
    whole = torch.where(whole > 0, whole, torch.ones_like(whole))
    best, least = whole.clone(), torch.full_like(whole, torch.inf)
    for share in _WEIGHT_SHARES:
        steps = (whole * share).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (rows / steps[:, None]).round().clamp(-half, half - 1)
        error = (codes * steps[:, None] - rows).square().sum(1)
        better = error < least
        best, least = torch.where(better, steps, best), torch.where(better, error, least)
    return best


def best_range(seen: Seen) -> tuple[float, float] | None:
    """The part of the range seen on which 256 steps leave the least squared error; ``None`` where all was 0."""
    if not seen.low < seen.high:
        return None
    values = torch.cat(seen.values)
    found, least = (seen.low, seen.high), float("inf")
    for share in _RANGE_SHARES:
        ends = seen.low * share, seen.high * share
        rounded = round_to_range(values, torch.tensor(ends[0]), torch.tensor(ends[1]))
        error = float((rounded - values).square().sum())
        if error < least:
            found, least = ends, error
    return found


def start_learning(
    module: nn.Module, layers: Mapping[str, nn.Module], seen: Mapping[str, Seen], bits: Mapping[str, int]
) -> dict[str, LearnedLayer]:
    """Put a ``LearnedLayer`` in the place of each layer, in ``module`` itself; those that read one value share a range.

    An embedding reads no numbers that could be rounded; neither is an input rounded that was always 0.
    """
    ranges: dict[tuple[tuple[int, int], ...], LearnedRange | None] = {}
    made: dict[str, LearnedLayer] = {}
    for path, layer in layers.items():
        key = tuple(seen[path].reads)
        if key not in ranges:
            ends = best_range(seen[path])
            ranges[key] = None if ends is None else LearnedRange(*ends)
        weight: Any = layer.weight
        steps = best_steps(weight, output_axis(layer), bits[path])
        inputs = None if isinstance(layer, nn.Embedding) else ranges[key]
        made[path] = LearnedLayer(layer, bits[path], steps, inputs).to(weight.device)
        parent, _, last = path.rpartition(".")
        if path:
            setattr(module.get_submodule(parent), last, made[path])
    return made
