"""Hashes that tell whether two modules answer alike by construction: the same code path and the same numbers."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def digest(module: nn.Module) -> str:
    """SHA-256 over the module's printed structure and its parameters and buffers (names, dtypes, shapes, bytes)."""
    seen = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict(keep_vars=False).items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        seen.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        seen.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return seen.hexdigest()
