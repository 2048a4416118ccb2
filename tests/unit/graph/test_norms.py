"""Norms over channels, fused or written out: over the kept ones where a module does nothing else, refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tauten.core.tensor import TensorSpec
from tauten.make.graph.groups import Removal
from tauten.make.graph.slim import mask, slim
from tests.unit.graph import nets

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Norm(nn.Module):
    """A norm that is written out, over the last dimension."""

    def __init__(self, width: int, function: Function) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.scale)


class Net(nn.Module):
    """Channels that are summed around a layer, as in transformers, with a norm between."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.enter, self.norm, self.inner, self.head = nn.Linear(12, 8), norm, nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.head(x + self.inner(self.norm(x)))


def rms(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """As Llama and T5 write it."""
    x = x.to(torch.float32)
    return scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rms_from_one(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """As Gemma writes it."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (1 + scale)


def rms_by_root(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * scale


def centred(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A layer norm, step by step."""
    x = x - x.mean(-1, keepdim=True)
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5 * scale


NORMS = {
    "layer": lambda: nn.LayerNorm(8),
    "rms": lambda: nn.RMSNorm(8),
    **{function.__name__: lambda f=function: Norm(8, f) for function in (rms, rms_from_one, rms_by_root, centred)},
}


@pytest.mark.parametrize("name", sorted(NORMS))
def test_goes_on_over_the_kept_channels(name: str) -> None:
    torch.manual_seed(0)
    module = nets.lively(Net(NORMS[name]()))
    coupling = nets.of(module, nets.VECTOR)
    assert [group.name for group in coupling.groups] == ["enter.weight"]
    x = torch.randn(3, 12)
    mask(module, Removal(coupling.groups, {0: np.array([1, 2, 6])}))
    # The norm's answer by hand: of the kept channels alone.
    kept = torch.tensor([0, 3, 4, 5, 7])
    y = module.enter(x)
    alone = NORMS[name]()
    for parameter, own in zip(alone.parameters(), module.norm.parameters(), strict=True):
        parameter.data = own.data[kept]
    if isinstance(alone, nn.LayerNorm | nn.RMSNorm):
        alone.normalized_shape = (5,)
    expected = module.head(y + module.inner(torch.zeros(3, 8).index_copy(1, kept, alone(y[:, kept]))))
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(NORMS))
def test_smaller_answers_as_masked(name: str) -> None:
    torch.manual_seed(0)
    module = nets.lively(Net(NORMS[name]()))
    removal = nets.random_removal(nets.of(module, nets.VECTOR), 3)
    assert nets.prover(module, nets.VECTOR).fault(removal) == ""


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x, scale: x * x.mean(-1, keepdim=True) * scale, "aten.mean"),
        (lambda x, scale: x * torch.rsqrt(x.mean(-1, keepdim=True).exp() + 1e-6) * scale, "aten.mean"),
        (lambda x, scale: x * torch.rsqrt(x.pow(2).mean() + 1e-6) * scale, "aten.mean"),
        (lambda x, scale: functional.normalize(x, dim=-1) * scale[0] + x.mean(-1, keepdim=True), "aten.mean"),
        (lambda x, scale: rms(x, scale) * x.softmax(-1), "aten.mean"),
        (lambda x, scale: rms(x, scale[:1]) + x.amax(-1, keepdim=True), "aten.mean"),
    ],
)
def test_what_only_looks_like_a_norm_is_refused(function: Function, operation: str) -> None:
    coupling = nets.of(Net(Norm(8, function)).eval(), nets.VECTOR)
    assert operation in coupling.refused_layers()["enter"]


def test_a_norm_inside_of_other_code_is_refused() -> None:
    class Inline(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x)
            return self.head(self.inner(functional.layer_norm(x, (8,), self.norm.weight)))

    coupling = nets.of(Inline(nn.LayerNorm(8)).eval(), nets.VECTOR)
    assert "aten.layer_norm" in coupling.refused_layers()["enter"]


def test_channels_may_come_first() -> None:
    class First(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    module = nets.lively(nn.Sequential(nn.Conv2d(3, 8, 1), First(8), nn.Conv2d(8, 2, 1)))
    coupling = nets.of(module)
    assert [group.units for group in coupling.groups] == [8]
    removal = nets.random_removal(coupling, 0)
    assert nets.prover(module).fault(removal) == ""
    assert slim(module, removal)[1].normalized_shape == tuple(module[1].weight.shape)


def test_a_norm_that_is_called_twice_is_cut_once() -> None:
    class Twice(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x)
            return self.head(self.norm(x + self.inner(self.norm(x))))

    module = nets.lively(Twice(Norm(8, rms)))
    (group,) = nets.of(module, nets.VECTOR).groups
    assert nets.prover(module, nets.VECTOR).fault(Removal((group,), {0: np.array([0, 5])})) == ""


def test_weight_norm_over_the_kernel_passes_channels() -> None:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=1, groups=2, bias=False), dim=2)
    module = nn.Sequential(nn.Conv1d(2, 8, 1), conv, nn.Conv1d(8, 2, 1)).eval()
    specs = (TensorSpec(name="input", shape=("batch", 2, 6)),)
    coupling = nets.of(module, specs)
    assert [group.units for group in coupling.groups] == [4, 4]
    removal = nets.random_removal(coupling, 0)
    assert nets.prover(module, specs).fault(removal) == ""
    assert slim(module, removal)[1].out_channels == module[1].weight.shape[0]
