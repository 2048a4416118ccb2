"""Which parts of a module are worth computing twice: its blocks, found in the tree of modules."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from tauten.errors import PassError

_LARGEST_SHARE = 1 / 3
_FEWEST = 4  # layers in a row that are worth dividing


@dataclass(frozen=True)
class Block:
    """Layers that are computed together. ``owner`` is the module whose ``forward`` runs them.

    Where that is all of it, ``layers`` holds it alone; else it is a run of a plain ``nn.Sequential``'s layers.
    """

    name: str
    owner: nn.Module
    layers: tuple[nn.Module, ...]

    @property
    def is_run(self) -> bool:
        """Whether it is a part of what the owner does."""
        return self.layers != (self.owner,)

    def modules(self) -> list[nn.Module]:
        """All that lies in it."""
        return [part for layer in self.layers for part in layer.modules()]


def choose_blocks(module: nn.Module, wanted: bool | Sequence[str]) -> list[Block]:
    """The blocks that are named, or those that are found. Raises ``PassError`` for a name that the module has not."""
    if isinstance(wanted, bool):
        return find_all(module) if wanted else []
    there = dict(module.named_modules())
    for name in wanted:
        if not name or name not in there:
            raise PassError(f"recompute: the model has no module {name!r}; it has {', '.join([*there][1:9])}, …")
    for name in wanted:
        inside = next((other for other in wanted if other != name and name.startswith(f"{other}.")), None)
        if inside is not None:
            raise PassError(f"recompute: {name} lies in {inside}: name one of them")
    return [Block(name, there[name], (there[name],)) for name in dict.fromkeys(wanted)]


def find_all(module: nn.Module) -> list[Block]:
    """What the module repeats; without that, runs of its chains of layers; without those, its larger parts."""
    names = {part: name for name, part in module.named_modules()}
    repeated = find_blocks(module)
    if repeated:
        return [Block(names[part], part, (part,)) for part in repeated]
    runs = [run for part in module.modules() if type(part) is nn.Sequential for run in _runs(names[part], part)]
    return runs or [Block(names[part], part, (part,)) for part in _parts(module)]


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost blocks of more than one layer that are repeated, each once.

    Repeated are the children of an ``nn.Sequential`` or ``nn.ModuleList``, and modules of a class that occurs again, as
    those of a network do that names its residual blocks one by one. Of the latter none holds more than a third of all
    layers: what is computed twice is all there at once.
    """
    found: dict[nn.Module, None] = {}
    kinds = Counter(type(part) for part in module.modules() if count_layers(part) > 1)
    largest = _LARGEST_SHARE * count_layers(module)

    def visit(part: nn.Module) -> None:
        for child in part.children():
            if isinstance(part, nn.Sequential | nn.ModuleList):
                nested = isinstance(child, nn.Sequential | nn.ModuleList)
                if nested and any(count_layers(inner) > 1 for inner in child.children()):
                    visit(child)
                elif count_layers(child) > 1:
                    found[child] = None
            elif isinstance(child, nn.Sequential | nn.ModuleList):
                visit(child)
            elif kinds[type(child)] > 1 and 1 < count_layers(child) <= largest:
                found[child] = None
            else:
                visit(child)

    visit(module)
    return list(found)


def count_layers(module: nn.Module) -> int:
    """How many layers without parts it has."""
    return sum(1 for part in module.modules() if not any(True for _ in part.children()))


def _runs(name: str, chain: nn.Sequential) -> list[Block]:
    """The chain in about as many runs as each has layers, which needs the least memory (Chen et al., 2016)."""
    layers = list(chain)
    if len(layers) < _FEWEST:
        return []
    size = math.ceil(len(layers) / math.isqrt(len(layers)))
    starts = [0]
    for at in range(1, len(layers)):
        # A layer that writes over what it is given would spoil what is kept of the run before it.
        if at - starts[-1] >= size and not getattr(layers[at], "inplace", False):
            starts.append(at)
    ends = [*starts[1:], len(layers)]
    prefix = f"{name}." if name else ""
    return [
        Block(f"{prefix}{start} to {prefix}{end - 1}" if end - start > 1 else f"{prefix}{start}",
              chain, tuple(layers[start:end]))
        for start, end in zip(starts, ends, strict=True)
    ]  # fmt: skip


def _parts(module: nn.Module) -> list[nn.Module]:
    """The outermost parts of more than one layer that do not hold most of all layers."""
    half = count_layers(module) / 2
    found: list[nn.Module] = []
    for child in module.children():
        if count_layers(child) > half:
            found += _parts(child)
        elif count_layers(child) > 1:
            found.append(child)
    return found
