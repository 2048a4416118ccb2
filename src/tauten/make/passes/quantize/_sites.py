"""Which layers of a module can get a grid, and which are left to the engine's graph, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tauten.make.layers.quantized import QUANTIZABLE

FEWEST_ROWS: Final = 64
"""An embedding of fewer rows stays in float: it weighs next to nothing."""

_WHOLE: Final = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_ASKED_OF: Final = frozenset(
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "requires_grad", "ndim", "is_cuda", "layout", "is_sparse")
) | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point}
"""What tells of a weight but does not read it."""


@dataclass(frozen=True)
class Sites:
    """Layers by their paths that can get a grid, and by path why others are left to the engine's graph."""

    layers: dict[str, nn.Module]
    refused: dict[str, str]


def find_sites(module: nn.Module, run: Callable[[], object], kinds: tuple[type[nn.Module], ...] = QUANTIZABLE) -> Sites:
    """The layers of ``kinds`` whose weight only they themselves read, found by running the module once with ``run``."""
    refused: dict[str, str] = {}
    layers: dict[str, nn.Module] = {}
    owners = Counter(id(tensor) for part in module.modules() for tensor in part._parameters.values())
    inside = ""
    for path, layer in module.named_modules():
        if inside and path.startswith(f"{inside}."):
            continue
        if isinstance(layer, _WHOLE):
            inside = path or inside
            refused[path] = f"{type(layer).__name__} is one operation of the engine's graph"
        elif isinstance(layer, kinds):
            why = _unfit(layer, owners)
            if why:
                refused[path] = why
            else:
                layers[path] = layer
    for path, why in _watched(layers, run).items():
        refused[path] = why
        del layers[path]
    return Sites(layers, refused)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without PyTorch's fused encoder kernels, which read the weights of layers and never call them."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _unfit(layer: nn.Module, owners: Counter[int]) -> str:
    """Why a layer cannot get a grid, by what it is alone; empty where it can."""
    base = next(kind for kind in QUANTIZABLE if isinstance(layer, kind))
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed at each call"
    if owners[id(weight)] > 1:
        return "its weight is shared with another layer"
    if weight.dtype != torch.float32:
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}, not float32"
    if not weight.numel() or not bool(torch.isfinite(weight).all()):
        return "its weight holds numbers that are not finite" if weight.numel() else "its weight is empty"
    if type(layer).forward is not base.forward or getattr(type(layer), "_conv_forward", None) is not getattr(
        base, "_conv_forward", None
    ):
        return f"{type(layer).__name__} computes in a way of its own"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks"
    if isinstance(layer, nn.Embedding):
        if layer.max_norm is not None:
            return "it changes its weight at each call (max_norm)"
        if layer.num_embeddings < FEWEST_ROWS:
            return f"a table of {layer.num_embeddings} rows, which is small in float"
    return ""


class _Watch(TorchFunctionMode):
    """Notes which weights are read while another layer, or none, runs."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self._owner = {id(layer.weight): path for path, layer in layers.items()}
        self.running: list[str] = []
        self.elsewhere: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _ASKED_OF:
            for value in (*args, *(kwargs or {}).values()):
                for item in value if isinstance(value, list | tuple) else (value,):
                    path = self._owner.get(id(item))
                    if path is not None and (not self.running or self.running[-1] != path):
                        self.elsewhere.add(path)
        return func(*args, **(kwargs or {}))


def _watched(layers: dict[str, nn.Module], run: Callable[[], object]) -> dict[str, str]:
    """Why layers cannot get a grid, by how the module uses them."""
    watch = _Watch(layers)
    called: set[str] = set()
    named: set[str] = set()

    def begin(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            watch.running.append(path)
            called.add(path)
            if not args or kwargs:
                named.add(path)

        return hook

    def end(layer: nn.Module, args: tuple[Any, ...], answer: Any) -> None:
        watch.running.pop()

    hooks = [
        handle
        for path, layer in layers.items()
        for handle in (
            layer.register_forward_pre_hook(begin(path), with_kwargs=True),
            layer.register_forward_hook(end),
        )
    ]
    try:
        with watch:
            run()
    finally:
        for handle in hooks:
            handle.remove()
    found: dict[str, str] = {}
    for path in layers:
        if path in watch.elsewhere:
            found[path] = "other code reads its weight directly"
        elif path not in called:
            found[path] = "calibration data never calls it"
        elif path in named:
            found[path] = "it is called with arguments by name"
    return found
