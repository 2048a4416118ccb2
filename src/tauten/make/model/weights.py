"""A module's numbers as one file and back, quantized layers too: safetensors with a JSON header, never a pickle.

The file holds the module's tensors by their names. Its header says of each quantized layer what its grid is, which
batch norms were folded away, and which tensors are one. Codes of 4 bits lie two a byte; a matrix that 16 bits hold
exactly is stored in 16 bits. What the module computes is not in the file: it is built by the user's own code.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from tauten.artifact.nibbles import pack_nibbles, unpack_nibbles
from tauten.core.tensor import Array
from tauten.errors import ArtifactError, PassError, TaskError
from tauten.make.layers.quantized import QUANTIZABLE, Grid, QuantizedLayer, put_layer
from tauten.make.model.build import build
from tauten.make.model.model import Model
from tauten.make.model.task import Task

_KEY: Final = "tauten"
_VERSION: Final = 1
_MOST_HEADER: Final = 16 * 2**20
_ENTRY: Final[dict[str, Any]] = {
    "bits": int,
    "axis": (int, type(None)),
    "group": int,
    "zero_point": bool,
    "input": bool,
    "bias": bool,
}
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HALVES: Final = (torch.float16, torch.bfloat16)


def save_module(what: Model | nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write the numbers of a model that Tauten made, or of any module, to the file ``path``, whole or not at all.

    Raises ``TaskError`` where the module holds state that is no tensor, ``ArtifactError`` where the disk refuses.
    """
    module = what.module if isinstance(what, Model) else what
    tensors, tied = _tensors(module)
    layers = {name: part for name, part in module.named_modules() if isinstance(part, QuantizedLayer)}
    for name, layer in layers.items():
        if layer.bits == 4:
            codes = f"{name}.codes" if name else "codes"
            tensors[codes] = torch.from_numpy(pack_nibbles(tensors[codes].numpy()))
    header = {
        "version": _VERSION,
        "layers": {name: _describe(layer) for name, layer in layers.items()},
        "identities": [name for name, part in module.named_modules() if type(part) is nn.Identity],
        "tied": tied,
    }
    data = save_tensors(tensors, {_KEY: json.dumps(header, sort_keys=True)})
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.write_bytes(data)
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as fault:
        raise ArtifactError(f"{path}: cannot be written: {fault.strerror or fault}") from fault
    return path


def load_module(path: str | os.PathLike[str], module_builder: Task | nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The module that ``save_module`` wrote, in evaluation mode: the user's own, built anew, with the file's numbers.

    ``module_builder`` builds the module as it was before it was quantized, or is one, which is copied. The file is not
    trusted: ``ArtifactError`` where it is damaged, or names, shapes, dtypes or grids are not those of such a module.
    """
    path = Path(path)
    module = copy.deepcopy(module_builder) if isinstance(module_builder, nn.Module) else _built(module_builder)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = _header(file.metadata())
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as fault:
        raise ArtifactError(f"{path}: expected a file of tauten.save_module: {fault}") from fault
    except ArtifactError as fault:
        raise ArtifactError(f"{path}: {fault}") from None
    try:
        return _rebuild(module.eval(), header, tensors)
    except (ArtifactError, PassError) as fault:
        raise ArtifactError(f"{path}: {fault}") from None


def _tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The module's tensors, each once, and which other names they have."""
    found: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise TaskError(f"{name}: expected a tensor, got a {type(tensor).__name__}, which safetensors cannot hold")
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and first.setdefault(key, name) != name:
            tied[name] = first[key]
        else:
            found[name] = _small(tensor.detach().cpu().contiguous().clone())
    return found, tied


def _small(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32 and tensor.ndim > 1:
        for half in _HALVES:
            if torch.equal(tensor.to(half).float(), tensor):
                return tensor.to(half)
    return tensor


def _describe(layer: QuantizedLayer) -> dict[str, Any]:
    return {
        "bits": layer.bits,
        "axis": layer.axis,
        "group": layer.group,
        "zero_point": layer.zero_point is not None,
        "input": layer.input_range is not None,
        "bias": layer.bias is not None,
    }


def _built(builder: Any) -> nn.Module:
    if isinstance(builder, Task):
        task = builder
        return copy.deepcopy(build(task)) if isinstance(task.model, nn.Module) else build(task)
    if not callable(builder):
        raise TaskError(f"expected a function that builds the module, got a {type(builder).__name__}")
    module = builder()
    if not isinstance(module, nn.Module):
        raise TaskError(f"expected a function that builds an nn.Module, got a {type(module).__name__} from it")
    return module


def _header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(_KEY)
    if text is None or len(text) > _MOST_HEADER:
        raise ArtifactError("expected a file of tauten.save_module, got one without its header")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as fault:
        raise ArtifactError(f"expected a header of JSON: {str(fault)[:120]}") from None
    if not isinstance(header, dict) or header.get("version") != _VERSION:
        raise ArtifactError(f"expected version {_VERSION} of the header: the file is of another version of Tauten")
    layers, identities, tied = (header.get(key) for key in ("layers", "identities", "tied"))
    fits = isinstance(layers, dict) and isinstance(identities, list) and isinstance(tied, dict)
    if not fits or not all(isinstance(name, str) for name in (*identities, *tied.values())):  # type: ignore[misc,union-attr]
        raise ArtifactError("expected a header with layers, identities and tied names")
    for name, entry in layers.items():  # type: ignore[union-attr]
        if not isinstance(entry, dict) or set(entry) != set(_ENTRY):
            raise ArtifactError(f"{name[:120]!r}: expected {', '.join(_ENTRY)}")
        for key, kind in _ENTRY.items():
            if not isinstance(entry[key], kind) or (kind is not bool and isinstance(entry[key], bool)):
                raise ArtifactError(f"{name[:120]!r}: {key}: got {str(entry[key])[:40]!r}")
    return header


def _rebuild(module: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    for name in header["identities"]:
        part = _part(module, name)
        if isinstance(part, _NORMS):
            module = put_layer(module, part, nn.Identity())
        elif type(part) is not nn.Identity:
            raise ArtifactError(
                f"{name}: expected a batch norm that was folded, the module has a {type(part).__name__}"
            )
    for name, entry in header["layers"].items():
        part = _part(module, name)
        module = put_layer(module, part, _quantized(name, part, entry, tensors))
    return _filled(module.eval(), tensors, header["tied"])


def _quantized(name: str, part: Any, entry: dict[str, Any], tensors: dict[str, Tensor]) -> QuantizedLayer:
    """The layer with its grid, of which everything is checked; its codes stand in ``tensors`` unpacked."""
    weight = getattr(part, "weight", None)
    if not isinstance(part, QUANTIZABLE) or not isinstance(weight, Tensor) or not weight.numel():
        raise ArtifactError(f"{name}: expected a layer that can be quantized, the module has a {type(part).__name__}")
    bits, axis, group, shape = entry["bits"], entry["axis"], entry["group"], weight.shape
    if bits not in (8, 4) or (axis is not None and not 0 <= axis < weight.ndim):
        raise ArtifactError(f"{name}: expected 8 or 4 bits and an axis of {tuple(shape)}, got {bits} and {axis}")
    if group and not (axis == 0 and weight.ndim == 2 and 0 < group <= shape[1]):
        raise ArtifactError(f"{name}: expected a group of a matrix' rows, got {group} of {tuple(shape)}")
    of_scale = () if axis is None else (shape[axis], -(-shape[1] // group)) if group else (shape[axis],)
    prefix = f"{name}." if name else ""
    scale = _taken(tensors, f"{prefix}scale", torch.float32, of_scale)
    if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
        raise ArtifactError(f"{prefix}scale: expected positive numbers")
    half = 2 ** (bits - 1)
    zero = _taken(tensors, f"{prefix}zero_point", torch.int8, of_scale) if entry["zero_point"] else None
    if zero is not None and not -half <= int(zero.min()) <= int(zero.max()) < half:
        raise ArtifactError(f"{prefix}zero_point: expected numbers from {-half} to {half - 1}")
    if bits == 4:
        packed = _taken(tensors, f"{prefix}codes", torch.uint8, ((weight.numel() + 1) // 2,))
        codes: Array = unpack_nibbles(packed.numpy(), shape)
        tensors[f"{prefix}codes"] = torch.from_numpy(np.ascontiguousarray(codes))
    ends = None
    if entry["input"]:
        low, high = (float(_taken(tensors, f"{prefix}input_{end}", torch.float32, ())) for end in ("low", "high"))
        if not (np.isfinite([low, high]).all() and low <= 0 <= high and low < high):
            raise ArtifactError(f"{prefix}input_low: expected a range around 0, got {low} to {high}")
        ends = (low, high)
    if entry["bias"] and getattr(part, "bias", None) is None:
        # Folding and bias correction give a bias to layers that had none.
        if isinstance(part, nn.Embedding):
            raise ArtifactError(f"{name}: an embedding has no bias")
        outputs = part.out_features if isinstance(part, nn.Linear) else part.out_channels
        part.bias = nn.Parameter(torch.zeros(outputs))
    return QuantizedLayer(
        part, _taken(tensors, f"{prefix}codes", torch.int8, tuple(shape)), Grid(bits, axis, scale, zero, group), ends
    )


def _filled(module: nn.Module, tensors: dict[str, Tensor], tied: dict[str, str]) -> nn.Module:
    own = module.state_dict()
    named = set(tensors) | set(tied)
    if named != set(own):
        odd = sorted(named ^ set(own))
        where = "the file" if odd[0] in named else "the module"
        raise ArtifactError(f"the module and the file differ: only {where} has {odd[0][:200]!r}")
    with torch.no_grad():
        for name, place in own.items():
            source = tied.get(name, name)
            if source not in tensors:
                raise ArtifactError(f"{name}: is tied to {source[:200]!r}, which is not there")
            given = tensors[source]
            small = place.dtype == torch.float32 and given.dtype in _HALVES
            if given.shape != place.shape or not (given.dtype == place.dtype or small):
                raise ArtifactError(
                    f"{name}: expected {place.dtype}{tuple(place.shape)}, got {given.dtype}{tuple(given.shape)}"
                )
            place.copy_(given)
    return module


def _part(module: nn.Module, name: Any) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise ArtifactError(f"the module has no part {str(name)[:200]!r}") from None


def _taken(tensors: dict[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    found = tensors.get(name)
    if found is not None and dtype == torch.float32 and found.dtype in _HALVES:
        found = tensors[name] = found.float()
    if found is None or found.dtype != dtype or tuple(found.shape) != shape:
        got = "nothing" if found is None else f"{found.dtype}{tuple(found.shape)}"
        raise ArtifactError(f"{name}: expected {dtype}{shape}, got {got}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found
