"""Fits the layers that read removed channels anew, so that they answer as before from the channels that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import Arrays
from tauten.make.graph.coupling import Removal
from tauten.make.graph.ids import IdArray
from tauten.make.model.model import Model
from tauten.make.model.run import call
from tauten.make.passes.prune._least_squares import Sums, solve
from tauten.make.passes.prune._samples import Samples

MOST_INPUTS = 6144
"""Numbers that an output is fitted from: the work grows with the cube of it, the memory with the square."""
MOST_ROWS = 16_384
"""Positions that are looked at of a batch, drawn by chance where there are more."""
PATCH_NUMBERS = 2**24
"""How many numbers of unfolded patches are held at a time."""
MOST_SAMPLES = 32
"""Samples of a batch."""
HELD_OUT = 4
"""One batch of so many chooses the strength of the fit."""
Layer = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Refit:
    """What became of the layers that read removed channels.

    ``fitted`` has, for each, the share of the error on held-out samples that is left; ``left`` why one was left alone.
    """

    fitted: Mapping[str, float]
    left: Mapping[str, str]


def refit(model: Model, original: nn.Module, removal: Removal, samples: Samples) -> Refit:
    """Fit the layers of ``model``, which is ``original`` without ``removal``, in the order in which they run.

    Each is regressed on what it reads now for what it answered in ``original`` (He et al., 2017, without their choice
    of channels), so that errors of the layers before it are made good as well. What it changes are weights alone.
    Every layer takes a walk over the samples through both modules, up to that layer.
    """
    layers, left = _readers(model.module, removal)
    size = max(1, min(MOST_SAMPLES, samples.count // (2 * HELD_OUT)))
    batches = [inputs for inputs, _ in samples.batches(size)]
    stages, calls = _order(model, layers, batches[0])
    for name, count in calls.items():
        if count != 1:
            left[name] = "is called more than once" if count else "is not called as a layer of its own"
    gone = removal.entries()
    fitted: dict[str, float] = {}
    for stage in stages:
        fits = {name: _Fit(layers[name], gone.get((f"{name}.weight", 0))) for name in stage if name not in left}
        if fits:
            _gather_sums(model, original, fits, batches)
            fitted |= {name: fit.write() for name, fit in fits.items()}
    return Refit(fitted, left)


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


def _order(model: Model, layers: Mapping[str, Layer], inputs: Arrays) -> tuple[list[list[str]], dict[str, int]]:
    """The layers in the order in which they run, those together that read one and the same tensor; and their calls."""
    calls = dict.fromkeys(layers, 0)
    stages: list[list[str]] = []
    last: list[torch.Tensor] = []

    def seen(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        def hook(layer: nn.Module, given: tuple[torch.Tensor]) -> None:
            calls[name] += 1
            if not last or last[0] is not given[0]:
                stages.append([])
                last[:] = [given[0]]
            stages[-1].append(name)

        return hook

    hooks = [layer.register_forward_pre_hook(seen(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            call(model.module, model.inputs, model.outputs, inputs)
    finally:
        for made in hooks:
            made.remove()
    return stages, calls


class _Fit:
    """One layer, and what its regression is made from."""

    def __init__(self, layer: Layer, gone: IdArray | None) -> None:
        self.layer = layer
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        whole = outputs + (0 if gone is None else len(gone))
        kept = np.arange(whole) if gone is None else np.setdiff1d(np.arange(whole), gone)
        self._kept = torch.from_numpy(kept)
        self._sums = {held_out: Sums(inputs, outputs) for held_out in (False, True)}

    def add(self, given: torch.Tensor, answer: torch.Tensor, wanted: torch.Tensor, *, held_out: bool) -> None:
        """Take in what the layer reads and answers, and what it answered in the original."""
        axis = -1 if isinstance(self.layer, nn.Linear) else answer.ndim - self.layer.weight.ndim + 1
        residuals = (wanted.index_select(axis, self._kept.to(wanted.device)) - answer).movedim(axis, -1).flatten(0, -2)
        sums = self._sums[held_out]
        if isinstance(self.layer, nn.Linear):
            rows = given.flatten(0, -2)
            chosen = _some(len(rows))
            sums.add(rows[chosen].cpu(), residuals[chosen].cpu())
            return
        samples = len(given)
        positions = len(residuals) // samples
        chosen = _some(len(residuals))
        step = max(1, PATCH_NUMBERS // (self.layer.weight[0].numel() * positions))
        for start in range(0, samples, step):
            stop = min(samples, start + step)
            own = chosen[(chosen >= start * positions) & (chosen < stop * positions)]
            patches = _patches(self.layer, given[start:stop])
            sums.add(patches[own - start * positions].cpu(), residuals[own].cpu())

    def write(self) -> float:
        """Change the layer; returns the share of the error that is left."""
        found = solve(self._sums[False], self._sums[True], intercept=self.layer.bias is not None)
        with torch.no_grad():
            self.layer.weight += found.weight.reshape(self.layer.weight.shape).to(self.layer.weight)
            if self.layer.bias is not None:
                self.layer.bias += found.bias.to(self.layer.bias)
        self._sums.clear()
        return found.left


def _some(count: int) -> torch.Tensor:
    """Rows to look at, all of them or ``MOST_ROWS`` by chance."""
    return torch.arange(count) if count <= MOST_ROWS else torch.randperm(count)[:MOST_ROWS].sort().values


def _patches(layer: nn.Conv1d | nn.Conv2d, given: torch.Tensor) -> torch.Tensor:
    """``(samples x positions, in x kernel)``, positions in the order of the layer's output."""
    if isinstance(layer, nn.Conv1d):
        flat = _same_padding(layer, given).unsqueeze(-2)
        shape = {name: (least, *getattr(layer, name)) for name, least in (("kernel_size", 1), ("stride", 1))}
        found = functional.unfold(
            flat, shape["kernel_size"], (1, *layer.dilation), (0, *_padding(layer)), shape["stride"]
        )
    else:
        found = functional.unfold(
            _same_padding(layer, given), layer.kernel_size, layer.dilation, _padding(layer), layer.stride
        )
    return found.movedim(1, -1).flatten(0, -2)


def _padding(layer: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    return tuple(0 for _ in layer.kernel_size) if isinstance(layer.padding, str) else tuple(layer.padding)


def _same_padding(layer: nn.Conv1d | nn.Conv2d, given: torch.Tensor) -> torch.Tensor:
    """The input with zeros around it where the layer's padding is ``same``."""
    if layer.padding != "same":
        return given
    return functional.pad(given, layer._reversed_padding_repeated_twice)


class _Reached(Exception):
    """All that was waited for has run."""


def _gather_sums(model: Model, original: nn.Module, fits: Mapping[str, _Fit], batches: Sequence[Arrays]) -> None:
    for number, inputs in enumerate(batches):
        held_out = number % HELD_OUT == HELD_OUT - 1 or (number > 0 and number == len(batches) - 1 < HELD_OUT)
        wanted = _seen(model, original, list(fits), inputs)
        found = _seen(model, model.module, list(fits), inputs)
        for name, fit in fits.items():
            fit.add(*found[name], wanted[name][1], held_out=held_out)


def _seen(
    model: Model, module: nn.Module, names: Sequence[str], inputs: Arrays
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What the layers read and answer on ``inputs``; the module is run no further than to the last of them."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor], torch.Tensor], None]:
        def hook(layer: nn.Module, given: tuple[torch.Tensor], answer: torch.Tensor) -> None:
            # What comes after may change either in place.
            found[name] = (given[0].clone(), answer.clone())
            if len(found) == len(names):
                raise _Reached

        return hook

    hooks = [module.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    try:
        with torch.no_grad():
            call(module, model.inputs, model.outputs, inputs)
    except _Reached:
        pass
    finally:
        for made in hooks:
            made.remove()
    return found
