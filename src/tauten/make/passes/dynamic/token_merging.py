"""Merges alike tokens between the blocks of a transformer, so that later blocks have less to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import torch
from pydantic import Field
from torch import nn

from tauten.core.rows import count_rows, resize_rows
from tauten.core.tensor import BATCH, Arrays
from tauten.errors import PassError, RecipeError
from tauten.make.layers.token_merging import MergingBlocks, PassedBlock
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Change, Context, Pass
from tauten.make.model.run import forward
from tauten.make.passes.dynamic._blocks import Row, find_rows, watch, why_not
from tauten.make.passes.dynamic._outputs import close, first_samples, similarity

__all__ = ["TokenMerging"]

_TRIED: Final = 3  # samples that blocks are tried on
_COMPARED: Final = 256  # samples that outputs are compared on
_OTHERWISE: Final = "the model reads what its blocks give in another way than one block after the other"


@dataclass(frozen=True)
class TokenMerging(Pass):
    """After each block but the last, the most similar tokens are merged (ToMe: Bolya et al., 2023).

    ``share`` of the tokens that a block gave, or ``r`` of them where that is given; at most half. Tokens that do not
    depend on the input (a class token) are never merged. Which tokens go is decided by the input, how many is not: the
    shapes stay static. After the last block each token has the value of the one that it was merged into, so that
    outputs keep their shapes and an average over tokens counts each by its size.

    Treated is every row of like blocks that runs in any order and number of tokens; the others are told under
    ``refused``. Changed from the source: merged after a block instead of before its second half, by the similarity of
    what it gave instead of attention's keys, so that a block may be any module.
    """

    name: ClassVar[str] = "dynamic.token_merging"

    share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    r: Annotated[int, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 0.5:
            raise RecipeError(f"{self.name}: share: expected 0 to 0.5, got {self.share}")
        if self.r is not None and self.r < 0:
            raise RecipeError(f"{self.name}: r: expected 0 or more, got {self.r}")

    def __call__(self, model: Model, context: Context) -> Change:
        open_dims = sorted({str(dim) for spec in model.inputs for dim in spec.shape if isinstance(dim, str)} - {BATCH})
        if open_dims:
            raise PassError(f"expected a fixed number of tokens, but {open_dims} vary; declare them as numbers")
        data = context.task.data("calibrate")
        given = next(iter(data))[0]
        example = resize_rows(model.inputs, given, _TRIED)
        context.progress("finding blocks", 0.0)
        compared = list(first_samples(data, model.inputs, _COMPARED))
        before = [forward(model.module, model.inputs, model.outputs, batch) for batch in compared]
        rows, refused = self._rows(model, example)
        notes: list[dict[str, Any]] = []
        treated: list[Row] = []
        for row in rows:
            if any(_inside(row.path, name) for done in treated for name in done.names):
                continue
            reason, note = self._treat(row, model, example, given)
            if reason:
                refused[row.name] = reason
            else:
                treated.append(row)
                notes.append(note)
        if not treated:
            told = "; ".join(f"{name}: {why}" for name, why in list(refused.items())[:5])
            raise PassError(f"no row of like blocks whose tokens can be merged: {told or 'the model has none'}")
        context.progress("comparing outputs", 0.8)
        after = [forward(model.module, model.inputs, model.outputs, batch) for batch in compared]
        return Change(model.module, {"rows": notes, "similarity": similarity(before, after), "refused": refused})

    def _rows(self, model: Model, example: Arrays) -> tuple[list[Row], dict[str, str]]:
        """Rows that may be treated, and for the others why not."""
        rows = find_rows(model.module)
        handles = watch(rows)
        try:
            forward(model.module, model.inputs, model.outputs, example)
        finally:
            for handle in handles:
                handle.remove()
        with torch.inference_mode():
            reasons = {row.name: why_not(row, count_rows(model.inputs, example)) for row in rows}
        refused = {name: reason for name, reason in reasons.items() if reason}
        return [row for row in rows if row.name not in refused], refused

    def _treat(self, row: Row, model: Model, example: Arrays, given: Arrays) -> tuple[str | None, dict[str, Any]]:
        """Put the merging blocks in, where the model then answers as before without merging."""
        tokens = row.tokens.shape[1]
        protected = _fixed_tokens(row, model, given)
        counts = self._counts(tokens - len(protected), len(row.blocks))
        names = row.names
        expected = forward(model.module, model.inputs, model.outputs, example)
        merging = MergingBlocks(row.blocks, [0] * len(row.blocks), protected, row.returned, row.absent).eval()
        _put(row, [merging, *(PassedBlock(row.returned).eval() for _ in row.blocks[1:])])
        reason = None
        try:
            came = forward(model.module, model.inputs, model.outputs, example)
            if not close(expected, came):
                reason = _OTHERWISE
        except Exception as fault:  # noqa: BLE001 - whatever the user's forward raises is the finding
            reason = f"{_OTHERWISE} ({type(fault).__name__}: {fault})"
        if reason:
            _put(row, row.blocks)
            return reason, {}
        merging.merges = tuple(counts)
        received = [tokens - sum(counts[:index]) for index in range(len(counts))]
        return None, {"blocks": names, "tokens": received, "merged": counts, "protected": list(protected)}

    def _counts(self, free: int, blocks: int) -> list[int]:
        """How many tokens are merged after each block."""
        counts = []
        for _ in range(blocks - 1):
            wanted = round(self.share * free) if self.r is None else self.r
            counts.append(min(wanted, free // 2))
            free -= counts[-1]
        return [*counts, 0]


def _put(row: Row, blocks: Sequence[nn.Module]) -> None:
    for index, block in enumerate(blocks, row.start):
        row.container[index] = block


def _inside(path: str, block: str) -> bool:
    return path == block or path.startswith(f"{block}.")


def _fixed_tokens(row: Row, model: Model, given: Arrays) -> tuple[int, ...]:
    """Places of the tokens that are the same whatever the input: those equal over inputs of noise.

    Integers stay as they are: over real samples, a first token that is always the same is the class token.
    """
    draw = np.random.default_rng(0)
    noise = {
        spec.name: draw.standard_normal(given[spec.name].shape).astype(spec.dtype)
        if np.issubdtype(np.dtype(spec.dtype), np.floating)
        else given[spec.name]
        for spec in model.inputs
    }
    seen: list[torch.Tensor] = []
    handle = row.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        forward(model.module, model.inputs, model.outputs, noise)
    finally:
        handle.remove()
    tokens = seen[0]
    same = (tokens == tokens[:1]).all(dim=2).all(dim=0)
    return tuple(same.nonzero().flatten().tolist()) if len(tokens) > 1 else ()
