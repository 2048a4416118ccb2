"""Gates: what they close, how much of it, and what is left of the answers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tauten
from tauten.errors import PassError, RecipeError
from tauten.make.layers.choice import watch_choices
from tauten.make.layers.gate import Gate, Gated
from tauten.make.model.apply import apply
from tauten.make.model.build import build, to_model
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward
from tauten.make.passes.dynamic.gates import Gates
from tauten.testing.tiny import Residual, cnn_task, residual_task, vision_transformer_task


def gated(task: tauten.Task, **parameters: float) -> Model:
    return apply(Gates(**parameters), to_model(task), Context(task, build(task)))


@cache
def half_closed() -> Model:
    return gated(residual_task(), share=0.5)


def notes(model: Model) -> dict:
    return model.history[-1].notes


def images(count: int, seed: int = 9) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).standard_normal((count, 1, 8, 8)).astype(np.float32)}


def masks(model: Model, inputs: dict[str, np.ndarray]) -> list[torch.Tensor]:
    """What each gate says, in the order of calls."""
    seen: list[torch.Tensor] = []
    handles = [
        layer.gate.register_forward_hook(lambda _, given, mask: seen.append(mask))
        for layer in model.module.modules()
        if isinstance(layer, Gated)
    ]
    forward(model.module, model.inputs, model.outputs, inputs)
    for handle in handles:
        handle.remove()
    return seen


def task_of(module: nn.Module) -> tauten.Task:
    torch.manual_seed(0)
    return replace(residual_task(), model=module.eval())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_wanted_share_is_closed_on_calibration_data_and_nearly_so_on_other(share: float) -> None:
    model = gated(residual_task(), share=share)
    assert [entry["closed"] for entry in notes(model)["gates"]] == pytest.approx([share, share], abs=0.02)
    for mask in masks(model, images(300)):
        assert float((mask == 0).float().mean()) == pytest.approx(share, abs=0.08)


def test_what_is_closed_depends_on_the_sample() -> None:
    closed = [(mask == 0).sum(1) for mask in masks(half_closed(), images(50))]
    assert any(len(count.unique()) > 1 for count in closed)


def test_a_share_of_nothing_changes_nothing() -> None:
    task = residual_task()
    model = gated(task, share=0.0)
    before = forward(build(task), model.inputs, model.outputs, images(5))
    after = forward(model.module, model.inputs, model.outputs, images(5))
    np.testing.assert_allclose(after["output"], before["output"], rtol=1e-5, atol=1e-5)
    assert notes(model)["skippable_share"] == 0


def test_gates_stand_where_one_layer_makes_the_channels_and_the_rest_is_told() -> None:
    told = notes(half_closed())
    assert [(entry["layer"], entry["read_by"]) for entry in told["gates"]] == [
        ("3.conv1", ["3.conv2"]),
        ("4.conv1", ["4.conv2"]),
    ]
    assert "made by 2 layers" in told["refused"]["0"]
    assert isinstance(half_closed().module[3].norm1, nn.Identity)
    assert all(entry["zeros_reach_readers"] for entry in told["gates"])


def test_features_of_a_transformer_are_gated_over_its_tokens() -> None:
    model = gated(vision_transformer_task(), share=0.5)
    assert [entry["layer"] for entry in notes(model)["gates"]] == ["blocks.0.wide", "blocks.1.wide"]
    assert masks(model, images(3))[0].shape == (3, 32)


def test_the_channels_that_say_least_are_closed() -> None:
    class Loud(nn.Module):
        """Channel 1 and 3 are read with weights near zero."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            with torch.no_grad():
                self.two.weight[:, [1, 3]] *= 1e-3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.relu(self.one(x))).mean((2, 3))

    task = task_of(Loud())
    model = gated(task, share=0.5)
    (mask,) = masks(model, images(40))
    assert torch.equal(mask, torch.tensor([1.0, 0.0, 1.0, 0.0]).expand(40, 4))
    assert notes(model)["similarity"]["output"] > 0.999
    # The products of both layers with two of four channels, of 9 * 36 and 4 * 4 * 9 * 16 in all.
    assert notes(model)["multiplications"] == 4 * 9 * 36 + 4 * 4 * 9 * 16
    assert notes(model)["skippable_share"] == pytest.approx(0.5)
    assert notes(model)["gates_share"] == pytest.approx(4 / notes(model)["multiplications"], abs=1e-6)


def test_closed_channels_that_do_not_stay_zero_save_what_makes_them_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4))
    told = notes(gated(task_of(net), share=0.5))
    assert [entry["zeros_reach_readers"] for entry in told["gates"]] == [False, True]
    made, mid, last = 4 * 9 * 36, 4 * 4 * 9 * 16, 64 * 4
    expected = (0.5 * made + 0.5 * mid + 0.5 * last) / (made + mid + last)
    assert told["skippable_share"] == pytest.approx(expected, abs=0.03)


class LateNorm(nn.Module):
    """Normalizes after the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        nn.init.constant_(self.norm.bias, -0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.norm(torch.relu(self.one(x)))).mean((2, 3))


REFUSED = {
    "not its batch norm alone": LateNorm(),
    "at one place only": nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)),
    "pass LayerNorm|pass GroupNorm": nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(1, 4), nn.ReLU(), nn.Conv2d(4, 4, 6), nn.Flatten()
    ),
    "made by 2 layers": nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 4), nn.Flatten()
    ),
}


@pytest.mark.parametrize(("reason", "module"), REFUSED.items(), ids=REFUSED.keys())
def test_what_cannot_be_gated_is_refused_with_the_reason(reason: str, module: nn.Module) -> None:
    with pytest.raises(PassError, match=reason):
        gated(task_of(module), share=0.5)


@pytest.mark.parametrize("parameters", [{"share": 1.0}, {"share": -0.1}, {"share": 0.5, "samples": 0}])
def test_parameters_out_of_range(parameters: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="expected"):
        Gates(**parameters)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 99))
def test_samples_do_not_see_each_other(order: list[int], seed: int) -> None:
    model = half_closed()
    batch = images(6, seed)
    with watch_choices() as margins:
        together = forward(model.module, model.inputs, model.outputs, batch)["output"]
    clear = torch.stack(margins).amin(0).numpy()[order] > 1e-5
    alone = [forward(model.module, model.inputs, model.outputs, {"image": batch["image"][[row]]}) for row in order]
    joined = np.concatenate([answer["output"] for answer in alone])
    np.testing.assert_allclose(joined[clear], together[order][clear], rtol=1e-3, atol=1e-4)


def test_a_gate_learns_and_keeps_its_share() -> None:
    torch.manual_seed(0)
    gate = Gate(4, 10, 0.3, None)
    x = torch.randn(200, 4)
    gate.calibrate(gate.score(x))
    optimizer = torch.optim.SGD(gate.parameters(), lr=0.3)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 100)
        mask = gate.train()(x)
        assert set(mask.detach().round(decimals=4).unique().tolist()) <= {0.0, 1.0}
        # Opening all of them is what this loss wants.
        (1 - mask).mean().backward()
        assert gate.score.weight.grad is not None
        assert gate.score.weight.grad.abs().sum() > 0
        optimizer.step()
        optimizer.zero_grad()
    assert float((gate.eval()(x) == 0).float().mean()) == pytest.approx(0.3, abs=0.05)


def test_ties_in_a_gate_are_told_as_near() -> None:
    gate = Gate(2, 3, 0.5, None).eval()
    with torch.no_grad():
        gate.score.weight.fill_(1)
        gate.score.bias.fill_(0)
        gate.threshold.fill_(1.0)
    with watch_choices() as margins:
        mask = gate(torch.tensor([[0.5, 0.5], [2.0, 0.0]]))
    assert margins[0].tolist() == [0.0, 1.0]
    assert mask.tolist() == [[0.0] * 3, [1.0] * 3]


def test_recovery_trains_the_gates_and_keeps_the_share() -> None:
    task = residual_task()
    model = half_closed()
    trained = tauten.recover(model, task=task, epochs=12)
    before, after = (dict(m.module.named_parameters())["3.conv1.gate.score.weight"] for m in (model, trained))
    assert not torch.equal(before, after)
    shares = [float((mask == 0).float().mean()) for mask in masks(trained, images(200))]
    assert shares == pytest.approx([0.5, 0.5], abs=0.15)


@pytest.mark.parametrize("make", [residual_task, cnn_task, vision_transformer_task])
def test_lowered_to_onnx_it_answers_alike_at_any_batch(make, tmp_path) -> None:
    task = make()
    model = gated(task, share=0.5)
    engine = tauten.load(tauten.save(model, tmp_path / "gated", task=task).path)
    for batch in (1, 2, 7):
        inputs = images(batch, batch)
        with watch_choices() as margins:
            expected = forward(model.module, model.inputs, model.outputs, inputs)["output"]
        clear = torch.stack(margins).amin(0).numpy() > 2e-5
        assert clear.sum() > batch / 2
        np.testing.assert_allclose(engine(inputs)["output"][clear], expected[clear], rtol=1e-3, atol=1e-4)


def test_lowered_to_int8_it_runs(tmp_path) -> None:
    task = residual_task()
    planned = tauten.quantize(half_closed(), "post_training", task=task)
    engine = tauten.load(tauten.save(planned, tmp_path / "int8", task=task).path)
    wanted = forward(planned.module, planned.inputs, planned.outputs, images(20))["output"]
    came = engine(images(20))["output"]
    assert np.mean(came.argmax(1) == wanted.argmax(1)) > 0.7


def test_a_block_that_is_used_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Residual(1, 1, 1)
            self.head = nn.Linear(1, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.block(self.block(x)).mean((2, 3)))

    with pytest.raises(PassError, match="no layer's channels can be gated"):
        gated(task_of(Twice()), share=0.5)
