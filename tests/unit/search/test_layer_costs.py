"""What a layer costs in a higher precision: by the clock of the engine, or by its bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.artifact.read import Artifact
from tauten.core.target import Target
from tauten.core.tensor import Array
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.build import to_model
from tauten.make.model.pass_ import Context
from tauten.make.search import layer_costs
from tauten.make.search.layer_costs import layer_bytes, layer_times
from tauten.make.search.tried import Costs
from tauten.run.engines import load
from tauten.run.engines.engine import OperationTime
from tauten.run.engines.null import Null
from tauten.testing.artifacts import tiny_artifact

PATHS = ("wide", "deep", "by", "head")


class Net(nn.Module):
    """A convolution, one that is much more work, one a channel, and a linear layer after a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 64, 5, padding=2)
        self.by, self.head = nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.wide(x))))
        return self.head((x + torch.relu(self.by(x))).mean((2, 3)))


def task() -> tauten.Task:
    torch.manual_seed(0)
    data = np.random.default_rng(0).standard_normal((16, 3, 24, 24)).astype(np.float32)
    spec = tauten.TensorSpec(name="x", shape=("batch", 3, 24, 24))
    return tauten.Task(name="net", model=Net().eval(), inputs=(spec,), calibrate=[data])


def both(folder: Path, engine: str) -> tuple[Artifact, Artifact]:
    """The model in eight bits and in float."""
    whole = task()
    target = Target(name="test", engine=engine)
    made = []
    for name, model in (("int8", tauten.quantize(whole)), ("float", to_model(whole))):
        lowered = LOWERINGS.get(engine)(model, target, Context(whole, model.module))
        made.append(to_artifact(lowered, folder / name, name=name, engine=engine, target=target))
    return made[0], made[1]


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_every_layer_has_its_time(engine: str, tmp_path: Path) -> None:
    low, high = both(tmp_path, engine)
    sample = {"x": np.ones((1, 3, 24, 24), np.float32)}
    for artifact in (low, high):
        weights = {one.weight for one in load(artifact, threads=1).profile(sample, 1)} - {""}
        assert len(weights) == len(PATHS)
        assert weights <= set(artifact.weights())
    weigh = layer_bytes(Net(), PATHS, 8, 32)
    assert weigh.by_layer["deep"] == 3 * 16 * 64 * 25
    costs = layer_times(low, high, sample, 1, weigh)
    assert costs.unit == "ms"
    assert set(costs.by_layer) == set(PATHS)
    assert costs.text(-0.5) == "0.5 ms less"


class Clock(Null):
    """Tells times that were set, each call a little more: a busy machine."""

    times: ClassVar[dict[str, dict[str, float]]] = {}

    def profile(self, inputs: Mapping[str, Array], repeats: int = 10) -> tuple[OperationTime, ...]:
        self.late = getattr(self, "late", -1.0) + 1
        told = [("add", "", 1.0), *((path, f"{path}.weight", spent) for path, spent in self.times[self.named].items())]
        return tuple(OperationTime(path, "Conv", "", spent + self.late, weight) for path, weight, spent in told)

    @classmethod
    def named_as(cls, artifact: Artifact) -> Clock:
        made = cls.load(artifact, threads=1)
        made.named = artifact.manifest.name
        return made


def test_the_least_times_count_and_what_is_not_told_is_estimated_by_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low, high = (tiny_artifact(tmp_path / name, name=name) for name in ("low", "high"))
    monkeypatch.setattr(layer_costs, "load", lambda artifact, threads: Clock.named_as(artifact))
    monkeypatch.setattr(Clock, "times", {"low": {"a": 1.0, "b": 4.0, "c": 9.0}, "high": {"a": 3.0, "b": 3.0}})
    sizes = {"a": 100.0, "b": 100.0, "c": 50.0}
    costs = layer_times(low, high, {}, 1, Costs(unit="bytes", by_layer=sizes))
    assert costs == Costs(unit="ms", by_layer={"a": 2.0, "b": -1.0, "c": 0.25})
    most = Costs(unit="bytes", by_layer={**sizes, "c": 300.0})
    assert layer_times(low, high, {}, 1, most) is most


def test_where_the_engine_tells_no_times_bytes_count(tmp_path: Path) -> None:
    model = to_model(task())
    target = Target(name="test", engine="eager")
    lowered = LOWERINGS.get("eager")(model, target, Context(task(), model.module))
    artifact = to_artifact(lowered, tmp_path / "eager", name="eager", engine="eager", target=target)
    weigh = layer_bytes(Net(), PATHS, 8, 32)
    assert layer_times(artifact, artifact, {"x": np.ones((1, 3, 24, 24), np.float32)}, 1, weigh) is weigh
    assert weigh.text(1536) == "1,536 bytes more"
