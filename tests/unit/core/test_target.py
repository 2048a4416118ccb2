"""Targets and budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauten.core.target import PRESETS, Budget, Target, find_target, parse_bytes
from tauten.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50KB", 50_000),
        ("2MB", 2_000_000),
        ("1.5 MB", 1_500_000),
        ("512KiB", 524_288),
        ("1gib", 2**30),
        ("7", 7),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_they_are_written(text: str, size: int) -> None:
    assert parse_bytes(text) == size
    assert Budget(max_bytes=text).max_bytes == size


@pytest.mark.parametrize("text", ["", "KB", "-5KB", "5XB", "1e3", "5 K B", "nan", "five"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a size such as 50KB"):
        parse_bytes(text)


@given(st.integers(0, 10**12))
def test_a_plain_number_is_itself(size: int) -> None:
    assert parse_bytes(size) == size


@pytest.mark.parametrize(
    "limits",
    [{"max_drop": -1}, {"max_bytes": 0}, {"max_latency_ms": 0}, {"max_memory_mib": -1}, {"max_drop": float("inf")}],
)
def test_a_budget_that_cannot_be_is_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Budget(**limits)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_found_by_name(name: str) -> None:
    assert find_target(name).name == name
    assert find_target(find_target(name)) is find_target(name)


def test_a_target_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text('threads = 2\nbatch = 4\nprecisions = ["int8"]\n')
    assert find_target(str(path)) == Target(name="board", threads=2, batch=4, precisions=("int8",))


@pytest.mark.parametrize("content", [b"threads = ", b"threads = 0", b"wheels = 4", b"\xff\xfe"])
def test_a_bad_file_is_refused_by_its_name_or_field(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"board|Target"):
        find_target(str(path))


def test_an_unknown_target_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="server-cpu"):
        find_target("toaster")
    with pytest.raises(ConfigError, match="missing"):
        find_target(str(tmp_path / "missing.toml"))


@pytest.mark.parametrize(
    "field", [{"threads": 0}, {"threads": 1025}, {"batch": 0}, {"device": "tpu"}, {"precisions": ["int3"]}]
)
def test_a_target_that_cannot_be_is_refused(field: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(field))):
        Target(name="x", **field)


def test_the_engine_is_the_first_of_the_engines_and_either_says_the_other() -> None:
    assert Target(name="x").engines == ("onnx",)
    assert Target(name="x", engine="eager").engines == ("eager",)
    assert Target(name="x", engines=("openvino", "onnx")).engine == "openvino"
    assert Target.from_json({"name": "x", "engine": "onnx", "engines": ["onnx", "openvino"]}).engine == "onnx"
    for engines in ([], ["openvino", "onnx"], ["onnx", "onnx"]):
        with pytest.raises(ConfigError, match="engines"):
            Target(name="x", engine="onnx", engines=engines)


def test_threads_are_set_as_a_server_wants_them() -> None:
    for target in PRESETS.values():
        assert (target.threads, target.inter_op, target.affinity, target.spinning) == (1, 1, (), False)
    assert Target(name="x", affinity=[0, 2]).affinity == (0, 2)
    for field in ({"affinity": [0, 0]}, {"affinity": [-1]}, {"inter_op": 0}, {"engines": [""]}):
        with pytest.raises(ConfigError, match=next(iter(field))):
            Target(name="x", **field)
