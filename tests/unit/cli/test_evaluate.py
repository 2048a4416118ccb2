"""``tauten evaluate``: in process for its answers, as a command for its exit codes and for life without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tauten.cli.main import app
from tauten.errors import ConfigError, ExtraMissing, TaskError, TautenError
from tauten.testing.artifacts import tiny_artifact

TASK = """
import numpy as np
import tauten

def build():
    import torch
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return model

def make(metric="accuracy", **more):
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    def batches(labels):
        return [(x[at:at + 10], labels[at:at + 10]) for at in (0, 10)]
    half = np.arange(20) % 2
    return tauten.Task(model=build, inputs=(tauten.TensorSpec(name="image", shape=("batch", 4)),), outputs=("scores",),
        calibrate=batches(half), validate=batches(half), test=batches(np.zeros(20, int)), metric=metric, **more)

def task(): return make()
def fidelity(): return make("cosine")
def trained(): return make("cosine", train=[(np.zeros((2, 4), np.float32), np.zeros(2, int))], epochs=1)
def own(): return make(share_of_zeros)
def share_of_zeros(outputs, labels): return float((outputs["scores"] == 0).mean())
"""


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Answers zeros: always the first class."""
    return tiny_artifact(tmp_path / "tiny").path


@pytest.fixture
def task(tmp_path: Path) -> str:
    (tmp_path / "zeros.py").write_text(TASK)
    return f"{tmp_path / 'zeros.py'}"


def evaluate(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["evaluate", *(str(one) for one in arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


X = np.zeros((8, 4), np.float32)


def test_quality_size_latency_and_throughput_come_as_intervals(artifact: Path, task: str) -> None:
    found = evaluate(artifact, "--task", f"{task}:task", "--seconds", "0.05")
    measures = found["measures"]
    fresh = {"load_ms", "peak_memory_mib", "startup_ms"}
    assert set(measures) == {"quality", "size_bytes", "throughput_per_s"} | fresh | {
        f"latency_{what}_ms" for what in ("mean", "p50", "p95", "p99")
    }
    assert set(measures["throughput_per_s"]) == {"1", "8", "16"}
    assert measures["quality"]["value"] == 100.0
    assert 80 < measures["quality"]["low"] < 100
    assert measures["size_bytes"]["value"] == sum(entry.stat().st_size for entry in artifact.iterdir())
    assert found["metric"] == {"name": "accuracy", "unit": "%", "better": "higher"}
    assert found["quality_on"].startswith("test of ")
    assert found["engine"]["engine"] == "null"


def test_a_split_can_be_chosen_and_latency_left_out(artifact: Path, task: str) -> None:
    found = evaluate(artifact, "--task", f"{task}:task", "--split", "validate", "--no-latency")
    assert found["measures"]["quality"]["value"] == 50.0
    assert set(found["measures"]) == {"quality", "size_bytes"}


def test_a_users_function_is_a_metric(artifact: Path, task: str) -> None:
    found = evaluate(artifact, "--task", f"{task}:own", "--no-latency")
    assert found["metric"]["name"] == "share_of_zeros"
    assert found["measures"]["quality"]["value"] == 1.0


def test_arrays_in_a_file_are_enough(artifact: Path, tmp_path: Path) -> None:
    data = save(tmp_path / "d.npz", image=X, labels=np.array([0, 0, 0, 0, 0, 0, 1, 2]))
    assert evaluate(artifact, "--data", data, "--no-latency")["measures"]["quality"]["value"] == 75.0
    found = evaluate(artifact, "--data", data, "--metric", "cosine", "--reference", artifact, "--no-latency")
    assert found["measures"]["quality"]["value"] == 100.0


def test_the_original_is_built_where_a_metric_compares_with_it(artifact: Path, task: str) -> None:
    assert evaluate(artifact, "--task", f"{task}:fidelity", "--no-latency")["measures"]["quality"]["value"] == 100.0


def test_people_get_a_table(artifact: Path, task: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(artifact), "--task", f"{task}:task", "--no-latency"])
    assert done.exit_code == 0
    assert "quality" in done.stdout
    assert "100 %" in done.stdout


def _pickled(path: Path) -> Path:
    return save(path, image=np.array([{"a": 1}], dtype=object), labels=np.zeros(1, int))


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ([], ConfigError, "one of --task"),
        (["--task", "TASK:task", "--data", "x.npz"], ConfigError, "one of --task"),
        (["--data", "GOOD", "--split", "test"], ConfigError, "--split chooses"),
        (["--data", "nowhere.npz"], TaskError, "no such file"),
        (["--data", "ARRAY"], TaskError, "got a single array"),
        (["--data", "TEXT"], TaskError, "expected a .npz file"),
        (["--data", "PICKLE"], TaskError, "expected a .npz file of plain arrays"),
        (["--data", "UNLABELLED"], TaskError, "expected an array called 'labels'"),
        (["--data", "SHAPE"], TaskError, "image: expected shape"),
        (["--data", "NAMES"], TaskError, "expected inputs"),
        (["--data", "GOOD", "--metric", "charm"], TaskError, "got 'charm'"),
        (["--data", "GOOD", "--metric", "cosine"], ConfigError, "give --reference ARTIFACT"),
        (["--task", "TASK:trained"], ConfigError, "give --reference ARTIFACT"),
        (["--task", "TASK:nothing"], TaskError, "nothing"),
    ],
)
def test_what_cannot_be_evaluated_is_told(
    artifact: Path, task: str, tmp_path: Path, arguments: list[str], error: type[TautenError], told: str
) -> None:
    labels = np.zeros(8, int)
    (tmp_path / "text").write_text("no arrays")
    np.save(tmp_path / "array.npy", X)
    files = {
        "GOOD": lambda: save(tmp_path / "good.npz", image=X, labels=labels),
        "ARRAY": lambda: tmp_path / "array.npy",
        "TEXT": lambda: tmp_path / "text",
        "PICKLE": lambda: _pickled(tmp_path / "pickle.npz"),
        "UNLABELLED": lambda: save(tmp_path / "unlabelled.npz", image=X),
        "SHAPE": lambda: save(tmp_path / "shape.npz", image=X[:, :3], labels=labels),
        "NAMES": lambda: save(tmp_path / "names.npz", photo=X, labels=labels),
    }
    ready = [str(files[one]()) if one in files else one.replace("TASK", task) for one in arguments]
    with pytest.raises(error, match=told):
        CliRunner().invoke(app, ["evaluate", str(artifact), *ready, "--no-latency"], catch_exceptions=False)


def run(*arguments: object, without_torch: bool = False) -> subprocess.CompletedProcess[str]:
    start = "import sys; sys.modules['torch'] = None; " if without_torch else "import sys; "
    code = start + textwrap.dedent("from tauten.cli.main import main; main()")
    return subprocess.run(
        [sys.executable, "-c", code, *(str(one) for one in arguments)], capture_output=True, text=True, check=False
    )


def test_labelled_metrics_need_no_torch(artifact: Path, task: str) -> None:
    done = run("evaluate", artifact, "--task", f"{task}:task", "--seconds", "0.05", "--json", without_torch=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measures"]["quality"]["value"] == 100.0


def test_fidelity_without_torch_says_what_to_do(artifact: Path, task: str) -> None:
    done = run("evaluate", artifact, "--task", f"{task}:fidelity", "--no-latency", without_torch=True)
    assert done.returncode == ExtraMissing.exit_code
    assert 'pip install "tauten[optimize]"' in done.stderr
    assert "--reference" in done.stderr
    spared = run(
        "evaluate", artifact, "--task", f"{task}:fidelity", "--reference", artifact, "--no-latency", without_torch=True
    )
    assert spared.returncode == 0, spared.stderr


def test_a_damaged_artifact_is_one_clear_line(artifact: Path, task: str) -> None:
    (artifact / "graph.bin").write_bytes(b"NO GRAPH")
    done = run("evaluate", artifact, "--task", f"{task}:task", "--json")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "sha256 differs" in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "ArtifactError"
