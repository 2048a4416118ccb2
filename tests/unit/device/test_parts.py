"""Training in parts of batches, as large as memory allows."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tauten
from tauten.errors import ConfigError, PassError
from tauten.make.model.fit import labelled
from tauten.make.model.train import Trained, Trainer, Training
from tauten.make.model.training import memory
from tauten.make.model.training.memory import PeakMemory, free_weights, resident_mib
from tauten.make.model.training.parts import Parts, check_divisible, largest_rows
from tests.unit.train.problems import CLASSES, FEATURES, POINT, classify, clouds, in_batches

ROWS = 2048
TELLS = resident_mib() is not None


def train(task: tauten.Task, module: nn.Module, **settings: Any) -> Trained:
    training = Training(**{"epochs": 2, "learning_rate": task.learning_rate, **settings})
    return Trainer(task.inputs, (), training, labelled(task))(module, task.data("train"), task.data("validate"))


def wide() -> nn.Module:
    """24 KiB of activations a sample, hardly any weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 2048), nn.ReLU(), nn.Linear(2048, CLASSES))


def large() -> tauten.Task:
    return classify(train=in_batches(*clouds(ROWS, 0), ROWS), validate=in_batches(*clouds(ROWS, 2), ROWS))


def difference(one: nn.Module, other: nn.Module) -> float:
    return max(float((a - b).abs().max().detach()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def whole_and_parted() -> tuple[Trained, Trained, float, float]:
    """Trained with memory to spare and with too little for whole batches; the limit, and how far the weights differ."""
    whole, parted = wide(), wide()
    expected = train(large(), whole, max_memory_mib=1e6)
    assert expected.step_mib is not None
    assert expected.step_mib[0] is not None
    assert expected.peak_mib is not None
    limit = expected.peak_mib - 0.4 * expected.step_mib[0]
    return expected, train(large(), parted, max_memory_mib=limit), limit, difference(parted, whole)


@pytest.mark.skipif(not TELLS, reason="this system does not tell how much memory a process uses")
def test_batches_are_divided_until_memory_holds_and_learn_the_same() -> None:
    # In a process of its own: the one that ran other tests holds memory that it takes up or gives back meanwhile.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        expected, came, limit, apart = fresh.submit(whole_and_parted).result()
    assert expected.rows == ROWS
    assert expected.step_mib is not None
    assert expected.step_mib[0] is not None
    assert came.rows is not None
    assert 1 < came.rows < ROWS
    assert came.step_mib is not None
    assert came.step_mib[1] is not None
    assert came.step_mib[1] < 0.7 * expected.step_mib[0]
    assert came.peak_mib is not None
    assert came.peak_mib < limit + 0.1 * expected.step_mib[0]
    assert np.allclose(came.losses, expected.losses, rtol=1e-4)
    assert apart < 1e-3
    assert came.to_notes()["rows_at_once"] == came.rows


@pytest.mark.skipif(not TELLS, reason="this system does not tell how much memory a process uses")
def test_where_one_sample_is_too_much_the_figures_are_told() -> None:
    with pytest.raises(PassError, match=r"one sample at a time needs \d+\.\d MiB, and max_memory_mib allows 8 MiB"):
        train(large(), wide(), max_memory_mib=8)


def test_parts_are_even_and_lose_nothing() -> None:
    points, labels = clouds(10, 0)
    parts = list(Parts((POINT,), 4).of([({"point": points}, labels), ({"point": points[:3]}, None)]))
    assert [len(inputs["point"]) for inputs, _ in parts] == [3, 3, 4, 3]
    assert np.array_equal(np.concatenate([inputs["point"] for inputs, _ in parts[:3]]), points)
    assert np.array_equal(np.concatenate([part for _, part in parts[:3]]), labels)  # type: ignore[arg-type]
    assert parts[3][1] is None
    whole = ({"point": points}, labels)
    assert next(Parts((POINT,)).of([whole]))[0]["point"] is points


def test_what_cannot_be_divided_is_refused() -> None:
    points, labels = clouds(10, 0)
    with pytest.raises(PassError, match="10 samples and 9 labels"):
        list(Parts((POINT,), 4).of([({"point": points}, labels[:9])]))
    with pytest.raises(PassError, match='fixed has no dimension named "batch"'):
        check_divisible((POINT, tauten.TensorSpec(name="fixed", shape=(3,))), "training")


class Growing(PeakMemory):
    """Peaks of 100 MiB, then of 10."""

    def __init__(self, held: float) -> None:
        self.peaks = [100.0, 10.0]
        self.held = held

    def held_mib(self) -> float | None:
        return self.held

    def lately_mib(self) -> float | None:
        return self.peaks[0]

    def restart(self) -> None:
        self.peaks.pop(0)


def test_a_step_above_the_limit_makes_the_next_parts_smaller() -> None:
    parts = Parts((POINT,), 9, 50.0, Growing(5))
    parts.hold()
    assert parts.rows == 5
    parts.hold()
    assert parts.rows == 5


def test_parts_stay_where_smaller_ones_would_not_help() -> None:
    parts = Parts((POINT,), 9, 50.0, Growing(60))
    parts.hold()
    assert parts.rows == 9


@pytest.mark.parametrize("count", [1, 2, 7, 8, 100])
@pytest.mark.parametrize("most", [1, 3, 8, 99, 1000])
def test_the_largest_part_that_holds_is_found(count: int, most: int) -> None:
    tried = []

    def needed(rows: int) -> float:
        tried.append(rows)
        return 10.0 * rows

    rows, figures = largest_rows(count, needed, 10.0 * most, "this")
    even = {math.ceil(count / parts) for parts in range(1, count + 1)}
    assert rows == max(size for size in even if size <= most)
    assert len(set(tried)) == len(tried)
    assert max(tried) <= min(count, 2 * most)
    assert len(tried) <= 2 * math.log2(count) + 2
    assert figures[rows] == 10.0 * rows


def test_what_cannot_be_found_is_said() -> None:
    assert largest_rows(8, lambda rows: None, 1.0, "this") == (None, {})
    with pytest.raises(PassError, match=r"this: one sample at a time needs 12\.0 MiB, and max_memory_mib allows 4 MiB"):
        largest_rows(8, lambda rows: 12.0, 4.0, "this")
    with pytest.raises(PassError, match="more than the machine has"):
        largest_rows(8, lambda rows: math.inf, 4.0, "this")
    with pytest.raises(ConfigError, match="max_memory_mib"):
        Training(epochs=1, max_memory_mib=0)


@pytest.mark.skipif(not TELLS, reason="this system does not tell how much memory a process uses")
def test_the_peak_of_all_times_is_kept_where_it_begins_anew() -> None:
    peak = PeakMemory(torch.device("cpu"))
    held = torch.ones(8 << 20)
    high = peak.mib()
    del held
    memory.trim()
    peak.restart()
    lately = peak.lately_mib()
    assert high is not None
    assert lately is not None
    assert lately < high - 20
    assert peak.mib() == pytest.approx(high, abs=1)


def test_weights_of_a_module_that_was_lowered_go() -> None:
    module = nn.Sequential(nn.Linear(1024, 2048, bias=False), nn.Linear(1024, 2048, bias=False), nn.BatchNorm1d(2048))
    module[1].weight = module[0].weight
    kept = module[0].weight.detach().numpy()
    expected = kept.copy()
    before = resident_mib()
    other = nn.Linear(1024, 4096, bias=False)
    assert free_weights(other) == 16
    assert free_weights(module) == pytest.approx(8, abs=0.1)
    assert all(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert module[1].weight is module[0].weight
    assert module[0].weight.shape == (2048, 1024)
    assert np.array_equal(kept, expected)  # what shares the memory keeps it
    after = resident_mib()
    if before is not None:
        assert after is not None
        assert after < before + 4
    assert free_weights(module) == 0
