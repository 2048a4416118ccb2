"""Fits the layers that read removed channels anew, so that they answer as before from the channels that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from tauten.make.graph.groups import Removal
from tauten.make.model.model import Model
from tauten.make.model.run import call
from tauten.make.passes.prune._least_squares import Sums, solve
from tauten.make.passes.prune._reading import HELD_OUT, Layer, Reading
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.prune._step_by_step import Walk

MOST_INPUTS = 6144
"""Numbers that an output is fitted from: the work grows with the cube of it, the memory with the square."""
MOST_BYTES = 2**31
"""What the activations of both modules may take together, estimated by eight times the largest one."""
FEWEST_SAMPLES = 8


@dataclass(frozen=True)
class Refit:
    """What became of the layers that read removed channels.

    ``fitted`` has, for each, the share of the error on held-out samples that is left; ``left`` why one was left alone.
    ``samples`` is how many were looked at.
    """

    fitted: Mapping[str, float]
    left: Mapping[str, str]
    samples: int = 0


def refit(model: Model, original: nn.Module, removal: Removal, samples: Samples) -> Refit:
    """Fit the layers of ``model``, which is ``original`` without ``removal``, in the order in which they run.

    Each is regressed on what it reads now for what it answered in ``original`` (He et al., 2017, without their choice
    of channels), so that errors of the layers before it are made good as well. Both modules run once, side by side, on
    all samples at a time, and a layer is fitted when it is reached; samples are fewer where that would not fit into
    ``MOST_BYTES``, and only those of the first one's shape are taken.
    """
    layers, left = _readers(model.module, removal)
    calls, largest = _look(model, layers, samples)
    for name, count in calls.items():
        if count != 1:
            left[name] = "is called more than once" if count else "is not called as a layer of its own"
    layers = {name: layer for name, layer in layers.items() if name not in left}
    if not layers:
        return Refit({}, left)
    most = max(FEWEST_SAMPLES, MOST_BYTES // (8 * max(1, largest)))
    inputs, count = samples.together(most)
    if count < HELD_OUT:
        return Refit(
            {}, {**left, **dict.fromkeys(layers, f"is fitted to {HELD_OUT} samples or more, got {count}")}, count
        )
    gone = removal.entries()
    readings = {name: Reading(layer, gone.get((f"{name}.weight", 0))) for name, layer in layers.items()}
    fitted: dict[str, float] = {}
    whole = {name: original.get_submodule(name) for name in layers}
    with Walk(
        lambda: call(original, model.inputs, model.outputs, inputs), whole, lambda name, out: readings[name].take(out)
    ) as walk:

        def fit(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
            def hook(layer: nn.Module, given: tuple[torch.Tensor]) -> None:
                reached, wanted = walk.to_next()
                if reached == name:
                    fitted[name] = _fit(layers[name], readings[name], given[0], wanted)
                else:
                    left[name] = "is called in another order than in the original"

            return hook

        hooks = [layer.register_forward_pre_hook(fit(name)) for name, layer in layers.items()]
        try:
            with torch.no_grad():
                call(model.module, model.inputs, model.outputs, inputs)
        finally:
            for made in hooks:
                made.remove()
    return Refit(fitted, left, count)


def _readers(module: nn.Module, removal: Removal) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that read what was removed and can be fitted, and why others cannot."""
    users = Counter(id(tensor) for _, tensor in module.named_parameters(remove_duplicate=False))
    layers: dict[str, Layer] = {}
    left: dict[str, str] = {}
    reading = [
        slot
        for place, units in removal.units.items()
        if units.size
        for slot in removal.groups[place].slots
        if slot.role == "consumer"
    ]
    for slot in reading:
        name, _, kind = slot.parameter.rpartition(".")
        owner = module.get_submodule(name)
        why = _why_not(owner, kind, slot.dim)
        if not why and users[id(owner.weight)] > 1:
            why = "shares its weight with another layer"
        if why:
            left[name or slot.parameter] = why
        else:
            layers[name] = cast("Layer", owner)
    return {name: layer for name, layer in layers.items() if name not in left}, left


def _why_not(owner: nn.Module, kind: str, dim: int) -> str:
    if type(owner) not in (nn.Linear, nn.Conv1d, nn.Conv2d) or (kind, dim) != ("weight", 1):
        return f"is a {type(owner).__name__}, which is not fitted"
    if isinstance(owner, nn.Conv1d | nn.Conv2d) and (owner.groups != 1 or owner.padding_mode != "zeros"):
        return "is a convolution in groups" if owner.groups != 1 else f"pads with {owner.padding_mode}"
    inputs = int(owner.weight[0].numel())  # type: ignore[index]
    return f"reads {inputs:,} numbers, more than {MOST_INPUTS:,}" if inputs > MOST_INPUTS else ""


def _look(model: Model, layers: Mapping[str, Layer], samples: Samples) -> tuple[dict[str, int], int]:
    """How often each layer is called, and the bytes a sample that the largest output of any layer has."""
    calls = dict.fromkeys(layers, 0)
    inputs, count = samples.together(2)
    largest = max(array.nbytes // count for array in inputs.values())

    def seen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(layer: nn.Module, given: Any, answer: Any) -> None:
            nonlocal largest
            if name in calls and len(given) == 1:  # what is given by name, a hook is not shown
                calls[name] += 1
            if isinstance(answer, torch.Tensor):
                largest = max(largest, answer.numel() * answer.element_size() // count)

        return hook

    hooks = [layer.register_forward_hook(seen(name)) for name, layer in model.module.named_modules()]
    try:
        with torch.no_grad():
            call(model.module, model.inputs, model.outputs, inputs)
    finally:
        for made in hooks:
            made.remove()
    return calls, largest


def _fit(layer: Layer, reading: Reading, given: torch.Tensor, wanted: torch.Tensor) -> float:
    """Change the layer; returns the share of the error that is left."""
    fit, held_out = (Sums(layer.weight[0].numel(), len(layer.weight)) for _ in range(2))
    for rows, residuals, is_held_out in reading.parts(given, wanted):
        if is_held_out.any():
            held_out.add(rows[is_held_out], residuals[is_held_out])
        fit.add(rows[~is_held_out], residuals[~is_held_out])
    found = solve(fit, held_out, intercept=layer.bias is not None)
    layer.weight += found.weight.reshape(layer.weight.shape).to(layer.weight)
    if layer.bias is not None:
        layer.bias += found.bias.to(layer.bias)
    return found.left
