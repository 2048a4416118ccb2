"""N:M sparsity: of every M consecutive weights that are summed, N stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tauten.errors import PassError, RecipeError

_WIDEST: Final = 64
_ROWS: Final = 2**20  # weights that are sorted at once


@dataclass(frozen=True)
class Pattern:
    """``keep`` of every ``block`` consecutive weights along the input dimension stay, those of largest magnitude.

    Consecutive are inputs of the same output: of a linear layer its input features, of a convolution its input
    channels **at one position of the kernel**, so that a kernel's weights are read as (height, width, input channel)
    with the channel fastest. That is the sum which a sparse matrix unit takes in one step: implicit matrix products
    lay a convolution out so (channels last), and pick the block's inputs by two bits a weight (Mishra et al., 2021).
    """

    keep: int
    block: int

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """From ``"2:4"``; ``RecipeError`` names the pass where the text is no pattern."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        keep, block = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 < keep < block <= _WIDEST:
            raise RecipeError(
                f"{name}: pattern: expected N:M with 0 < N < M <= {_WIDEST}, such as '2:4' (2 of every 4 weights "
                f"stay), got {text!r}"
            )
        return cls(keep, block)

    @property
    def ratio(self) -> float:
        """The share that becomes zero."""
        return 1 - self.keep / self.block

    def fault(self, weight: InputWeight) -> str:
        """Why the weight cannot have the pattern; empty where it can."""
        if weight.dim is None:
            return weight.reason
        inputs = weight.tensor.shape[weight.dim] // weight.groups
        if inputs % self.block:
            return f"has {inputs} inputs at a position, which is no multiple of {self.block}"
        return ""

    def candidates(self, weight: InputWeight) -> torch.Tensor:
        """Where the smallest ``block - keep`` of each block are, as a mask in the weight's shape."""
        blocks = self._blocks(weight.tensor.detach(), weight)
        mask = torch.zeros(weight.tensor.shape, dtype=torch.bool, device=weight.tensor.device)
        marked = self._blocks(mask, weight)
        step = max(1, _ROWS // max(1, blocks[0].numel()))
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            order = part.abs().argsort(dim=-1, stable=True)
            # A rank of each weight in its block; ties by position, as everywhere.
            marked[start : start + step] = order.argsort(dim=-1) < self.block - self.keep
        return mask

    def _blocks(self, tensor: torch.Tensor, weight: InputWeight) -> torch.Tensor:
        """A view in which the last dimension is a block."""
        inputs_last = tensor.movedim(weight.dim or 0, -1)
        return inputs_last.view(*inputs_last.shape[:-1], -1, self.block)


@dataclass(frozen=True)
class InputWeight:
    """A weight and which of its dimensions counts inputs, in ``groups`` equal parts; or the reason why none does."""

    tensor: nn.Parameter
    dim: int | None
    groups: int = 1
    reason: str = ""


def fit_pattern(
    module: nn.Module, weights: Mapping[str, nn.Parameter], pattern: Pattern
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """For each weight that the pattern fits, the mask of what becomes zero; for each other one the reason.

    Raises ``PassError`` where it fits none.
    """
    known = input_weights(module)
    masks: dict[str, torch.Tensor] = {}
    refused: dict[str, str] = {}
    for name, tensor in weights.items():
        why = pattern.fault(known[id(tensor)])
        if why:
            refused[name] = why
        else:
            masks[name] = pattern.candidates(known[id(tensor)])
    if not masks:
        told = "; ".join(f"{name} {why}" for name, why in list(refused.items())[:5])
        raise PassError(
            f"the pattern {pattern.keep}:{pattern.block} fits no layer of the model: {told or 'it has none'}"
        )
    return masks, refused


def input_weights(module: nn.Module) -> dict[int, InputWeight]:
    """What is known of each parameter of two and more dimensions, by the tensor's ``id``."""
    found: dict[int, InputWeight] = {}
    for owner in module.modules():
        for name, tensor in owner.named_parameters(recurse=False):
            if tensor.ndim < 2:
                continue
            made = _look(owner, name, tensor)
            known = found.get(id(tensor))
            if known is None or known.dim is None:
                found[id(tensor)] = made
            elif made.dim is not None and (made.dim, made.groups) != (known.dim, known.groups):
                found[id(tensor)] = InputWeight(tensor, None, reason="is shared by layers that read it differently")
    return found


def _look(owner: nn.Module, name: str, tensor: nn.Parameter) -> InputWeight:
    if isinstance(owner, _ConvTransposeNd):
        # (in, out, *kernel): the sum at one position of the kernel is over the first dimension.
        return InputWeight(tensor, 0, owner.groups)
    if isinstance(owner, _ConvNd):
        return InputWeight(tensor, 1)
    if isinstance(owner, nn.Linear | nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase) and "weight" in name:
        return InputWeight(tensor, 1)
    if type(owner).__name__ == "Conv1D" and hasattr(owner, "nf") and name == "weight":
        # The linear layer of GPT-2 in transformers, which keeps its weight as (in, out).
        return InputWeight(tensor, 0)
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return InputWeight(tensor, None, reason="is looked up, not summed over")
    return InputWeight(tensor, None, reason=f"belongs to a {type(owner).__name__}, of which the inputs are not known")
