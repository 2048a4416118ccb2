"""Structured pruning through ``apply``: how many, which, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tauten.errors import PassError, RecipeError
from tauten.make.graph.groups import Group, Slot
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.model.task import Task
from tauten.make.passes.prune._gather import gather
from tauten.make.passes.prune._rank import Floors, choose
from tauten.make.passes.prune.structured import Structured, names_of
from tests.unit.graph import nets


def prune(module: nn.Module, step: Structured, seed: int = 0) -> Model:
    task = Task(model=module, inputs=nets.IMAGE, calibrate=[nets.example(nets.IMAGE, 1)])
    model = to_model(task)
    return apply(step, model, Context(task=task, reference=model.module, seed=seed))


def sizes(model: Model) -> list[tuple[int, int]]:
    return [(group["before"], group["after"]) for group in model.history[-1].notes["groups"]]


def test_half_of_each_group_goes() -> None:
    model = prune(nets.lively(nets.ResNet()), Structured(ratio=0.5, scope="layer"))
    assert sizes(model) == [(8, 4), (8, 4), (12, 6), (12, 6)]
    notes = model.history[-1].notes
    assert notes["parameters_after"] == sum(tensor.numel() for tensor in model.module.parameters())
    assert notes["parameters_after"] < 0.35 * notes["parameters_before"]
    assert notes["refused"] == {"fc": "model output"}
    assert "stem.0.weight" in notes["groups"][0]["parameters"]


def test_together_the_count_holds_and_floors_hold() -> None:
    model = prune(nets.lively(nets.ResNet()), Structured(ratio=0.6, keep_at_least=0.25))
    assert sum(before - after for before, after in sizes(model)) == 24
    assert all(after >= before / 4 for before, after in sizes(model))


def test_channels_that_hold_nothing_go_first_and_nothing_changes() -> None:
    module = nets.lively(nets.ResNet())
    dead = [1, 4, 6]
    with torch.no_grad():
        module.layer1.conv1[0].weight[dead] = 0
        module.layer1.conv1[1].weight[dead] = 0
        module.layer1.conv1[1].bias[dead] = 0
        module.layer1.conv2[0].weight[:, dead] = 0
    model = prune(module, Structured(ratio=3 / 40))
    assert sizes(model) == [(8, 5)]
    example = nets.example(nets.IMAGE)
    expected = forward(module, nets.IMAGE, (), example)["output"]
    np.testing.assert_allclose(forward(model.module, nets.IMAGE, (), example)["output"], expected, rtol=1e-4, atol=1e-4)


def test_counts_are_rounded() -> None:
    model = prune(nets.lively(nets.ResNet()), Structured(ratio=0.6, round_to=4))
    assert all(after % 4 == 0 for _, after in sizes(model))


def test_a_group_that_loses_nothing_is_not_rounded() -> None:
    scores = {0: torch.rand(10), 1: torch.rand(10)}
    assert {place: len(gone) for place, gone in choose(scores, 0, Floors(0.1, 8), own={1: 0.3}).items()} == {1: 2}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_groups_have_ratios_of_their_own(scope: str) -> None:
    module = nets.lively(nets.ResNet())
    step = Structured(ratio=0.25, scope=scope, ratios=(("layer2.conv1.0.weight", 0.75), ("stem.0.weight", 0.0)))
    groups = {group["name"]: group for group in prune(module, step).history[-1].notes["groups"]}
    assert groups["layer2.conv1.0.weight"]["after"] == 3
    assert "stem.0.weight" not in groups
    others = [group["after"] for name, group in groups.items() if name != "layer2.conv1.0.weight"]
    assert sum(others) == 20 - 5


def test_ratios_alone_prune_and_an_unknown_group_is_told_those_that_there_are() -> None:
    module = nets.lively(nets.ResNet())
    (group,) = prune(module, Structured(ratio=0, ratios=(("stem.0.weight", 0.5),))).history[-1].notes["groups"]
    assert (group["name"], group["before"], group["after"]) == ("stem.0.weight", 8, 4)
    with pytest.raises(PassError, match=r"no group \['head'\].*stem\.0\.weight"):
        prune(module, Structured(ratio=0.5, ratios=(("head", 0.5),)))


def test_the_notes_tell_which_channels_stay() -> None:
    module = nets.lively(nets.ResNet())
    model = prune(module, Structured(ratio=0.5, scope="layer"))
    (note,) = [group for group in model.history[-1].notes["groups"] if group["name"] == "layer1.conv1.0.weight"]
    torch.testing.assert_close(model.module.layer1.conv1[1].bias, module.layer1.conv1[1].bias[note["kept"]])


def test_two_groups_of_one_parameter_have_two_names() -> None:
    (group,) = nets.of(nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 3)), nets.VECTOR).groups
    assert names_of([group, group]) == ["0.weight", "0.weight#2"]


def test_the_result_runs_copies_and_prunes_again() -> None:
    model = prune(nets.lively(nets.ResNet()), Structured(ratio=0.3))
    again = prune(copy.deepcopy(model.module), Structured(ratio=0.3))
    for batch in (1, 2, 9):
        assert forward(again.module, nets.IMAGE, (), nets.example(nets.IMAGE, batch))["output"].shape == (batch, 5)


def test_what_the_code_fixes_is_refused_and_the_rest_pruned() -> None:
    model = prune(nets.HardCoded(), Structured(ratio=0.5))
    assert sizes(model) == [(6, 3)]
    assert "aten.view" in model.history[-1].notes["refused"]["conv2"]


def test_a_size_that_divides_by_chance_is_refused() -> None:
    """Half of 512 elements goes into ``view(-1, 512)`` as half the batch, without an error of its own."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(512, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).view(-1, 512))

    with pytest.raises(PassError, match=r"no channel .*aten\.view"):
        prune(Single(), Structured(ratio=0.5))


def test_random_follows_the_seed() -> None:
    module = nets.lively(nets.ResNet())
    one, same, other = (
        prune(module, Structured(ratio=0.5, criterion="random"), seed).history[-1].after for seed in (1, 1, 2)
    )
    assert one == same != other


def test_gather_lays_a_channel_in_a_row() -> None:
    module = nets.vgg()
    group = nets.of(module).groups[1]
    rows = gather(group, dict(module.named_parameters()))
    conv, linear = module[3], module[8]
    assert rows.shape == (8, 6 * 9 + 1 + 4 * 10)
    total = conv.weight[2].square().sum() + conv.bias[2].square() + linear.weight[:, 8:12].square().sum()
    torch.testing.assert_close(rows[2].square().sum(), total)


def test_units_of_different_numbers_of_entries_are_padded() -> None:
    slot = Slot("w", 1, "consumer", index=np.array([0, 2, 1]), unit=np.array([0, 0, 1]))
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    rows = gather(Group(2, (slot,)), {"w": weight})
    assert rows.tolist() == [[1.0, 4.0, 3.0, 6.0], [2.0, 5.0, 0.0, 0.0]]


@given(
    groups=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    ratio=st.floats(0, 0.99),
    keep=st.floats(0.01, 1),
    round_to=st.integers(1, 8),
    together=st.booleans(),
)
def test_ranking_keeps_its_promises(
    groups: list[int], ratio: float, keep: float, round_to: int, together: bool
) -> None:
    generator = torch.Generator().manual_seed(len(groups))
    scores = {place: torch.rand(count, generator=generator) for place, count in enumerate(groups)}
    pools = dict.fromkeys(scores, 0) if together else {}
    chosen = choose(scores, ratio, Floors(keep, round_to), pools=pools)
    for place, gone in chosen.items():
        kept = groups[place] - len(gone)
        assert kept >= max(1, keep * groups[place] - 1e-6)
        assert kept % round_to == 0
        stays = np.setdiff1d(np.arange(groups[place]), gone)
        assert scores[place][gone].max() <= scores[place][stays].min()
    if together and round_to == 1:
        assert sum(len(gone) for gone in chosen.values()) <= round(ratio * sum(groups))


def test_a_layer_of_small_weights_does_not_vanish() -> None:
    scores = {0: torch.linspace(1, 2, 10), 1: torch.linspace(1, 2, 10) * 1e-3}
    chosen = choose(scores, 0.5, Floors(0.1, 1), pools={0: "all", 1: "all"})
    assert [len(gone) for gone in chosen.values()] == [5, 5]


@pytest.mark.parametrize(
    "parameters",
    [
        {"ratio": 1.0},
        {"ratio": 0.5, "criterion": "none"},
        {"ratio": 0.5, "scope": "block"},
        {"ratio": 0.5, "round_to": 0},
        {"ratio": 0.5, "keep_at_least": 0.0},
        {"ratio": 0.5, "ratios": [["a", 1.0]]},
        {"ratio": 0.5, "ratios": [["a", 0.1], ["a", 0.2]]},
    ],
)
def test_parameters_are_checked(parameters: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Structured.from_parameters(parameters)
