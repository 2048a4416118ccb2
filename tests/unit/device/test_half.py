from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.core.target import Target
from tauten.errors import PassError, RecipeError
from tauten.make.lower import LOWERINGS
from tauten.make.lower.artifact import to_artifact
from tauten.make.model.pass_ import Context
from tauten.make.passes.device._casts import cast, tensors
from tauten.make.passes.device.half import Half
from tauten.run.engines import load
from tauten.testing.tiny import encoder_task, residual_task, vision_transformer_task
from tests.unit.device.applied import alone, answer, change, example, task_of, worth_measuring

TASKS = (residual_task, vision_transformer_task, encoder_task)


def dtypes(module: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()}


@pytest.mark.parametrize("make", TASKS)
@pytest.mark.parametrize(("dtype", "least_db"), [("float16", 55), ("bfloat16", 35)])
def test_a_model_in_half_the_bits_answers_nearly_the_same(make: Any, dtype: Any, least_db: float) -> None:
    task = make()
    before, made, notes = change(Half(dtype=dtype), task)
    assert dtypes(made.module) == {getattr(torch, dtype)}
    assert dtypes(before.module) == {torch.float32}
    assert notes["refused"] == {}
    assert notes["sqnr_db"] > least_db
    wanted, came = answer(before, example(task)), answer(made, example(task))
    assert came.dtype == np.float32
    assert not np.array_equal(came, wanted)
    assert np.linalg.norm(came - wanted) < 2 * notes["relative_error"] * np.linalg.norm(wanted) + 1e-6


@pytest.mark.parametrize("engine", ["onnx", "eager"])
def test_float16_is_what_the_file_holds(engine: str, tmp_path: Path) -> None:
    task = residual_task()
    _, made, _ = change(Half(), task)
    target = Target(name="here")
    lowered = LOWERINGS.get(engine)(made, target, Context(task, task.build()))
    artifact = to_artifact(lowered, tmp_path / "a", name="a", engine=engine, target=target)
    count = sum(parameter.numel() for parameter in made.module.parameters())
    assert artifact.manifest.weights_bytes < 2.6 * count
    inputs = example(task)
    assert np.allclose(load(artifact)(inputs)["output"], answer(made, inputs), atol=2e-2)


class Steep(nn.Module):
    """Its second layer makes numbers that float16 has not, and the norm after it takes them back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.steep, self.norm, self.last = (
            nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        )  # fmt: skip
        with torch.no_grad():
            self.steep.weight.mul_(3e5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.norm(self.steep(self.first(x))))
        return found


def test_layers_that_overflow_are_islands_by_name() -> None:
    task = task_of(Steep(), 4)
    before, made, notes = change(Half(), task)
    assert set(notes["refused"]) == {"steep", "norm"}
    assert "overflows" in notes["refused"]["steep"]
    assert made.module.first.weight.dtype == made.module.last.weight.dtype == torch.float16
    assert made.module.steep.weight.dtype == made.module.norm.weight.dtype == torch.float32
    assert np.allclose(answer(made, example(task)), answer(before, example(task)), atol=1e-2)


def test_bfloat16_has_the_range_of_float32() -> None:
    assert change(Half(dtype="bfloat16"), task_of(Steep(), 4))[2]["refused"] == {}


def test_inputs_and_outputs_beyond_the_range_of_float16_stay_as_they_are() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        module[3].weight.mul_(1e7)
    task = task_of(module, 4, scale=1e6)
    before, made, notes = change(Half(), task)
    assert set(notes["refused"]) == {"0", "1", "3"}
    wanted, came = answer(before, example(task)), answer(made, example(task))
    assert np.abs(came).max() > 65504
    assert np.allclose(came, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


class Squares(nn.Module):
    """Overflows between its layers, where no layer does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.back = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.back(((1e3 * self.layer(x)) ** 2) / 1e6)
        return found


def test_what_overflows_between_layers_makes_an_island_of_what_they_are_parts_of() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Squares(), nn.Linear(4, 2))
    _, made, notes = change(Half(), task_of(module, 4))
    assert set(notes["refused"]) == {"1"}
    assert dtypes(made.module[1]) == {torch.float32}
    assert dtypes(made.module[0]) == dtypes(made.module[2]) == {torch.float16}


def test_where_the_whole_overflows_layers_go_until_it_does_not() -> None:
    _, made, notes = change(Half(), task_of(Squares(), 4))
    assert made.module.layer.weight.dtype == torch.float32
    assert "" not in notes["refused"]


class Picky(nn.Module):
    """Takes no 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise NotImplementedError("no kernel")
        return x * self.weight


def test_what_has_no_kernel_is_an_island() -> None:
    _, _, notes = change(Half(), task_of(nn.Sequential(nn.Linear(4, 4), Picky()), 4))
    assert notes["refused"] == {"1": "does not run: NotImplementedError: no kernel"}


def test_a_smaller_tolerance_keeps_more_in_float32() -> None:
    loose = change(Half(dtype="bfloat16"), residual_task())[2]
    tight = change(Half(dtype="bfloat16", tolerance=0.0025), residual_task())[2]
    assert loose["refused"] == {}
    assert tight["refused"]
    assert tight["relative_error"] <= 0.0025 < loose["relative_error"]


def test_nothing_in_fewer_bits_is_an_error() -> None:
    with pytest.raises(PassError, match=r"nothing can be float16.*relative error .* is above 1e-09"):
        change(Half(tolerance=1e-9), residual_task())
    with pytest.raises(PassError, match="no parameter in float32"):
        change(Half(), task_of(nn.Sequential(nn.ReLU()), 4))


def test_weights_that_are_shared_stay_shared() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    _, made, _ = change(Half(), task_of(module, 4))
    assert made.module[0].weight is made.module[2].weight


def check_the_peak_is_measured() -> None:
    _, _, notes = change(Half(dtype="bfloat16"), task_of(worth_measuring(), 8, rows=2048))
    before, after = notes["peak"]["before"], notes["peak"]["after"]
    assert after["weights_mib"] == pytest.approx(before["weights_mib"] / 2, abs=1e-3)
    assert notes["peak"]["rows"] == 2048
    if before["work_mib"] is not None:
        assert before["work_mib"] > 60
        assert after["work_mib"] < 0.75 * before["work_mib"]


def test_the_peak_is_measured() -> None:
    alone(check_the_peak_is_measured)


def test_fewer_bits_do_not_train_on() -> None:
    task = residual_task()
    _, made, _ = change(Half(), task)
    with pytest.raises(RecipeError, match="float_weights"):
        tauten.prune(made, task=task, ratio=0.5)


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"tolerance": 0.0}, {"samples": 0}])
def test_parameters_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Half(**wrong)


def test_casting_keeps_structures_and_what_needs_no_cast() -> None:
    one, ids = torch.ones(2), torch.arange(2)
    given = (one, {"ids": ids, "more": [one, None]}, 3)
    made = cast(given, torch.float16, (torch.float32,))
    assert [tensor.dtype for tensor in tensors(made)] == [torch.float16, torch.int64, torch.float16]
    assert made[1]["ids"] is ids
    assert made[2] == 3
    assert cast(given, torch.float32, (torch.float16,)) is given
