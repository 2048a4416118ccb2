"""Closes channels that a sample does not need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

import torch
from pydantic import Field
from torch import nn

from tauten.core.rows import resize_rows
from tauten.core.tensor import Arrays
from tauten.errors import PassError, RecipeError
from tauten.make.graph.coupling import couple
from tauten.make.layers.gate import Gate, Gated
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import forward
from tauten.make.passes.dynamic._arithmetic import count
from tauten.make.passes.dynamic._outputs import close, first_samples, similarity
from tauten.make.passes.dynamic._sites import Site, find_sites

__all__ = ["Gates"]

_TRIED: Final = 3  # samples that a gate is tried on
_ROUNDS: Final = 3  # of calibration: a gate's input depends on the gates before it
_RIDGE: Final = 1e-3  # of the mean square of what scores are predicted from
_LATER: Final = "what follows the layer is not its batch norm alone, or the layer runs more than once"
_ONE_PLACE: Final = "it is computed at one place only: its gate would multiply as often as it does"


@dataclass(frozen=True)
class Gates(Pass):
    """Gives layers a gate that closes, sample by sample, the channels that say least: a ``share`` of them on average.

    A gate is a linear layer over the pooled input (feature boosting and suppression: Gao et al., 2019). It is fitted by
    least squares to how much each channel gives to the layers that read it, measured on ``samples`` of the calibration
    data, and its threshold is set there so that the ``share`` holds. Training afterwards (``distill.recover``) trains
    gates along, and keeps the share.

    Gated is each convolution or linear layer that alone makes its channels (the inner ones of residual blocks and of
    transformers' feed-forward layers); the rest is told under ``refused``. Closed channels are multiplied by zero: an
    engine that computes on whole tensors saves no time by that. The notes tell the share of multiplications that an
    engine could skip.
    """

    name: ClassVar[str] = "dynamic.gates"

    share: Annotated[float, Field(ge=0, lt=1)]
    samples: Annotated[int, Field(ge=1)] = 256

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise RecipeError(f"{self.name}: share: expected 0 or more and below 1, got {self.share}")
        if self.samples < 1:
            raise RecipeError(f"{self.name}: samples: expected 1 or more, got {self.samples}")

    def __call__(self, model: Model, context: Context) -> Change:
        data = context.task.data("calibrate")
        given = next(iter(data))[0]
        context.progress("finding coupled channels", 0.0)
        coupling = couple(model.module, model.inputs, given)
        sites, refused = find_sites(coupling.groups, model.module)
        refused = coupling.refused_layers() | refused
        example = resize_rows(model.inputs, given, _TRIED)
        batches = list(first_samples(data, model.inputs, self.samples))
        gated = []
        for site in sites:
            reason = self._open(site, model, example)
            if reason:
                refused[site.path] = reason
            else:
                gated.append(site)
        if not gated:
            told = "; ".join(f"{layer}: {why}" for layer, why in list(refused.items())[:5])
            raise PassError(f"no layer's channels can be gated: {told or 'the model has no coupled channels'}")
        before = [forward(model.module, model.inputs, model.outputs, batch) for batch in batches]
        context.progress("fitting gates", 0.3)
        fits = _fit(gated, model, batches)
        context.progress("calibrating thresholds", 0.6)
        _calibrate(gated, model, batches)
        after = [forward(model.module, model.inputs, model.outputs, batch) for batch in batches]
        zeroed = _zeroed(gated, model, example)
        runs = ((lambda b=batch: forward(model.module, model.inputs, model.outputs, b)) for batch in batches)
        counted = count(model.module, gated, zeroed, runs)
        notes = {
            "gates": [
                {
                    "layer": site.path,
                    "read_by": [reader.path for reader in site.readers],
                    "channels": site.channels,
                    "closed": round(counted.closed[site.path] / counted.samples, 6),
                    "explained": fits[site.path],
                    "zeros_reach_readers": zeroed[site.path],
                }
                for site in gated
            ],
            **counted.to_notes(),
            "time_saved": "none on engines that compute on whole tensors, such as ONNX Runtime",
            "similarity": similarity(before, after),
            "refused": refused,
        }
        return Change(model.module, notes)

    def _open(self, site: Site, model: Model, example: Arrays) -> str | None:
        """Put in a gate that is always open where the model then answers as before; else say why not."""
        module = model.module
        layer: Any = module.get_submodule(site.path)
        norm = nn.Identity() if site.norm is None else module.get_submodule(site.norm)
        if _places(layer, model, example) < 2:
            return _ONE_PLACE
        space = None if isinstance(layer, nn.Linear) else layer.weight.ndim - 2
        inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        gate = Gate(inputs, site.channels, self.share, space).to(layer.weight.device)
        expected = forward(module, model.inputs, model.outputs, example)
        module.set_submodule(site.path, Gated(layer, norm, gate).eval())
        if site.norm is not None:
            module.set_submodule(site.norm, nn.Identity().eval())
        came = forward(module, model.inputs, model.outputs, example)
        if close(expected, came):
            return None
        module.set_submodule(site.path, layer)
        if site.norm is not None:
            module.set_submodule(site.norm, norm)
        return _LATER


def _places(layer: nn.Module, model: Model, example: Arrays) -> int:
    """At how many places of space, or for how many tokens, a layer computes its channels for one sample."""
    seen: list[int] = []
    handle = layer.register_forward_hook(
        lambda layer, given, out: seen.append(out.numel() // (len(out) * len(layer.weight)))
    )
    try:
        forward(model.module, model.inputs, model.outputs, example)
    finally:
        handle.remove()
    return seen[0] if len(seen) == 1 else 0


def _gated(site: Site, model: Model) -> Gated:
    found = model.module.get_submodule(site.path)
    if not isinstance(found, Gated):
        raise PassError(f"{site.path}: expected a gated layer, found a {type(found).__name__}")
    return found


def _fit(sites: Sequence[Site], model: Model, batches: Sequence[Arrays]) -> dict[str, float]:
    """Least squares from pooled inputs to what the channels give; returns the explained share of the variance."""
    pooled: dict[str, list[torch.Tensor]] = {site.path: [] for site in sites}
    energy: dict[str, list[torch.Tensor]] = {site.path: [] for site in sites}
    handles = []
    for site in sites:
        gated = _gated(site, model)
        handles.append(gated.gate.register_forward_pre_hook(_keep_pooled(pooled[site.path])))
        for number, reader in enumerate(site.readers):
            layer = _layer(model.module, reader.path)
            handles.append(layer.register_forward_pre_hook(_keep_energy(energy[site.path], site, number)))
    try:
        for batch in batches:
            forward(model.module, model.inputs, model.outputs, batch)
    finally:
        for handle in handles:
            handle.remove()
    explained = {}
    for site in sites:
        given = torch.cat(pooled[site.path]).double()
        size = len(site.readers)
        by_reader = [torch.cat(energy[site.path][number::size]) for number in range(size)]
        wanted = torch.stack(by_reader).sum(0).sqrt()
        explained[site.path] = _solve(_gated(site, model).gate, given, wanted)
    return explained


def _layer(module: nn.Module, path: str) -> nn.Module:
    """What stands at a path, below the gate that it may have by now."""
    found = module.get_submodule(path)
    return found.layer if isinstance(found, Gated) else found


def _keep_pooled(kept: list[torch.Tensor]) -> Any:
    def hook(gate: Gate, args: tuple[torch.Tensor]) -> None:
        kept.append(gate.pool(args[0]).cpu())

    return hook


def _keep_energy(kept: list[torch.Tensor], site: Site, number: int) -> Any:
    """Takes down the square of what each channel gives to a reader: its input's, times that of the weights."""
    reader = site.readers[number]

    def hook(layer: Any, args: tuple[torch.Tensor]) -> None:
        x, weight = args[0].double(), layer.weight.double()
        dims = tuple(range(1, x.ndim - 1)) if isinstance(layer, nn.Linear) else tuple(range(2, x.ndim))
        squares = x.square().sum(dims) if dims else x.square()
        squares = (
            squares * weight.square().flatten(2).sum((0, 2)) if weight.ndim > 2 else squares * weight.square().sum(0)
        )
        of_entries = squares.cpu()[:, reader.entry]
        kept.append(torch.zeros(len(x), site.channels, dtype=torch.double).index_add_(1, reader.unit, of_entries))

    return hook


def _solve(gate: Gate, given: torch.Tensor, wanted: torch.Tensor) -> float:
    """Ridge regression of ``wanted (samples, channels)`` on ``given (samples, inputs)``, into the gate's weights."""
    middle, target = given.mean(0), wanted.mean(0)
    x, y = given - middle, wanted - target
    square = x.T @ x
    ridge = _RIDGE * square.diagonal().mean().clamp(min=1e-12) * torch.eye(len(square), dtype=square.dtype)
    weight = torch.linalg.solve(square + ridge, x.T @ y).T
    # Scores of about one: the threshold and its width are then of a size that training moves well.
    scale = wanted.square().mean().sqrt().clamp(min=1e-12)
    with torch.no_grad():
        gate.score.weight.copy_(weight / scale)
        gate.score.bias.copy_((target - weight @ middle) / scale)
    spread = (wanted - wanted.mean()).square().sum()
    left = (y - x @ weight.T).square().sum()
    return round(float(1 - left / spread), 6) if float(spread) else 1.0


def _calibrate(sites: Sequence[Site], model: Model, batches: Sequence[Arrays]) -> None:
    """Set thresholds, again and again as a gate changes what those behind it are given."""
    for _ in range(_ROUNDS):
        scores: dict[str, list[torch.Tensor]] = {site.path: [] for site in sites}
        handles = [
            _gated(site, model).gate.score.register_forward_hook(
                lambda layer, given, out, kept=scores[site.path]: kept.append(out)
            )
            for site in sites
        ]
        try:
            for batch in batches:
                forward(model.module, model.inputs, model.outputs, batch)
        finally:
            for handle in handles:
                handle.remove()
        for site in sites:
            _gated(site, model).gate.calibrate(torch.cat(scores[site.path]))


def _zeroed(sites: Sequence[Site], model: Model, example: Arrays) -> dict[str, bool]:
    """By site, whether closed channels reach all of their readers as zeros: found by closing all of them."""
    found = dict.fromkeys((site.path for site in sites), True)
    handles = []
    kept = []
    for site in sites:
        gate = _gated(site, model).gate
        kept.append((gate, gate.threshold.clone()))
        gate.threshold.fill_(torch.inf)
        for reader in site.readers:
            layer = _layer(model.module, reader.path)

            def see(layer: Any, args: Any, path: str = site.path, entry: torch.Tensor = reader.entry) -> None:
                channels = args[0].movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
                found[path] &= not bool(channels[entry.to(channels.device)].any())

            handles.append(layer.register_forward_pre_hook(see))
    try:
        forward(model.module, model.inputs, model.outputs, example)
    finally:
        for handle in handles:
            handle.remove()
        for gate, threshold in kept:
            gate.threshold.copy_(threshold)
    return found
