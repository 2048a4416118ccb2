"""Multiplications of convolutions and linear layers, and which of them closed gates make needless."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tauten.make.layers.gate import Gate, Gated
from tauten.make.passes.dynamic._sites import LAYERS, Site


@dataclass
class Products:
    """Sums over samples: the multiplications of all layers, the needless ones, the gates' own.

    ``closed`` is by site the share of channels that are closed, summed over ``samples``.
    """

    every: float = 0.0
    needless: float = 0.0
    gates: float = 0.0
    samples: int = 0
    closed: dict[str, float] = field(default_factory=dict)

    def to_notes(self) -> dict[str, Any]:
        """Multiplications of a sample, the share that could be skipped, and the share that the gates add."""
        return {
            "multiplications": round(self.every / self.samples),
            "skippable_share": round(self.needless / self.every, 6),
            "gates_share": round(self.gates / self.every, 6),
        }


def count(
    module: nn.Module, sites: Sequence[Site], zeroed: Mapping[str, bool], runs: Iterator[Callable[[], Any]]
) -> Products:
    """Count over ``runs``, each of which calls the module with a batch.

    ``zeroed`` says by site whether closed channels reach their readers as zeros; if not, only the products that make
    them are needless.
    """
    made = Products()
    layers = dict(plain_layers(module))
    for run in runs:
        with _watched(module, layers, sites) as (masks, outputs):
            run()
        for path, (samples, products) in outputs.items():
            open_in, open_out = torch.ones(samples), torch.ones(samples)
            if path in masks:
                open_out = masks[path].mean(1)
            for site in sites:
                for reader in site.readers:
                    if reader.path == path and zeroed[site.path]:
                        closed = (1 - masks[site.path][:, reader.unit]).sum(1)
                        open_in = open_in - closed / layers[path].weight.shape[1]
            made.every += samples * products
            made.needless += products * float((1 - open_in * open_out).sum())
        for path, mask in masks.items():
            gated = module.get_submodule(path)
            if isinstance(gated, Gated):
                made.gates += len(mask) * gated.gate.score.weight.numel()
            made.closed[path] = made.closed.get(path, 0.0) + float((1 - mask).mean(1).sum())
        made.samples += len(next(iter(masks.values())))
    return made


def plain_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Convolutions and linear layers by the path that they had before gates came; those of gates are left out."""
    for path, layer in module.named_modules():
        if type(layer) not in LAYERS:
            continue
        above = path.rpartition(".")[0]
        owner = module.get_submodule(above)
        if not isinstance(owner, Gate):
            yield above if isinstance(owner, Gated) else path, layer


@contextmanager
def _watched(
    module: nn.Module, layers: Mapping[str, nn.Module], sites: Sequence[Site]
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, tuple[int, float]]]]:
    """Masks by site, and by layer the samples and the products of each, filled while the module runs."""
    masks: dict[str, torch.Tensor] = {}
    outputs: dict[str, tuple[int, float]] = {}

    def see_mask(path: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(gate: nn.Module, given: Any, mask: torch.Tensor) -> None:
            masks[path] = mask.detach().float().cpu()

        return hook

    def see_output(path: str) -> Callable[[Any, Any, torch.Tensor], None]:
        def hook(layer: Any, given: Any, out: torch.Tensor) -> None:
            before = outputs.get(path, (0, 0.0))[1]
            outputs[path] = (len(out), before + out.numel() / len(out) * layer.weight[0].numel())

        return hook

    handles = [layer.register_forward_hook(see_output(path)) for path, layer in layers.items()]
    for site in sites:
        gated = module.get_submodule(site.path)
        if isinstance(gated, Gated):
            handles.append(gated.gate.register_forward_hook(see_mask(site.path)))
    try:
        yield masks, outputs
    finally:
        for handle in handles:
            handle.remove()
