"""Less memory for more time: what is inside blocks is computed again for the gradients, and not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tauten.make.model.training.blocks import Block, choose_blocks, find_blocks
from tauten.make.model.training.trial import trying

__all__ = ["find_blocks", "recomputing"]


@contextmanager
def recomputing(
    wanted: bool | Sequence[str],
    module: nn.Module,
    trial: Callable[[], object],
    refused: dict[str, str] | None = None,
) -> Iterator[int]:
    """Blocks of the module forget their inside while this lasts; gives how many do (Chen et al., 2016).

    ``wanted`` names them, or says that those are to be found which the module's tree shows: see ``blocks``. ``trial``
    runs the module once in training mode, which shows what must not be computed twice; that is left alone, and told by
    name in ``refused``. Raises ``PassError`` for a name that the module has not.
    """
    blocks = choose_blocks(module, wanted)
    if blocks:
        reasons = _refusals(module, blocks, trial)
        if refused is not None:
            refused.update(reasons)
        blocks = [block for block in blocks if block.name not in reasons]
    owners = list(dict.fromkeys(block.owner for block in blocks))
    own = {owner: owner.__dict__.get("forward") for owner in owners}
    for owner in owners:
        owner.forward = _forgetful(owner, [block for block in blocks if block.owner is owner])
    try:
        yield len(blocks)
    finally:
        for owner, was in own.items():
            if was is None:
                del owner.forward
            else:
                owner.forward = was


def _refusals(module: nn.Module, blocks: Sequence[Block], trial: Callable[[], object]) -> dict[str, str]:
    """Blocks that cannot be computed twice, with the reason."""
    norms = {id(buffer) for block in blocks for part in block.modules() if isinstance(part, _BatchNorm)
             for buffer in part.buffers(recurse=False)}  # fmt: skip
    states = {
        block.name: [
            buffer for part in block.modules() for buffer in part.buffers(recurse=False) if id(buffer) not in norms
        ]
        for block in blocks
    }
    versions = {name: [buffer._version for buffer in buffers] for name, buffers in states.items()}
    watches = {block.name: _Watch(block) for block in blocks}
    try:
        with trying(module):
            trial()
            after = {name: [buffer._version for buffer in buffers] for name, buffers in states.items()}
    finally:
        for watch in watches.values():
            watch.remove()
    found = {}
    for block in blocks:
        if any(isinstance(part, nn.RNNBase) for part in block.modules()):
            # These keep what backward needs in a reserve of their own: nothing is won.
            found[block.name] = "holds a recurrent layer, which keeps its own states"
        elif versions[block.name] != after[block.name]:
            found[block.name] = "has a state that changes when it is computed, and would change twice"
        elif watches[block.name].wrote:
            found[block.name] = "writes over what it is given, and could not be computed from it again"
        elif not watches[block.name].called:
            found[block.name] = "is not called as a whole by the model"
    return found


class _Watch:
    """Sees whether a block is called, and whether it writes over tensors that it is given."""

    def __init__(self, block: Block) -> None:
        self.called = False
        self.wrote = False
        self._before: list[tuple[torch.Tensor, int]] = []
        first, last = block.layers[0], block.layers[-1]
        self._handles = [
            first.register_forward_pre_hook(self._start, with_kwargs=True, prepend=True),
            last.register_forward_hook(self._end),
        ]
        if block.is_run:
            # Its layers may be called by somebody else than the chain that they stand in.
            self._handles += [block.owner.register_forward_pre_hook(self._call)]
        self._is_run = block.is_run

    def _call(self, layer: nn.Module, args: Any) -> None:
        self.called = True

    def _start(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        self.called = self.called or not self._is_run
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        self._before = [(value, value._version) for value in given]

    def _end(self, layer: nn.Module, args: Any, out: Any) -> None:
        self.wrote = self.wrote or any(value._version != version for value, version in self._before)
        self._before = []

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _forgetful(owner: nn.Module, blocks: Sequence[Block]) -> Callable[..., Any]:
    """The owner's ``forward``, with its blocks checkpointed."""
    if not blocks[0].is_run:
        return _checkpointed(owner, blocks[0], owner.forward)
    steps: dict[nn.Module, Callable[..., Any]] = {}
    inside = set[nn.Module]()
    for block in blocks:
        steps[block.layers[0]] = _checkpointed(owner, block, _chain(block.layers))
        inside |= set(block.layers[1:])

    def run(given: Any) -> Any:
        for layer in owner.children():
            if layer not in inside:
                given = steps.get(layer, layer)(given)
        return given

    return run


def _chain(layers: Sequence[nn.Module]) -> Callable[..., Any]:
    def run(given: Any) -> Any:
        for layer in layers:
            given = layer(given)
        return given

    return run


def _checkpointed(owner: nn.Module, block: Block, forward: Callable[..., Any]) -> Callable[..., Any]:
    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _norms_untold(block)

    def call(*given: Any, **named: Any) -> Any:
        if not (owner.training and torch.is_grad_enabled()):
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, context_fn=contexts, **named)

    return call


@contextmanager
def _norms_untold(block: Block) -> Iterator[None]:
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
