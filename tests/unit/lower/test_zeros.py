"""Sums with zeros leave an exported program, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tauten.core.tensor import TensorSpec
from tauten.make.lower._export import export
from tauten.make.model.model import Model
from tauten.make.model.run import forward

SPEC = TensorSpec(name="x", shape=("batch", 3))


class Made(nn.Module):
    """Zeros of full size, moved about."""

    def forward(self, x):
        return (x * 2 + torch.zeros_like(x).reshape(3, -1).transpose(0, 1)).exp()


class Held(nn.Module):
    """A zero that the module holds, scaled by a weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, 1), persistent=False)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (x.exp() + self.scale * self.zero).exp()


class Returned(nn.Module):
    """The sum is the answer, and so is what it was made of."""

    def forward(self, x):
        y = x.exp()
        return x + torch.zeros_like(x), y, y + torch.zeros_like(x)


class Overwritten(nn.Module):
    """Zeros that take in the sum, which is overwritten while its other operand is read again."""

    def forward(self, x):
        y = x.exp() - 2
        total = torch.zeros_like(y)
        total += y
        return torch.relu_(total) + y


class Filled(nn.Module):
    """Zeros that become a mask."""

    def forward(self, x):
        mask = torch.zeros_like(x)
        view = mask[:, 1:]
        view.fill_(5.0)
        return x.exp() + mask


class Seen(nn.Module):
    """Zeros that take in a sum and are read by another name."""

    def forward(self, x):
        total = torch.zeros_like(x)
        view = total.view(-1, 3)
        total += x.exp()
        return view + 1


class Scaled(nn.Module):
    """``0 + 2 x``."""

    def forward(self, x):
        return torch.add(torch.zeros_like(x), x.exp(), alpha=2)


class Wider(nn.Module):
    """The zeros make the sum larger than its other operand."""

    def forward(self, x):
        return torch.zeros_like(x) + x[:, :1].exp()


class Infinite(nn.Module):
    """Zero times infinity is no zero."""

    def forward(self, x):
        return x + torch.zeros_like(x) * (x * 1e30).exp()


def sums(module: nn.Module) -> int:
    model = Model(module.eval(), (SPEC,), ())
    inputs = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}
    answers = forward(module, (SPEC,), (), inputs)
    exported = export(model.but(outputs=tuple(answers)), inputs)
    found = exported.program.module()(torch.from_numpy(inputs["x"]))
    for one, other in zip(found, answers.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    return sum(str(node.target).startswith("aten.add") for node in exported.program.graph.nodes)


@pytest.mark.parametrize(
    ("module", "left"),
    [
        (Made(), 0), (Held(), 0), (Returned(), 0), (Overwritten(), 1), (Filled(), 1), (Seen(), 2), (Scaled(), 1),
        (Wider(), 1), (Infinite(), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)  # fmt: skip
def test_sums_with_zeros_go_and_answers_stay(module: nn.Module, left: int) -> None:
    assert sums(module) == left
