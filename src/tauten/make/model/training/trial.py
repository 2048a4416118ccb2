"""A module run once to see what it does, without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tauten.make.model.training.randomness import randomness_kept


@contextmanager
def trying(*modules: nn.Module) -> Iterator[None]:
    """No gradients meanwhile; afterwards buffers and random generators are as before."""
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        with torch.no_grad(), randomness_kept():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
