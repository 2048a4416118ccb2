"""How much the answers change when a weight does: second moments of what layers are given and of what comes back.

Answers are held against themselves: random combinations of them, each of unit size for a sample, are traced back
through the module. The mean of ``g g^T`` over these gradients is the Gauss-Newton curvature of the squared relative
change of the answers (Schraudolph, 2002); nothing is trained, and no label is read. Of a linear layer both moments,
``x x^T`` and ``g g^T``, make its curvature (Martens and Grosse, 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from tauten.core.rows import count_rows
from tauten.core.tensor import Arrays
from tauten.make.model.model import Model
from tauten.make.model.run import Tensors, call
from tauten.make.passes.compress._sites import Site
from tauten.make.passes.quantize._matrix import as_rows
from tauten.make.passes.quantize._sites import plain_attention

MOST_RELATED: Final = 4096
"""Of more inputs or outputs, only their own powers are kept, not how they are related."""


@dataclass
class Moments:
    """Sums over one layer's calls; what was not seen is ``None``.

    ``gradients`` is the sum of ``g g^T``, ``(outputs, outputs)``, or ``(outputs,)`` of very many or of groups.
    ``inputs`` ``(groups, inputs, inputs)`` and ``means`` ``(groups, inputs)`` are means over places, weighted by
    ``|g|^2``. ``counts`` says of a table how often each row was read, ``sizes`` are pairs of logarithms (row's size,
    gradient's). ``squares`` is the sum of each row's squared gradients of the parameter itself, ``(rows,)``.
    """

    gradients: Tensor | None = None
    inputs: Tensor | None = None
    means: Tensor | None = None
    weight: float = 0.0
    counts: Tensor | None = None
    sizes: list[Tensor] = field(default_factory=list)
    squares: Tensor | None = None
    calls: list[Tensor] = field(default_factory=list)
    """The weight of each place that the layer was given, call by call: ``(places,)``."""
    source: int = 0
    """Where what it was first given lies in memory: layers that are given the same are rounded together."""


@dataclass(frozen=True)
class Curvature:
    """Moments by the parameter's path, of ``samples`` samples; ``order`` are paths as layers were first called."""

    moments: dict[str, Moments]
    order: tuple[str, ...] = ()
    samples: int = 0
    batches: int = 0


def measure(model: Model, sites: Sequence[Site], batches: Iterable[Arrays], seed: int) -> Curvature:
    """The curvature around ``model`` on ``batches``; the module's gradients are left empty, its weights as they are.

    Raises ``RuntimeError`` where the answers have no gradients.
    """
    module = model.module
    draw = torch.Generator().manual_seed(seed)
    moments = {site.path: Moments() for site in sites}
    order: dict[str, None] = {}
    hooks = [
        site.layer.register_forward_hook(_watch(site, moments[site.path], order, draw))
        for site in sites
        if site.layer is not None
    ]
    wanted = {parameter: parameter.requires_grad for parameter in module.parameters()}
    samples = walked = 0
    try:
        for parameter in wanted:
            parameter.requires_grad_(parameter.is_floating_point())
        for inputs in batches:
            with torch.enable_grad(), plain_attention():
                answers = call(module, model.inputs, model.outputs, inputs)
                torch.autograd.backward(_scalar(answers, count_rows(model.inputs, inputs), draw))
            for site in sites:
                _square(site, moments[site.path])
            module.zero_grad(set_to_none=True)
            samples += count_rows(model.inputs, inputs)
            walked += 1
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, was in wanted.items():
            parameter.grad = None
            parameter.requires_grad_(was)
    for found in moments.values():
        _settle(found)
    return Curvature(moments, tuple(order), samples, walked)


def _scalar(answers: Tensors, rows: int, draw: torch.Generator) -> Tensor:
    """A random combination of the answers in which each sample's has a size of one."""
    total: Tensor | None = None
    for answer in answers.values():
        if not answer.is_floating_point() or not answer.requires_grad:
            continue
        power = float(answer.detach().double().square().sum()) / max(rows, 1)
        if not power or not torch.isfinite(torch.tensor(power)):
            continue
        mix = torch.randn(answer.shape, generator=draw).to(answer)
        part = (answer * mix).sum() / power**0.5
        total = part if total is None else total + part
    if total is None:
        raise RuntimeError("no answer has a gradient")
    return total


Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


def _watch(site: Site, moments: Moments, order: dict[str, None], draw: torch.Generator) -> Hook:
    def called(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        order.setdefault(site.path)
        if not given or not isinstance(answer, Tensor) or not answer.requires_grad:
            return
        x = given[0].detach()
        moments.source = moments.source or x.data_ptr()
        add = _add_table if site.kind == "table" else _add_product
        place = len(moments.calls)
        moments.calls.append(torch.zeros(0))

        def came(gradient: Tensor) -> None:
            moments.calls[place] = add(site, moments, x, gradient.detach().float(), draw)

        answer.register_hook(came)  # type: ignore[no-untyped-call]

    return called


def _add_table(site: Site, moments: Moments, x: Tensor, gradient: Tensor, draw: torch.Generator) -> Tensor:
    rows, index = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1)
    power = rows.square().sum(1)
    read = power > 0
    rows, index, power = rows[read], index[read], power[read]
    if moments.counts is None:
        moments.counts = torch.zeros(len(site.weight), dtype=torch.float64)
    moments.counts += torch.bincount(index, minlength=len(moments.counts)).double()
    moments.gradients = _plus(moments.gradients, _outer(rows))
    size = site.weight[index].square().sum(1)
    moments.sizes.append(torch.stack([size, power])[:, size > 0].double().log())
    return power


def _add_product(site: Site, moments: Moments, x: Tensor, gradient: Tensor, draw: torch.Generator) -> Tensor:
    layer = site.layer
    if isinstance(layer, nn.Linear):
        rows = gradient.reshape(-1, gradient.shape[-1])
        weight = rows.square().sum(1)
        add_inputs(moments, layer, x, weight, draw)
    else:
        space = len(layer.kernel_size)
        rows = gradient.movedim(-1 - space, -1).reshape(-1, gradient.shape[-1 - space])
        weight = torch.zeros(0)
        add_inputs(moments, layer, x, weight, draw)
    moments.gradients = _plus(moments.gradients, _outer(rows) if site.groups == 1 else rows.square().sum(0).double())
    return weight


def add_inputs(moments: Moments, layer: Any, x: Tensor, weight: Tensor, draw: torch.Generator) -> None:
    """Add what a layer is given; places are weighted by ``weight`` ``(places,)``, or alike where that is empty."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(1, -1, x.shape[-1]).float()
        if len(weight) == rows.shape[1]:
            kept = weight > 0
            rows, weight = rows[:, kept], weight[kept]
        else:
            weight = torch.ones(rows.shape[1])
    else:
        rows = as_rows(layer, x, draw)
        weight = torch.ones(rows.shape[1])
    if not rows.shape[1]:
        return
    weighted = rows * weight[None, :, None]
    if rows.shape[2] > MOST_RELATED:
        own = (weighted * rows).sum(1).double()
    else:
        own = (weighted.transpose(1, 2) @ rows).double()
    moments.inputs = _plus(moments.inputs, own)
    moments.means = _plus(moments.means, weighted.sum(1).double())
    moments.weight += float(weight.sum(dtype=torch.float64))


def _outer(rows: Tensor) -> Tensor:
    return (rows.square().sum(0) if rows.shape[1] > MOST_RELATED else rows.T @ rows).double()


def _plus(sum_: Tensor | None, more: Tensor) -> Tensor:
    return more if sum_ is None else sum_.add_(more)


def _square(site: Site, moments: Moments) -> None:
    gradient = site.parameter.grad
    if gradient is not None:
        rows = gradient.reshape(len(gradient) if gradient.ndim > 1 else 1, -1)
        moments.squares = _plus(moments.squares, rows.square().sum(1, dtype=torch.float64))


def _settle(moments: Moments) -> None:
    if moments.inputs is not None and moments.means is not None and moments.weight:
        moments.inputs /= moments.weight
        moments.means /= moments.weight


class _Enough(Exception):
    """All layers that were asked for have been called."""


def watch_inputs(
    model: Model, sites: Sequence[Site], batches: Iterable[Arrays], known: Curvature, seed: int
) -> dict[str, Moments]:
    """What products are given now, weighted as in ``known``: moments with ``inputs`` and ``means`` alone.

    ``batches`` are those of ``known``. The module is run no further than to the last of the products.
    """
    once = all(len(known.moments[site.path].calls) == known.batches for site in sites)
    draw = torch.Generator().manual_seed(seed)
    found = {site.path: Moments() for site in sites}
    at = dict.fromkeys(found, 0)
    left: set[str] = set()

    def watch(site: Site) -> Hook:
        def called(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
            calls = known.moments[site.path].calls
            if given and at[site.path] < len(calls):
                add_inputs(found[site.path], layer, given[0].detach(), calls[at[site.path]], draw)
            at[site.path] += 1
            left.discard(site.path)
            if once and not left:
                raise _Enough

        return called

    hooks = [site.layer.register_forward_hook(watch(site)) for site in sites]
    try:
        with torch.no_grad(), plain_attention():
            for inputs in batches:
                left.update(found)
                with suppress(_Enough):
                    call(model.module, model.inputs, model.outputs, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for moments in found.values():
        _settle(moments)
    return found
