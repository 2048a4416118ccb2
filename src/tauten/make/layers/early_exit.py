"""A model that may answer before its last layer: small heads on features inside it, and when to believe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import nn

from tauten.make.layers.choice import note_choice

Confidence = Literal["probability", "margin", "entropy"]

NEVER: Final = 2.0
"""A threshold that no confidence reaches."""


class EarlyExits(nn.Module):
    """The answers of ``model``, but for each sample those of the first exit that is sure enough of its own.

    ``heads`` maps paths of modules inside ``model`` to what makes class scores ``(batch, classes)`` of the features
    that such a module returns; they are asked in that order. A sample takes the scores of exit ``i`` where their
    confidence, with the scores divided by ``temperatures[i]``, is at least ``thresholds[i]``. Samples do not see each
    other. Nothing is saved here, where all exits and the whole model are computed: a lowering makes stages of it.
    ``shares`` of samples left at each exit when the thresholds were set; it is told, not used.

    Source: Teerapittayanon et al., 2016 (BranchyNet); confidence by softmax with temperature after Guo et al., 2017.
    """

    thresholds: torch.Tensor
    temperatures: torch.Tensor

    def __init__(
        self, model: nn.Module, heads: Mapping[str, nn.Module], confidence: Confidence = "probability"
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleList(heads.values())
        self.paths = tuple(heads)
        self.confidence: Confidence = confidence
        self.shares = (0.0,) * len(heads)
        self.register_buffer("thresholds", torch.full((len(heads),), NEVER))
        self.register_buffer("temperatures", torch.ones(len(heads)))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Class scores ``(batch, classes)``."""
        scores, answer = self.all_scores(*inputs)
        for index in reversed(range(len(self.heads))):
            sure = confidence(scores[index] / self.temperatures[index], self.confidence)
            threshold = self.thresholds[index]
            note_choice(partial(_margin, sure, threshold))
            answer = torch.where((sure >= threshold).unsqueeze(1), scores[index], answer)
        return answer

    def all_scores(self, *inputs: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The scores of each exit, and those of the whole model."""
        # A head reads its features at once: what comes after may overwrite them in place.
        scores, returned = watch(self.model, self.paths, inputs, lambda index, features: self.heads[index](features))
        return scores, _first(returned)

    def keep(self, exits: Sequence[int]) -> None:
        """Do without the exits that are not named, in place."""
        self.heads = nn.ModuleList(self.heads[index] for index in exits)
        self.paths = tuple(self.paths[index] for index in exits)
        self.shares = tuple(self.shares[index] for index in exits)
        chosen = torch.tensor(list(exits), dtype=torch.long)
        self.thresholds, self.temperatures = self.thresholds[chosen], self.temperatures[chosen]


def watch(
    model: nn.Module, paths: Sequence[str], inputs: Sequence[Any], see: Callable[[int, torch.Tensor], Any]
) -> tuple[list[Any], Any]:
    """Run ``model`` and call ``see(index, output)`` as each module at ``paths`` returns; its results, and the model's.

    A path may come twice or never; the results are by index, ``None`` for what was not called.
    """
    seen: list[Any] = [None] * len(paths)

    def hook(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def call(module: nn.Module, given: Any, returned: Any) -> None:
            seen[index] = see(index, returned)

        return call

    handles = [model.get_submodule(path).register_forward_hook(hook(index)) for index, path in enumerate(paths)]
    try:
        returned = model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen, returned


def _margin(sure: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return (sure - threshold).abs()


def _first(returned: Any) -> torch.Tensor:
    """The first tensor that a model returned, alone, in a tuple or in a mapping."""
    if isinstance(returned, torch.Tensor):
        return returned
    values = returned.values() if isinstance(returned, Mapping) else returned
    return next(value for value in values if isinstance(value, torch.Tensor))


def confidence(scores: torch.Tensor, kind: Confidence) -> torch.Tensor:
    """How sure class scores ``(batch, classes)`` are, from 0 to 1, as ``(batch,)``.

    ``probability`` is the largest softmax probability, ``margin`` its lead over the second, ``entropy`` one minus the
    entropy of the softmax over its largest value, the logarithm of the number of classes.
    """
    probabilities = torch.softmax(scores, dim=1)
    if kind == "probability":
        return probabilities.amax(dim=1)
    if kind == "margin":
        best = torch.topk(probabilities, 2, dim=1).values
        return best[:, 0] - best[:, 1]
    most = torch.log(torch.tensor(float(scores.shape[1])))
    return 1 + (probabilities * torch.log_softmax(scores, dim=1)).sum(dim=1) / most


class PlaneHead(nn.Module):
    """Class scores of features ``(batch, channels, *space)`` with one to three dimensions of space.

    Two convolutions of stride 2 widen what a sum over space can tell, at a small part of a network's products.
    """

    def __init__(self, channels: int, space: int, classes: int, width: int) -> None:
        super().__init__()
        convolution: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[space - 1]
        self.layers = nn.Sequential(
            convolution(channels, width, 3, 2, 1, bias=False), norm(width), nn.ReLU(),
            convolution(width, width, 3, 2, 1, bias=False), norm(width), nn.ReLU(),
        )  # fmt: skip
        self.scores = nn.Linear(width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *space) -> (batch, classes)``."""
        found = self.layers(features)
        scores: torch.Tensor = self.scores(found.mean(dim=tuple(range(2, found.ndim))))
        return scores


class TokenHead(nn.Module):
    """Class scores of ``(batch, tokens, width)``, from the mean token and the first, or of ``(batch, width)``.

    Models differ in where they gather what a sequence says: in a first token or in all.
    """

    def __init__(self, features: int, tokens: bool, classes: int, width: int) -> None:
        super().__init__()
        self.tokens = tokens
        read = 2 * features if tokens else features
        self.norm = nn.LayerNorm(read) if tokens else nn.Identity()
        self.hidden = nn.Linear(read, width)
        self.scores = nn.Linear(width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``(batch, tokens, width)`` or ``(batch, width)`` to ``(batch, classes)``."""
        if self.tokens:
            features = torch.cat([features.mean(dim=1), features[:, 0]], dim=1)
        scores: torch.Tensor = self.scores(torch.relu(self.hidden(self.norm(features))))
        return scores
