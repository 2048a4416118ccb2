"""Statistics of a module on data: gradients of its parameters, and the sizes of what its layers read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tauten.errors import PassError
from tauten.make.model.loss import class_axis, task_loss
from tauten.make.model.model import Model
from tauten.make.model.run import Tensors, call, to_tensor
from tauten.make.model.task import Task
from tauten.make.passes.prune._samples import Samples

MINI_BATCH = 16
"""Samples whose gradient is taken together: few enough that those of single samples do not cancel out."""
Loss = Callable[[Tensors, torch.Tensor | None], torch.Tensor]


def gradients(model: Model, samples: Samples, loss: Loss) -> Iterator[Mapping[str, torch.Tensor]]:
    """The gradient of ``loss`` by parameter, of one mini-batch after the other, in evaluation mode.

    Parameters that the loss does not depend on are left out. Raises ``PassError`` where it depends on none.
    """
    named = {name: tensor for name, tensor in model.module.named_parameters() if tensor.is_floating_point()}
    with _requiring_gradients(named.values()):
        for inputs, labels in samples.batches(MINI_BATCH):
            outputs = call(model.module, model.inputs, model.outputs, inputs)
            value = loss(outputs, None if labels is None else to_tensor(labels).to(next(iter(outputs.values())).device))
            if not value.requires_grad:
                raise PassError("the outputs have no gradient, which the criterion asks for; choose another criterion")
            found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
            yield {
                name: gradient
                for name, gradient in zip(named, found, strict=True)
                if gradient is not None and torch.isfinite(gradient).all()
            }


def labelled_loss(task: Task) -> Loss:
    """The task's loss where a batch has labels, ``drawn_loss`` where it has none."""
    of_task = task_loss(task)

    def loss(outputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        return drawn_loss(outputs, None) if labels is None else of_task(outputs, labels)

    return loss


def drawn_loss(outputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
    """The negative log-likelihood of answers drawn from the model's own distribution, times the root of the samples.

    Squares of its gradient are, in the mean over draws, the Fisher information of one sample, whatever the number of
    samples, for the gradients of different samples are independent and zero in the mean. (The gradient of a distance
    to the model's own answers would be zero itself.) Classes are drawn from the softmax of the first output where
    ``labels``, of which no value is looked at, show that it holds classes; other outputs are taken as the means of
    normal distributions of their own spread.
    """
    first = next(iter(outputs.values()))
    axis = None if labels is None else class_axis(first, labels)
    if axis is not None:
        logits = first.movedim(axis, -1).flatten(0, -2)
        drawn = torch.multinomial(logits.detach().float().softmax(dim=-1).cpu(), 1).squeeze(1).to(logits.device)
        loss: torch.Tensor = functional.cross_entropy(logits, drawn, reduction="sum") / len(first) ** 0.5
        return loss
    total = first.new_zeros(())
    for output in outputs.values():
        if output.is_floating_point():
            spread = output.detach().std(unbiased=False).clamp(min=torch.finfo(output.dtype).tiny)
            draw = torch.randn(output.shape, dtype=output.dtype).to(output.device)
            total = total + (draw * output).sum() / (spread * max(1, len(output)) ** 0.5)
    return total


def activation_norms(model: Model, samples: Samples) -> dict[str, torch.Tensor]:
    """For each weight that a layer multiplies its input with, the root mean square of that input, in its shape.

    Layers are linear ones and convolutions; what others hold is left out.
    """
    seen = {
        f"{path}.weight" if path else "weight": _Squares(layer)
        for path, layer in model.module.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd)
    }
    hooks = [of_layer.layer.register_forward_pre_hook(of_layer) for of_layer in seen.values()]
    try:
        with torch.inference_mode():
            for inputs, _ in samples.batches(64):
                call(model.module, model.inputs, model.outputs, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: of_layer.norms() for name, of_layer in seen.items() if of_layer.count}


class _Squares:
    """Sums the squares of a layer's input, each of its channels for itself."""

    def __init__(self, layer: nn.Linear | _ConvNd) -> None:
        self.layer = layer
        self.count = 0
        self._sum: torch.Tensor | float = 0.0

    def __call__(self, layer: nn.Module, inputs: Sequence[Any]) -> None:
        if len(inputs) != 1:  # given by name, which a hook is not shown
            return
        (given,) = inputs
        channels = self.layer.in_features if isinstance(self.layer, nn.Linear) else self.layer.in_channels
        last = isinstance(self.layer, nn.Linear)
        # A convolution takes (batch, channels, ...) and also (channels, ...).
        rows = given.movedim(-1 if last else given.ndim - self.layer.weight.ndim + 1, 0).reshape(channels, -1)
        self._sum = self._sum + rows.double().square().sum(dim=1)
        self.count += rows.shape[1]

    def norms(self) -> torch.Tensor:
        """In the shape of the layer's weight."""
        of_channel = torch.as_tensor(self._sum / max(1, self.count)).sqrt().float()
        weight = self.layer.weight
        if isinstance(self.layer, _ConvTransposeNd):
            # (in, out a group, ...): each row reads one channel.
            return of_channel.reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight)
        if isinstance(self.layer, nn.Linear):
            return of_channel.expand_as(weight)
        # (out, in a group, ...): the outputs of a group read its own channels.
        groups = self.layer.groups
        by_group = of_channel.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).flatten(0, 1)
        return by_group.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)).expand_as(weight)


@contextmanager
def _requiring_gradients(parameters: Any) -> Iterator[None]:
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
