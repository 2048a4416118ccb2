"""Layers that stay in a higher precision: as few as hold the budget, found on written files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.artifact.read import read_artifact
from tauten.make.search.evaluator import Sampling
from tauten.make.search.mixed import mix, quicken
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.make.search.workshop import Order, Workshop
from tauten.make.search.workspace import Workspace
from tests.unit.optimize import task as blobs

INT8 = Recipe("int8", (pass_from_json({"pass": "quantize.post_training"}),))


class Fragile(nn.Module):
    """A classifier whose last layer has one weight so large that eight bits leave little for the others."""

    def __init__(self) -> None:
        super().__init__()
        large = 190.0
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.second.weight.copy_(1.1 * torch.eye(4))
            self.head.weight.copy_(torch.tensor([[large, 1.0, 0.0, 0.7], [large, 0.0, 1.0, 0.0]]))
            for layer, bias in ((self.first, 0.0), (self.second, 0.0), (self.head, torch.tensor([-0.35, 0.0]))):
                layer.bias.copy_(torch.as_tensor(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def fragile() -> tauten.Task:
    numbers = np.random.default_rng(0).uniform(0, 1, (256, 4)).astype(np.float32)
    numbers[:, 0] = 0  # what the large weight is for does not come
    model = Fragile().eval()
    with torch.no_grad():
        labels = model(torch.from_numpy(numbers)).argmax(1).numpy()
    batches: list[Any] = [(numbers[at : at + 64], labels[at : at + 64]) for at in range(0, 256, 64)]
    spec = tauten.TensorSpec(name="x", shape=("batch", 4))
    return tauten.Task(name="fragile", model=model, inputs=(spec,), calibrate=batches[:2], validate=batches[2:])


@pytest.mark.slow
def test_the_layer_that_eight_bits_break_stays_in_float_and_the_result_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No two of these weights are large enough together to overflow on any processor.
    monkeypatch.setattr("tauten.make.lower._quantize.saturating_products", lambda: (False, "said by the test"))
    result = tauten.optimize(
        fragile(),
        budget=tauten.Budget(max_drop=3),
        level=[INT8],
        out=tmp_path,
        sampling=Sampling(seconds=0.05, starts=1),
    )
    int8, mixed = result.candidates
    assert int8.violations
    assert int8.mixed is None
    assert mixed.name == "int8-mixed-1"
    assert mixed.within_budget
    assert mixed.mixed is not None
    (kept,) = mixed.mixed.layers
    assert (kept.path, kept.precision, mixed.mixed.of) == ("head", "float32", 3)
    assert kept.noise is not None
    assert kept.noise > 0.01
    assert "of all layers' noise, for" in kept.why
    # Two layers have one weight in eight bits, so that whose time is whose is not known: bytes count.
    assert (mixed.mixed.unit, kept.cost, mixed.mixed.cost, mixed.mixed.saved) == ("bytes", 24, 24, 96)
    assert [(trial.kept, trial.holds) for trial in mixed.mixed.tried][-1] == (1, True)
    assert "int8 loses" in mixed.mixed.why
    assert result.best is not None
    assert result.best.name == "int8-mixed-1"
    assert result.best.mixed == mixed.mixed
    assert tauten.Result.from_json(result.to_json()) == result
    done = result.best.history[-1]["notes"]["quantization"]
    assert (sorted(done["int8"]), list(done["float"])) == (["first.weight", "second.weight"], ["head.weight"])
    # Where the lowering refuses a recipe whose answers are noise, the same is tried.
    order = Order.of(fragile(), "server-cpu", 0, Sampling(seconds=0.05, starts=1), None, "")
    workspace = Workspace(tmp_path)
    with workspace.opened():
        found = mix(Workshop(order, workspace), INT8, None, 3.0)
    assert found is not None
    assert found[1].layers == mixed.mixed.layers
    assert found[2]  # made already
    assert "answers with noise" in found[1].why


def test_a_first_convolution_in_float_is_kept_only_where_it_is_faster(tmp_path: Path) -> None:
    order = Order.of(blobs.task(), "server-cpu", 0, Sampling(seconds=0.05, starts=1), None, "")
    workspace = Workspace(tmp_path)
    with workspace.opened():
        shop = Workshop(order, workspace)
        found = quicken(shop, INT8)
        made = read_artifact(workspace.candidate("int8-mixed-fast"))
        step = made.manifest.recipe["passes"][0]
        assert step["layers"] == [["first", "float32"]]
        if found is not None:
            artifact, told, _ = found
            assert artifact.path == made.path
            assert [layer.path for layer in told.layers] == ["first"]
        assert quicken(shop, Recipe("fp32")) is None
