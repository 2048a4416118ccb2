"""What tells whether two modules answer alike by construction, or two functions: the same code, the same numbers."""

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


def code_of(given: object) -> str:
    """What tells one function from another: its name and what it was compiled to; for other objects their type."""
    if given is None or isinstance(given, str):
        return str(given)
    code = getattr(given, "__code__", None)
    if code is None:
        return f"{type(given).__module__}.{type(given).__qualname__}"
    return f"{code.co_name} {code.co_code.hex()} {code.co_names} {[c for c in code.co_consts if _plain(c)]}"


def _plain(constant: object) -> bool:
    # A constant that is code prints its address, which changes with each process.
    return isinstance(constant, str | bytes | int | float | bool | None)
