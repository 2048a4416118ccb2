"""Parameters whose numbers are shared: few different values, and which of them each number is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tauten.errors import PassError
from tauten.make.model.model import Model
from tauten.make.passes.compress._kmeans import Clusters, Ints, Line, entropy
from tauten.make.passes.prune._kinds import by_kind
from tauten.make.passes.prune._samples import Samples
from tauten.make.passes.prune._statistics import activation_norms, drawn_loss, gradients

Importance = Literal["none", "inputs", "fisher"]
FEWEST: Final = 64
"""A parameter of fewer numbers is left alone: there is little to spare in it, and much depends on each."""
BYTES_A_VALUE: Final = 4


@dataclass(frozen=True)
class Weight:
    """A parameter that can be shared, by its name, with what each number of it counts (``None``: all alike)."""

    name: str
    parameter: nn.Parameter
    importance: Tensor | None = None

    @property
    def zeros(self) -> int:
        """How many of its numbers are 0, and stay so."""
        return int((self.parameter == 0).sum())

    def numbers(self) -> npt.NDArray[Any]:
        """All of them, ``(n,)`` in float32."""
        return self.parameter.detach().float().cpu().reshape(-1).numpy()

    def line(self) -> Line:
        """Those that are not 0, to be clustered."""
        numbers = self.numbers()
        kept = numbers != 0
        importance = None if self.importance is None else self.importance.float().cpu().reshape(-1).numpy()
        if not kept.all():
            numbers = numbers[kept]
            importance = None if importance is None else importance[kept]
        return Line(numbers, importance)


@dataclass(frozen=True)
class Shared:
    """A weight that is ``values[index]``: ``values`` ``(k,)`` float32, ``index`` ``(n,)`` int32, its numbers in order.

    With ``zero`` the first of the values is 0, and stays so.
    """

    weight: Weight
    values: Tensor
    index: Tensor
    zero: bool

    @staticmethod
    def of(weight: Weight, clusters: Clusters) -> Shared:
        """Each number's nearest value; zeros are their own."""
        numbers = weight.numbers()
        index, zeros = clusters.index(numbers), numbers == 0
        zero = bool(zeros.any())
        values = clusters.values.astype(np.float32)
        if zero:
            index += 1
            index[zeros] = 0
            values = np.concatenate([np.zeros(1, np.float32), values])
        device = weight.parameter.device
        return Shared(weight, torch.from_numpy(values).to(device), torch.from_numpy(index).to(device), zero)

    def tensor(self) -> Tensor:
        """The numbers in the parameter's shape and dtype."""
        parameter = self.weight.parameter
        return self.values.index_select(0, self.index).reshape(parameter.shape).to(parameter.dtype)

    def put(self) -> None:
        """Write them into the parameter."""
        with torch.no_grad():
            self.weight.parameter.copy_(self.tensor())

    def counts(self) -> Tensor:
        """How many numbers have each value, ``(k,)``."""
        return torch.bincount(self.index, minlength=len(self.values))


def find_weights(module: nn.Module) -> tuple[list[Weight], dict[str, str]]:
    """What can be shared (matrices, kernels, embeddings: each tensor once), and why others of them are left alone."""
    found, refused = list[Weight](), dict[str, str]()
    for name, parameter in by_kind(module)["weights"].items():
        if not parameter.is_floating_point():
            refused[name] = f"its numbers are {str(parameter.dtype).removeprefix('torch.')}"
        elif parameter.numel() < FEWEST:
            refused[name] = f"{parameter.numel()} numbers, too few to share"
        elif not bool(torch.isfinite(parameter).all()):
            refused[name] = "it holds numbers that are not finite"
        elif not bool((parameter != 0).any()):
            refused[name] = "all of its numbers are 0"
        else:
            found.append(Weight(name, parameter))
    return found, refused


def with_importance(weights: list[Weight], model: Model, samples: Samples, by: Importance) -> list[Weight]:
    """The weights with how much the outputs depend on each of their numbers.

    ``inputs``: the mean square of what a linear layer or a convolution multiplies it with; ``fisher``: the mean square
    of its gradient, of the log-likelihood of answers that are drawn from the model's own (Theis et al., 2018). Weights
    of which nothing is known count alike.
    """
    if by == "none":
        return weights
    known = _squares(model, samples) if by == "fisher" else _inputs(model, samples)
    return [Weight(one.name, one.parameter, known.get(one.name)) for one in weights]


def _inputs(model: Model, samples: Samples) -> dict[str, Tensor]:
    return {name: norms.square() for name, norms in activation_norms(model, samples).items()}


def _squares(model: Model, samples: Samples) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for mini_batch in gradients(model, samples, drawn_loss):
        for name, gradient in mini_batch.items():
            found[name] = gradient.square() + found[name] if name in found else gradient.square()
    if not found:
        raise PassError("no gradient of the model on calibration data is finite; choose another importance")
    return found


def coded_bytes(zeros: int, clusters: Clusters) -> float:
    """About what the weight takes in a file: its numbers by their entropy, and the values in float32."""
    counts: Ints = np.concatenate([[zeros], clusters.counts])
    return float(counts.sum()) * entropy(counts) / 8 + BYTES_A_VALUE * float((counts > 0).sum())


def spares_bytes(weight: Weight, clusters: Clusters) -> bool:
    """Whether the weight takes less so than as it is."""
    parameter = weight.parameter
    return coded_bytes(weight.zeros, clusters) < parameter.numel() * parameter.element_size()


def to_notes(shared: Mapping[str, Shared], errors: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """By parameter: how many values, the share of zeros, bits a number by entropy, about how many bytes, and the
    squared error over the squares of what was there."""
    told = {}
    for name, one in shared.items():
        counts = one.counts().cpu().numpy()
        bits = entropy(counts)
        told[name] = {
            "clusters": int((counts > 0).sum()),
            "zeros": float(counts[0] / counts.sum()) if one.zero else 0.0,
            "bits": bits,
            "bytes": round(bits * float(counts.sum()) / 8 + BYTES_A_VALUE * float((counts > 0).sum())),
            "error": errors[name],
        }
    return told
