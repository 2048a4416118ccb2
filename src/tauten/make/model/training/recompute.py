"""Less memory for more time: what is inside repeated blocks is computed again for the gradients, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tauten.make.model.training.trial import trying


@contextmanager
def recomputing(wanted: bool, module: nn.Module, trial: Callable[[], object]) -> Iterator[int]:
    """The module's repeated blocks forget their inside while this lasts; gives how many do (Chen et al., 2016).

    Blocks are what an ``nn.Sequential`` or ``nn.ModuleList`` repeats, if they hold more than one layer. ``trial`` runs
    the module once in training mode: a block with buffers that change in another way than batch normalization's is left
    alone, since computing it twice would change them twice.
    """
    blocks = [block for block in find_blocks(module) if _is_safe(block)] if wanted else []
    if blocks:
        changed = _changed_buffers(module, blocks, trial)
        blocks = [block for block in blocks if not changed & {id(buffer) for buffer in block.buffers()}]
    own = {block: block.__dict__.get("forward") for block in blocks}
    for block in blocks:
        block.forward = _forgetful(block, block.forward)
    try:
        yield len(blocks)
    finally:
        for block, was in own.items():
            if was is None:
                del block.forward
            else:
                block.forward = was


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost blocks of more than one layer that containers repeat, each once."""
    found: dict[nn.Module, None] = {}

    def visit(part: nn.Module) -> None:
        if not isinstance(part, nn.Sequential | nn.ModuleList):
            for child in part.children():
                visit(child)
            return
        for child in part.children():
            if isinstance(child, nn.Sequential | nn.ModuleList) and any(_layers(inner) > 1 for inner in child):
                visit(child)
            elif _layers(child) > 1:
                found[child] = None

    visit(module)
    return list(found)


def _layers(module: nn.Module) -> int:
    """How many layers without parts it has."""
    return sum(1 for part in module.modules() if not any(True for _ in part.children()))


def _is_safe(block: nn.Module) -> bool:
    # Bidirectional, cuDNN-backed layers keep what backward needs in a reserve of their own: nothing is won.
    return not any(isinstance(part, nn.RNNBase) for part in block.modules())


def _changed_buffers(module: nn.Module, blocks: list[nn.Module], trial: Callable[[], object]) -> set[int]:
    norms = {id(buffer) for block in blocks for part in block.modules() if isinstance(part, _BatchNorm)
             for buffer in part.buffers(recurse=False)}  # fmt: skip
    watched = [buffer for block in blocks for buffer in block.buffers() if id(buffer) not in norms]
    before = [buffer._version for buffer in watched]
    with trying(module):
        trial()
        after = [buffer._version for buffer in watched]
    return {id(buffer) for buffer, old, new in zip(watched, before, after, strict=True) if old != new}


def _forgetful(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _norms_untold(block)

    def call(*given: Any, **named: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, context_fn=contexts, **named)

    return call


@contextmanager
def _norms_untold(block: nn.Module) -> Iterator[None]:
    """Batch normalization by the batch's statistics, of which the running ones have been told already."""
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    before = [(part, part.momentum, part.num_batches_tracked) for part in norms if part.training]
    for part, _, _ in before:
        part.momentum = 0.0
        part.num_batches_tracked = None
    try:
        yield
    finally:
        for part, momentum, batches in before:
            part.momentum = momentum
            part.num_batches_tracked = batches
