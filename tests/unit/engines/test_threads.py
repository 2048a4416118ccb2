"""What engines do with a target's threads, and that they say what they do not do."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tauten.artifact.read import Artifact
from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.run.engines import load
from tauten.run.engines._onnx_threads import Threads
from tauten.run.engines._threads import find_cores, unmet
from tauten.run.engines.onnx import _options, by_precision
from tauten.testing.artifacts import tiny_artifact

BINDS = hasattr(os, "sched_setaffinity")
X = np.arange(8, dtype=np.float32).reshape(2, 4)
BORDERS = {
    "inputs": (TensorSpec(name="x", shape=("batch", 4)),),
    "outputs": (TensorSpec(name="y", shape=("batch", 4)),),
    "layers": {},
}


def two_branches(folder: Path, **wishes: object) -> Artifact:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Neg", ["x"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    target = Target.from_json({"name": "test", **wishes})
    data = model.SerializeToString()
    return tiny_artifact(folder / "a", graph=data, weights={}, engine="onnx", target=target, **BORDERS)


def bound() -> dict[str, str]:
    """The cores that each thread of this process may run on, as the system tells them."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        found[task.name] = next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
    return found


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's list of threads")
def test_onnx_binds_its_threads_and_runs_operations_beside_each_other(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    artifact = two_branches(tmp_path, threads=3, inter_op=2, affinity=[core], spinning=True)
    before = bound()
    engine = load(artifact)
    made: list[str] = []
    until = time.monotonic() + 30
    while made.count(str(core)) < 2 and time.monotonic() < until:  # a thread binds itself once it has begun
        made = [cores for thread, cores in bound().items() if thread not in before]
    assert made.count(str(core)) >= 2
    assert len(made) >= 3
    np.testing.assert_array_equal(engine({"x": X})["y"], np.zeros_like(X))
    described = engine.describe()
    assert (described["threads"], described["inter_op"]) == (3, 2)
    assert (described["affinity"], described["spinning"]) == ([core], True)
    assert described["fallbacks"] == ["affinity: the calling thread and those of inter_op stay as they are"]
    assert engine.profile({"x": X}, repeats=1)
    again = load(artifact, threads=1).describe()
    assert (again["threads"], again["affinity"]) == (1, [])


def test_onnx_asks_for_what_holds() -> None:
    options = _options(Threads(3, 2, (0, 4), True, ()))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.get_session_config_entry("session.intra_op_thread_affinities") == "1,5;1,5"
    for pool in ("intra", "inter"):
        assert options.get_session_config_entry(f"session.{pool}_op.allow_spinning") == "1"
    plain = _options(Threads.settle(Target(name="test"), 2))
    assert plain.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert plain.inter_op_num_threads == 1
    for pool in ("intra", "inter"):
        assert plain.get_session_config_entry(f"session.{pool}_op.allow_spinning") == "0"


def test_onnx_with_one_thread_has_none_to_bind_or_to_spin(tmp_path: Path) -> None:
    described = load(two_branches(tmp_path, affinity=[0], spinning=True)).describe()
    assert (described["affinity"], described["spinning"]) == ([], False)
    assert [line.partition(":")[0] for line in described["fallbacks"]] == ["affinity", "spinning"]


def test_spinning_is_asked_for_when_an_artifact_is_loaded(tmp_path: Path) -> None:
    artifact = two_branches(tmp_path, threads=2)
    assert load(artifact).describe()["spinning"] is False
    assert load(artifact, spinning=True).describe()["spinning"] is True
    assert load(artifact, threads=1, spinning=True).describe()["spinning"] is False
    again = two_branches(tmp_path / "spins", threads=2, spinning=True)
    assert load(again, spinning=False).describe()["spinning"] is False
    assert artifact.manifest.target.spinning is False


def test_onnx_says_nothing_where_nothing_was_wished(tmp_path: Path) -> None:
    assert "fallbacks" not in load(two_branches(tmp_path)).describe()


def test_cores_that_are_not_there_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    described = load(two_branches(tmp_path, threads=2, affinity=[65535])).describe()
    assert described["affinity"] == []
    assert described["fallbacks"] == ["affinity: this process cannot bind threads to cores [65535]"]
    assert capfd.readouterr() == ("", "")


def test_on_a_device_operations_are_started_one_after_the_other() -> None:
    settled = Threads.settle(Target(name="gpu", device="cuda", inter_op=4), 1)
    assert settled.inter == 1
    assert settled.fallbacks[0].startswith("inter_op")


@pytest.mark.skipif(not BINDS, reason="the system binds no threads")
def test_looking_for_cores_leaves_the_calling_thread_as_it_is() -> None:
    before, threads = os.sched_getaffinity(0), threading.active_count()
    core = max(before)
    assert find_cores([core, 65535]) == (core,)
    assert (os.sched_getaffinity(0), threading.active_count()) == (before, threads)


def test_what_cannot_be_met_is_named() -> None:
    every = Target(name="test", inter_op=2, affinity=(0,), spinning=True)
    assert unmet(Target(name="test"), 1, affinity="A", spinning="S") == []
    assert unmet(Target(name="test"), 2, affinity="A", spinning="S") == ["spinning: S"]
    assert unmet(every, 2, affinity="A", spinning="S")[1:] == ["affinity: A", "spinning: S"]
    assert [line.partition(":")[0] for line in unmet(every, 1, affinity="A", spinning="S")] == [
        "inter_op", "affinity", "spinning",
    ]  # fmt: skip


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_pytorch_engines_name_what_they_do_not_do(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    node = {"target": "aten.relu.default", "args": [{"node": 0}]}
    graph = {"format": 1, "arguments": [{"input": "x"}], "nodes": [node], "outputs": [{"node": 1}]}
    target = Target(name="test", engine=engine, batch=2, inter_op=2, affinity=(0,), spinning=True)
    data = json.dumps(graph).encode()
    artifact = tiny_artifact(tmp_path / "a", graph=data, weights={}, engine=engine, target=target, **BORDERS)
    before = torch.get_num_threads()
    try:
        described = load(artifact, threads=2).describe()
    finally:
        torch.set_num_threads(before)
    assert described["threads"] == 2
    assert [line.partition(":")[0] for line in described["fallbacks"]] == ["inter_op", "affinity", "spinning"]


def test_products_with_packed_weights_count_as_int8() -> None:
    found = by_precision(Counter({"MatMulNBits": 3, "MatMul": 1}))
    assert found == {"int8": {"MatMulNBits": 3}, "other": {"MatMul": 1}, "int8_share_of_products": 0.75}
