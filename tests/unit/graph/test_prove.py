"""The prover finds what breaks, in few runs, and never takes longer than it may."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tauten.make.graph.coupling import Coupling
from tauten.make.graph.groups import Removal
from tauten.make.graph.prove import Prover
from tests.unit.graph import nets

BLOCKS = 12


class Blocks(nn.Module):
    """Repeated layers, ``fixed`` of which have the number of their channels in the code."""

    def __init__(self, fixed: set[int]) -> None:
        super().__init__()
        self.fixed = fixed
        self.up = nn.ModuleList([nn.Linear(12, 8) for _ in range(BLOCKS)])
        self.down = nn.ModuleList([nn.Linear(8, 12) for _ in range(BLOCKS)])
        self.head = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            y = torch.relu(up(x))
            x = x + down(y.view(-1, 8) if place in self.fixed else y)
        return self.head(x)


class Counted:
    """A prover, and how often it called the module."""

    def __init__(self, module: nn.Module, **limits: float) -> None:
        self.calls = 0
        self.coupling: Coupling = nets.of(module, nets.VECTOR)

        def run(one: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.calls += 1
            with torch.no_grad():
                return {"output": one(torch.from_numpy(arrays["input"])).numpy()}

        self.prover = Prover(module, nets.VECTOR, nets.example(nets.VECTOR), run, **limits)
        self.names = [group.name for group in self.coupling.groups]
        units = {place: np.arange(3) for place in range(len(self.names))}
        self.removal = Removal(self.coupling.groups, units)

    def broken(self) -> set[str]:
        return {self.names[place] for place in self.prover.broken(self.removal)}


@pytest.mark.parametrize("fixed", [set(), {7}, {0, 11}])
def test_only_what_breaks_is_refused(fixed: set[int]) -> None:
    counted = Counted(Blocks(fixed).eval())
    assert counted.broken() == {f"up.{place}.weight" for place in fixed}
    assert counted.calls <= 2 * (1 + 14 * len(fixed))


def test_layers_that_all_break_are_refused_in_few_runs() -> None:
    counted = Counted(Blocks(set(range(BLOCKS))).eval())
    assert counted.broken() == {f"up.{place}.weight" for place in range(BLOCKS)}
    # Two runs to tell kinds apart, two layers found by halving, one to see that the others fail: not one for each.
    assert counted.calls <= 2 * 20
    rest = counted.removal.only(place for place, name in enumerate(counted.names) if not name.startswith("up."))
    assert not counted.prover.fault(rest)


@pytest.mark.parametrize("limits", [{"runs": 1}, {"seconds": 0.0}])
def test_what_is_not_found_in_time_is_refused(limits: dict[str, float]) -> None:
    counted = Counted(Blocks({3}).eval(), **limits)
    found = counted.prover.broken(counted.removal)
    assert set(found) == set(counted.removal.units)
    assert all("not found in time" in why for why in found.values())
    assert "aten.view" in found[counted.names.index("up.3.weight")]
    assert counted.calls == 2


def test_the_module_is_left_alone() -> None:
    module = nets.lively(nets.ResNet())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    coupling = nets.of(module)
    assert not nets.prover(module).broken(nets.random_removal(coupling, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.stem[0].out_channels == 8
