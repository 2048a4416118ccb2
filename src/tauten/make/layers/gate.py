"""Gates: channels that a sample does not need are multiplied by zero, decided by what the layer is given."""

from __future__ import annotations

import torch
from torch import nn

from tauten.make.layers.choice import note_choice

_MOMENTUM = 0.1


class Gate(nn.Module):
    """Scores each channel of a layer for each sample by its pooled input, and opens those above a threshold.

    ``inputs`` are the layer's input channels, ``channels`` those that it makes. ``space`` is the number of dimensions
    after the channels of its input, ``(batch, inputs, *space)``; ``None`` says that features stand last,
    ``(batch, *tokens, inputs)``. Source: feature boosting and suppression (Gao et al., 2019), with a threshold over
    samples and channels instead of as many channels for each sample, and without the boosting.

    In training the gate is hard on the way forward and a sigmoid of width ``scale`` on the way back (straight-through:
    Bengio et al., 2013), and the threshold follows the scores so that a ``share`` of them stays below it.
    """

    threshold: torch.Tensor
    scale: torch.Tensor

    def __init__(self, inputs: int, channels: int, share: float, space: int | None) -> None:
        super().__init__()
        self.score = nn.Linear(inputs, channels)
        self.share = share
        self.space = space
        self.register_buffer("threshold", torch.tensor(-1e30))
        self.register_buffer("scale", torch.tensor(1.0))

    def extra_repr(self) -> str:
        return f"share={self.share}"

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over space or tokens: ``(batch, inputs)``."""
        dims = tuple(range(1, x.ndim - 1)) if self.space is None else tuple(range(2, x.ndim))
        return x.mean(dims) if dims else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """1 for each open channel and 0 for each closed one: ``(batch, channels)``."""
        scores: torch.Tensor = self.score(self.pool(x))
        if self.training:
            self._follow(scores)
        note_choice(lambda: (scores - self.threshold).abs().amin(1) / self.scale)
        hard = (scores > self.threshold).to(scores.dtype)
        if not self.training:
            return hard
        soft = torch.sigmoid((scores - self.threshold) / self.scale)
        return hard + soft - soft.detach()

    @torch.no_grad()
    def calibrate(self, scores: torch.Tensor) -> None:
        """Set threshold and scale so that a ``share`` of ``scores (samples, channels)`` is closed."""
        self.threshold.copy_(_below(scores, self.share))
        self.scale.copy_(scores.float().std(correction=0).clamp(min=1e-12))

    @torch.no_grad()
    def _follow(self, scores: torch.Tensor) -> None:
        # Training would open all gates, as that costs it nothing: the threshold goes with the scores.
        if self.share:
            self.threshold.lerp_(_below(scores, self.share), _MOMENTUM)


class Gated(nn.Module):
    """A convolution or linear layer, with the batch norm right after it, whose channels a gate closes."""

    def __init__(self, layer: nn.Module, norm: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.layer = layer
        self.norm = norm
        self.gate = gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, channels, *space)``, or ``(batch, *tokens, channels)``."""
        out: torch.Tensor = self.norm(self.layer(x))
        mask: torch.Tensor = self.gate(x).to(out.dtype)
        channel = 1 if self.gate.space is not None else out.ndim - 1
        return out * mask.reshape(mask.shape[0], *(-1 if dim == channel else 1 for dim in range(1, out.ndim)))


def _below(scores: torch.Tensor, share: float) -> torch.Tensor:
    """The number that a ``share`` of scores does not exceed."""
    flat = scores.float().flatten()
    count = round(share * len(flat))
    return flat.kthvalue(count).values if count else flat.amin() - 1
