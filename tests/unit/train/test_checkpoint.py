from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import tauten
from tauten.make.model.training import checkpoint as checkpoints
from tests.unit.train.killed import run
from tests.unit.train.problems import classify, clouds, in_batches

ROOT = Path(__file__).parents[3]


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def in_a_process(folder: Path, kill_at: int, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.unit.train.killed", str(folder), str(kill_at), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    expected, _ = run(None)
    killed = in_a_process(tmp_path / "kept", 25, tmp_path / "none")  # ten steps an epoch: in the third
    assert killed.returncode == -signal.SIGKILL
    ended = in_a_process(tmp_path / "kept", -1, tmp_path / "weights")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["2"]
    assert alike(load_file(tmp_path / "weights"), dict(expected.state_dict()))


def interrupted(folder: Path, step: int, **settings: Any) -> None:
    """As a kill leaves it, without a process."""

    class Gone(BaseException):
        pass

    def stop(*given: Any) -> None:
        raise Gone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", stop)
        with pytest.raises(Gone):
            run(folder, step, **settings)


@pytest.mark.parametrize("step", [10, 19, 35])
def test_it_goes_on_wherever_it_was(tmp_path: Path, step: int) -> None:
    expected, whole = run(None)
    interrupted(tmp_path, step)
    came, trained = run(tmp_path)
    assert trained.resumed == step // 10
    assert alike(dict(came.state_dict()), dict(expected.state_dict()))
    assert trained.losses == whole.losses
    assert trained.validation == whole.validation
    assert (trained.best_epoch, trained.samples) == (whole.best_epoch, whole.samples)


def test_keeping_checkpoints_changes_nothing_and_a_training_that_is_over_is_not_run_again(tmp_path: Path) -> None:
    expected, whole = run(None)
    first, _ = run(tmp_path)
    again, trained = run(tmp_path, kill_at=0)  # no step is taken
    for module in (first, again):
        assert alike(dict(module.state_dict()), dict(expected.state_dict()))
    assert trained.resumed == 4
    assert trained.to_notes()["loss_after"] == whole.to_notes()["loss_after"]
    assert not again.training


def test_the_order_of_a_loader_with_a_generator_of_its_own_goes_on(tmp_path: Path) -> None:
    def task() -> tauten.Task:
        points, labels = (torch.as_tensor(array) for array in clouds(160, 0))
        own = torch.Generator().manual_seed(3)
        return classify(train=DataLoader(TensorDataset(points, labels), 16, shuffle=True, generator=own))

    expected, _ = run(None, task=task())
    interrupted(tmp_path, 25, task=task())
    came, trained = run(tmp_path, task=task())
    assert trained.resumed == 2
    assert alike(dict(came.state_dict()), dict(expected.state_dict()))


def test_early_stopping_is_remembered(tmp_path: Path) -> None:
    points, labels = clouds(160, 0)
    wrong = classify(train=in_batches(points, (labels + 1) % 3))
    expected, whole = run(None, task=wrong, epochs=8, patience=2)
    interrupted(tmp_path, 12, task=wrong, epochs=8, patience=2)
    came, trained = run(tmp_path, task=wrong, epochs=8, patience=2)
    assert (trained.resumed, trained.stopped_early, len(trained.losses)) == (1, whole.stopped_early, len(whole.losses))
    assert alike(dict(came.state_dict()), dict(expected.state_dict()))


def test_another_training_does_not_take_it(tmp_path: Path) -> None:
    points, labels = clouds(160, 0)
    relabelled, moved = labels.copy(), points.copy()
    relabelled[80] = (relabelled[80] + 1) % 3  # in the sixth batch
    moved[159, 0] += 1
    same = classify(train=in_batches(points, labels))
    interrupted(tmp_path, 25, task=same)
    for changed in (
        {"task": same, "learning_rate": 2e-2},
        {"task": same, "precision": "bfloat16"},
        {"task": classify(train=in_batches(points, relabelled))},
        {"task": classify(train=in_batches(moved, labels))},
        {"task": classify(train=in_batches(points, labels), validate=in_batches(*clouds(64, 3)))},
    ):
        assert run(tmp_path, **changed)[1].resumed == 0  # type: ignore[arg-type]
    assert run(tmp_path, task=same)[1].resumed == 2


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"\xff" * 7])
def test_a_damaged_file_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    interrupted(tmp_path, 25)
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(damage)
    assert run(tmp_path)[1].resumed == 0


def test_a_kill_while_writing_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = run(None)
    interrupted(tmp_path, 15)
    (file,) = tmp_path.glob("*.safetensors")
    (tmp_path / f".{file.name}.0badf00d.partial").write_bytes(b"half")
    came, trained = run(tmp_path)
    assert trained.resumed == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert alike(dict(came.state_dict()), dict(expected.state_dict()))


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoints.Unwritable, match="the checkpoint cannot be written"):
        run(tmp_path / "file")


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    weight = torch.nn.Linear(2, 2).weight
    kept = checkpoints.Checkpoint(tmp_path / "one.safetensors", writes=True)
    kept.save({"a": weight, "b": weight.t()}, {"some": [1, 2.5, None]})
    found = kept.read()
    assert found is not None
    tensors, numbers = found
    assert torch.equal(tensors["b"], weight.t())
    assert numbers == {"some": [1, 2.5, None]}
