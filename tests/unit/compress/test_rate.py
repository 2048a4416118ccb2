"""Rate-aware training: bytes are met and are the codec's, weights lie on short grids, dead units go, runs repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tauten
from tauten.codecs import CODECS
from tauten.errors import PassError, RecipeError
from tauten.make.model.apply import apply
from tauten.make.model.build import to_model
from tauten.make.model.digest import digest
from tauten.make.model.model import SPARSE, Model
from tauten.make.model.pass_ import Context, Progress, silent
from tauten.make.model.run import forward
from tauten.make.passes.compress._rate_bits import coded_bytes, estimate, estimate_all, measured
from tauten.make.passes.compress._rate_budget import Tightener, choose, trim
from tauten.make.passes.compress._rate_layer import RateWeight, attach, detach, find
from tauten.make.passes.compress._rate_units import remove_dead, sort_units
from tauten.make.passes.compress._steps import short_step
from tauten.make.passes.compress.rate import Rate
from tauten.make.search.recipe import Recipe
from tests.unit.train.problems import classify, unlabelled

BYTES = 420


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 3))


def compress(
    task: tauten.Task, folder: Path | None = None, progress: Progress = silent, seed: int = 0, **parameters: Any
) -> Model:
    model = to_model(task)
    context = Context(task, model.module, seed, progress, folder)
    return apply(Rate(**{"bytes": BYTES, "epochs": 6, **parameters}), model, context)


@pytest.fixture(scope="module")
def task() -> tauten.Task:
    return classify(model=network, epochs=3).fit()


@pytest.fixture(scope="module")
def made(task: tauten.Task) -> Model:
    return compress(task)


def test_the_coded_weights_take_the_bytes_that_are_noted(made: Model) -> None:
    arrays = {name: tensor.numpy() for name, tensor in made.module.state_dict().items()}
    coded = CODECS.get("arithmetic").encode(arrays)
    notes = made.history[-1].notes
    assert len(coded) == notes["bytes"] <= BYTES
    decoded = CODECS.get("arithmetic").decode(coded)
    assert all(array.tobytes() == decoded[name].tobytes() for name, array in arrays.items())
    assert notes["float32_bytes"] == 4 * sum(one.numel() for one in network().parameters())


def test_a_file_of_a_model_with_batch_norms_takes_the_bytes_too(tmp_path: Path) -> None:
    def normed() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Linear(300, 3))

    task = classify(model=normed, epochs=3).fit()
    made = compress(task, bytes=700)
    notes = made.history[-1].notes
    assert notes["folded"] == {"1": "0"}
    written = tauten.save(made, tmp_path / "artifact", task=task, codec="arithmetic")
    # Names differ, and vectors that are short stand in the graph.
    assert written.manifest.files[written.manifest.weights] <= notes["bytes"] + 30


def test_every_weight_is_a_whole_multiple_of_a_short_step(made: Model) -> None:
    steps = made.history[-1].notes["steps"]
    for name, one in made.module.named_parameters():
        step = np.float32(steps[name])
        assert short_step(float(step)) == step
        levels = np.rint(one.detach().numpy() / step)
        assert np.array_equal(levels * step, one.detach().numpy())
        assert not np.signbit(one.detach().numpy()[levels == 0]).any()


def test_zeros_and_bits_are_told_by_parameter(made: Model) -> None:
    notes = made.history[-1].notes
    named = dict(made.module.named_parameters())
    assert set(notes["zeros"]) == set(notes["bits_per_weight"]) == set(named)
    assert notes["zeros"]["0.weight"] == pytest.approx(float((named["0.weight"] == 0).float().mean()))
    assert SPARSE in made.facts


def test_it_still_tells_the_classes_apart(task: tauten.Task, made: Model) -> None:
    right = total = 0
    for inputs, labels in task.data("validate"):
        answers = forward(made.module, made.inputs, made.outputs, inputs)["output"]
        right, total = right + int((answers.argmax(1) == labels).sum()), total + len(labels)
    assert right > 0.6 * total


def test_a_run_that_was_killed_goes_on_and_gives_the_same(task: tauten.Task, made: Model, tmp_path: Path) -> None:
    def killed(said: str, share: float) -> None:
        if said.startswith("epoch 2/3"):  # of the last stage
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(task, tmp_path, killed)
    again = compress(task, tmp_path)
    assert digest(again.module) == digest(made.module)
    assert again.history[-1].notes["resumed"] == 1
    assert again.history[-1].notes["pruning"][1]["resumed"] == 2


def test_what_is_trimmed_is_learned_around_and_a_kill_does_not_matter(task: tauten.Task, tmp_path: Path) -> None:
    shares: list[float] = []

    def killed(said: str, share: float) -> None:
        shares.append(share)
        if said.startswith("epoch 2/4"):  # of the mending: rounding has 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(task, tmp_path, killed, mend=0.6)
    assert shares == sorted(shares)
    assert shares[-1] < 1
    again, whole = compress(task, tmp_path, mend=0.6), compress(task, mend=0.6)
    assert digest(again.module) == digest(whole.module)
    notes = again.history[-1].notes
    assert (notes["resumed"], notes["epochs"], notes["rounding"]["epochs"]) == (1, 4, 3)
    arrays = {name: tensor.numpy() for name, tensor in again.module.state_dict().items()}
    assert len(CODECS.get("arithmetic").encode(arrays)) == notes["bytes"] <= BYTES
    # Mending starts from the steps that rounding ended with, and from its weights.
    assert notes["loss_before"] == pytest.approx(notes["rounding"]["loss_after"], rel=0.02)


def test_bytes_that_cannot_be_met_are_refused(task: tauten.Task) -> None:
    with pytest.raises(PassError, match=r"at most 40 bytes, but .* the file has \d+: norms, buffers"):
        compress(task, bytes=40)


class Recurrent(nn.Module):
    """A layer whose weights the pass does not know, before one that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.cell(rows[:, None])[0][:, 0])
        return answer


def test_weights_that_are_left_alone_are_named_where_they_take_the_bytes() -> None:
    torch.manual_seed(3)
    with pytest.raises(PassError, match=r"cell\.weight_ih_l0, cell\.weight_hh_l0, which it leaves alone, norms"):
        compress(classify(model=Recurrent()))


def test_nothing_to_learn_from_is_refused(task: tauten.Task) -> None:
    with pytest.raises(PassError, match="no train data"):
        compress(tauten.Task(model=task.model, inputs=task.inputs, calibrate=task.calibrate))
    with pytest.raises(PassError, match="distill is off"):
        compress(classify(model=network, train=unlabelled(32, 0)), distill=False)
    with pytest.raises(PassError, match="no weights that can be coded"):
        compress(classify(model=nn.Sequential(nn.LayerNorm(6), nn.Softmax(dim=1))))


@pytest.mark.parametrize(
    "wrong", [{"bytes": 0}, {"share": 1.0}, {"prune": 1.0}, {"levels": 0.0}, {"epochs": 0}, {"mend": 1.0}]
)
def test_parameters_are_held_to_their_rules(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Rate(**wrong)


def test_a_recipe_with_it_round_trips() -> None:
    recipe = Recipe("small", (Rate(bytes=900, levels=0.8),), codec="arithmetic")
    assert Recipe.from_json(recipe.to_json()) == recipe


@given(st.floats(1e-30, 1e30), st.integers(-4095, 4095))
def test_multiples_of_a_short_step_are_exact_in_float32(step: float, level: int) -> None:
    short = short_step(step)
    assert abs(short - step) <= step / 4096
    assert float(np.float32(short)) == short
    assert float(np.float32(short) * np.float32(level)) == short * level
    assert float(short_step(torch.tensor([step]))[0]) == pytest.approx(short, rel=1e-3)


def test_tied_and_foreign_parameters_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LSTM(4, 4), nn.Conv1d(2, 3, 3), nn.LayerNorm(4))
    module[1].weight = module[0].weight
    found, refused = find(module)
    assert set(found) == {"0.bias", "1.bias", "3.weight", "3.bias"}
    assert refused["0.weight"] == "it is shared by several layers"
    assert "LSTM" in refused["2.weight_ih_l0"]


def test_choosing_meets_the_estimate_and_prefers_full_rows() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 30))
    parts = attach(module, find(module)[0], lambda _, value: RateWeight(torch.ones_like(value, dtype=torch.bool)))
    for _ in range(3):
        module(torch.randn(64, 40)).square().mean().backward()
        total = choose(parts, 900.0)
    assert total == pytest.approx(estimate_all(parts)) == pytest.approx(900, rel=0.05)
    expected = [part.value() for part in parts]
    detach(parts)
    assert type(module[0]) is nn.Linear
    assert all(torch.equal(one, other) for one, other in zip(expected, module.parameters(), strict=True))


def test_trimming_goes_by_the_bits_of_the_coder() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(64, 8))
    parts = attach(module, find(module)[0], lambda _, value: RateWeight(value.abs() > value.abs().mean(), 0.12))
    module(torch.randn(8, 3, 4, 4)).square().mean().backward()
    kernel = next(part for part in parts if part.full_name == "0.weight")
    mask = kernel.weight.mask.reshape(16, -1)
    by_coder = float(measured(kernel).more[mask].mean())
    assert by_coder == pytest.approx(float(estimate(kernel, mask).more[mask].mean()), rel=0.5)
    before = coded_bytes(module, parts)
    trim(module, parts, round(0.8 * before))
    assert 0.7 * before < coded_bytes(module, parts) <= 0.8 * before


def test_bytes_are_held_while_levels_grow_until_they_are_let_go() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 30))
    parts = attach(module, find(module)[0], lambda _, value: RateWeight(torch.ones_like(value, dtype=torch.bool), 0.1))
    module(torch.randn(64, 40)).square().mean().backward()
    target = round(0.8 * coded_bytes(module, parts))
    hold = Tightener(module, parts, target, 0.5)
    found = []
    for step in range(100):
        hold(step, 100)
        found.append(coded_bytes(module, parts))
        with torch.no_grad():
            parts[0].latent.mul_(1.02)
    assert found[0] > target  # gradients have not told yet what weights are worth
    assert max(found[3:51:3]) <= target
    assert found[99] > target


def test_gradients_pass_to_pruned_weights_and_to_the_step() -> None:
    latent = torch.tensor([[0.9, -0.26, 0.04], [0.3, 0.0, -1.3]], requires_grad=True)
    weight = RateWeight(torch.tensor([[True, True, False], [True, True, True]]), step=0.25)
    out = weight(latent)
    assert torch.equal(out, torch.tensor([[1.0, -0.25, 0.0], [0.25, 0.25, -1.25]]))
    out.backward(torch.ones(2, 3))
    assert latent.grad is not None
    assert torch.equal(latent.grad, torch.ones(2, 3))
    # What rounding adds: (4 - 3.6) + (-1 + 1.04) + (1 - 1.2) + 1 + (-5 + 5.2), in steps of 0.25, over sqrt(5), slowly.
    assert float(weight.growth.grad) == pytest.approx(0.1 * 0.25 * 1.44 / 5**0.5, rel=1e-4)


@pytest.mark.parametrize("step", [None, 0.25])
def test_weights_lie_in_memory_as_their_latents(step: float | None) -> None:
    kernel = nn.Conv2d(1, 8, 3).to(memory_format=torch.channels_last)
    lay = kernel.weight.stride()
    parts = attach(kernel, find(kernel)[0], lambda _, value: RateWeight(value != 0, step))
    assert kernel.weight.stride() == lay == (9, 1, 3, 1)
    detach(parts)
    assert kernel.weight.stride() == lay


def dead() -> tuple[Model, dict[str, Any]]:
    """A network in which one unit is read by nothing and one reads nothing."""
    model = to_model(classify(model=network))
    with torch.no_grad():
        model.module[2].weight[:, 5] = 0
        model.module[2].weight[7], model.module[2].bias[7] = 0, 0
    return model, next(iter(classify(model=network).data("calibrate")))[0]


def test_dead_units_are_taken_out() -> None:
    model, example = dead()
    before = forward(model.module, model.inputs, model.outputs, example)["output"]
    module, notes = remove_dead(model, example)
    assert [layer.out_features for layer in module if isinstance(layer, nn.Linear)] == [47, 23, 3]
    assert notes["units"] == {"0.weight": [48, 47], "2.weight": [24, 23]}
    assert np.allclose(before, forward(module, model.inputs, model.outputs, example)["output"], atol=1e-5)


def test_units_are_sorted_only_where_that_is_smaller_and_answers_stay() -> None:
    model, example = dead()
    before = forward(model.module, model.inputs, model.outputs, example)["output"]
    kept = sort_units(model, example, lambda module: 100)
    assert kept is model.module
    sizes = iter(range(100, 0, -1))
    module = sort_units(model, example, lambda module: next(sizes))
    assert digest(module) != digest(model.module)
    assert np.allclose(before, forward(module, model.inputs, model.outputs, example)["output"], atol=1e-5)
