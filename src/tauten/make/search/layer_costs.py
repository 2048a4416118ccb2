"""What it costs to keep a layer in a higher precision: measured time where the engine tells it, else bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from torch import nn

from tauten.artifact.layers import owner_of
from tauten.artifact.read import Artifact
from tauten.core.tensor import Array
from tauten.errors import TautenError
from tauten.make.search.tried import Costs
from tauten.run.engines import load
from tauten.run.engines.engine import Engine

_ROUNDS: Final = 5  # of each file in turn; the least time of each layer counts, for a busy machine only adds
_CALLS: Final = 3
_TOLD: Final = 0.5
"""The share of the layers' bytes whose times have to be known, for the others to be estimated from them."""


def layer_bytes(module: nn.Module, paths: Collection[str], low_bits: int, high_bits: int) -> Costs:
    """The bytes that the weights of each layer take more, scales left aside."""
    counts = {
        path: sum(parameter.numel() for parameter in module.get_submodule(path).parameters() if parameter.ndim > 1)
        for path in paths
    }
    return Costs(unit="bytes", by_layer={path: count * (high_bits - low_bits) / 8 for path, count in counts.items()})


def layer_times(low: Artifact, high: Artifact, sample: Mapping[str, Array], threads: int, weigh: Costs) -> Costs:
    """The milliseconds that each layer takes more in ``high`` than in ``low``, on ``sample``, by the engine's profile.

    Layers whose time is not told are estimated by their share of ``weigh``, the bytes. Where too little is told,
    ``weigh`` comes back.
    """
    files = (low, high)
    try:
        engines = [load(artifact, threads=threads) for artifact in files]
        best: list[dict[str, float]] = [{}, {}]
        for _ in range(_ROUNDS):
            for engine, artifact, times in zip(engines, files, best, strict=True):
                for path, spent in _profile(engine, artifact, sample).items():
                    times[path] = min(spent, times.get(path, spent))
        for engine in engines:
            engine.close()
    except TautenError:
        return weigh
    paths = weigh.by_layer
    told = [path for path in paths if path in best[0] and path in best[1]]
    weighed = sum(paths[path] for path in told)
    if not told or weighed < _TOLD * sum(paths.values()):
        return weigh
    more = {path: best[1][path] - best[0][path] for path in told}
    rate = max(sum(more.values()), 0.0) / weighed if weighed else 0.0
    return Costs(unit="ms", by_layer={path: more.get(path, rate * size) for path, size in paths.items()})


def _profile(engine: Engine, artifact: Artifact, sample: Mapping[str, Array]) -> dict[str, float]:
    """Milliseconds a call by layer, as far as operations are known to belong to one."""
    found: dict[str, float] = {}
    for one in engine.profile(sample, _CALLS):
        if one.weight:
            path = owner_of(artifact, one.weight)
            found[path] = found.get(path, 0.0) + one.milliseconds
    return found
