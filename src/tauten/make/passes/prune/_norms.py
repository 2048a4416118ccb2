"""Statistics of batch normalization, taken anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tauten.make.model.model import Model
from tauten.make.model.run import call
from tauten.make.passes.prune._samples import Samples

BATCH = 128
"""Samples that are normalized together while the statistics are taken."""


def reestimate(model: Model, samples: Samples) -> list[str]:
    """Set running means and variances to those of the data, exactly; the names of the layers where that was done.

    The moments of all batches are pooled (Wu, Johnson, 2021), in place of a moving average. Each batch is normalized by
    its own statistics meanwhile, so that a layer sees what the layers before it will send when they are done.
    Layers are left that keep no statistics, and those that see a single number a channel.
    """
    layers = {
        name: _Moments(layer)
        for name, layer in model.module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }
    hooks = [moments.layer.register_forward_pre_hook(moments) for moments in layers.values()]
    kept = [moments.keep() for moments in layers.values()]
    try:
        with torch.no_grad():
            for inputs, _ in samples.batches(BATCH):
                call(model.module, model.inputs, model.outputs, inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for moments, state in zip(layers.values(), kept, strict=True):
            moments.restore(state)
    return [name for name, moments in layers.items() if moments.write()]


class _Moments:
    """Pools mean and variance of a layer's input, a channel each, over all calls (Chan et al., 1979)."""

    def __init__(self, layer: _BatchNorm) -> None:
        self.layer = layer
        self._count = 0
        self._mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)

    def keep(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.layer.named_buffers()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.layer.eval()
        for name, tensor in self.layer.named_buffers():
            tensor.copy_(state[name])

    def __call__(self, layer: nn.Module, inputs: Sequence[Any]) -> None:
        if len(inputs) != 1:  # given by name, which a hook is not shown
            return
        (given,) = inputs
        count = given.numel() // given.shape[1]
        # A single number has no variance to be normalized by.
        self.layer.train(count > 1)
        axes = [axis for axis in range(given.ndim) if axis != 1]
        variance, mean = torch.var_mean(given.double(), dim=axes, correction=0)
        total = self._count + count
        apart = mean - self._mean
        self._mean = self._mean + apart * (count / total)
        self._squares = self._squares + variance * count + apart.square() * (self._count * count / total)
        self._count = total

    def write(self) -> bool:
        running_mean, running_var = self.layer.running_mean, self.layer.running_var
        if self._count < 2 or running_mean is None or running_var is None:
            return False
        running_mean.copy_(self._mean)
        running_var.copy_(self._squares / (self._count - 1))
        return True
