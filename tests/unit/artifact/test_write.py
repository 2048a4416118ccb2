"""Writing: whole or not at all, and honest about its size."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauten.artifact import _replace
from tauten.artifact.read import read_artifact
from tauten.artifact.write import copy_artifact, write_artifact, write_measures
from tauten.core.measure import Measure
from tauten.errors import ArtifactError, ConfigError
from tauten.testing.artifacts import tiny_artifact

LATENCY = Measure(value=1.25, low=1.0, high=2.0, unit="ms", better="lower", repeats=9, on="here")


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_weights_and_graph_come_back(tmp_path: Path) -> None:
    weights = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.float32(3).reshape(())}
    made = tiny_artifact(tmp_path / "deep" / "er" / "tiny", weights=weights, graph=b"the graph")
    again = read_artifact(made.path)
    assert again.graph() == b"the graph"
    assert {name: (array.dtype, array.shape, array.tobytes()) for name, array in again.weights().items()} == {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in weights.items()
    }
    assert leftovers(made.path.parent) == []


def test_writing_again_replaces(tmp_path: Path) -> None:
    tiny_artifact(tmp_path / "tiny", graph=b"old")
    made = tiny_artifact(tmp_path / "tiny", graph=b"new")
    assert made.graph() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_measures_are_added_and_the_rest_keeps_its_bytes(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path / "tiny")
    noted = write_measures(made, {"latency_p50_ms": LATENCY})
    again = write_measures(noted, {"quality": LATENCY})
    assert set(again.manifest.measures) == {"size_bytes", "latency_p50_ms", "quality"}
    assert again.manifest.measures["latency_p50_ms"] == LATENCY
    assert {name: again.checksums[name] for name in again.manifest.files} == {
        name: made.checksums[name] for name in made.manifest.files
    }
    assert leftovers(tmp_path) == []


def test_a_copy_shares_no_bytes(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path / "tiny")
    copied = copy_artifact(made, tmp_path / "copy")
    (copied.path / "graph.bin").write_bytes(b"xx graph")
    assert read_artifact(made.path).graph() == b"no graph"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12_000), st.text(max_size=30))
def test_the_size_that_is_stated_is_the_size_on_disk(
    tmp_path_factory: pytest.TempPathFactory, size: int, key: str
) -> None:
    # The manifest states a total that holds the manifest itself: the digits must settle, whatever the size.
    made = tiny_artifact(
        tmp_path_factory.mktemp("sizes") / "tiny", graph=b"x" * size, key=key.encode("utf-8", "ignore").decode()
    )
    on_disk = sum(entry.stat().st_size for entry in made.path.iterdir())
    assert made.manifest.measures["size_bytes"].value == on_disk == made.size_bytes


@pytest.mark.parametrize("total", [999, 1000, 9_999, 10_000, 10_001, 99_999, 100_000])
def test_the_size_settles_where_its_digits_grow(tmp_path: Path, total: int) -> None:
    base = tiny_artifact(tmp_path / "base", graph=b"").size_bytes
    for padding in range(max(0, total - base - 8), max(0, total - base) + 8):
        made = tiny_artifact(tmp_path / "tiny", graph=b"x" * padding)
        assert made.manifest.measures["size_bytes"].value == made.size_bytes


def test_weights_alone_can_be_the_size(tmp_path: Path) -> None:
    made = write_measures(tiny_artifact(tmp_path / "tiny"), {}, "weights")
    size = made.manifest.measures["size_bytes"]
    assert size.value == made.manifest.files[made.manifest.weights] < made.size_bytes
    assert size.on == "weights file"


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "a/b", ".hidden", "", "-rf", "manifest.json", "SHA256SUMS", "a\nb"]
)
def test_a_file_that_would_leave_the_folder_is_not_written(tmp_path: Path, name: str) -> None:
    made = tiny_artifact(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="plain file name"):
        write_artifact(
            tmp_path / "in" / "bad", made.manifest, {"graph.bin": b"", "weights.safetensors": b"", name: b"x"}
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_files_must_hold_graph_and_weights(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=r"expected files 'graph\.bin' and 'weights\.safetensors'"):
        write_artifact(tmp_path / "bad", made.manifest, {"graph.bin": b""})


def test_what_is_no_artifact_is_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="left alone"):
        tiny_artifact(home)
    assert (home / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ArtifactError, match="left alone"):
        tiny_artifact(home / "thesis.txt")
    assert leftovers(home) == leftovers(tmp_path) == []


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert tiny_artifact(tmp_path / "tiny").graph() == b"no graph"


def test_a_link_to_an_artifact_stays_a_link(tmp_path: Path) -> None:
    tiny_artifact(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tiny_artifact(tmp_path / "link", graph=b"new")
    assert (tmp_path / "link").is_symlink()
    assert read_artifact(tmp_path / "real").graph() == b"new"
    assert leftovers(tmp_path) == []


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        tiny_artifact(tmp_path / "file" / "tiny")


def test_a_failure_in_the_middle_leaves_the_old_one(tmp_path: Path) -> None:
    tiny_artifact(tmp_path / "tiny", graph=b"old")
    manifest = read_artifact(tmp_path / "tiny").manifest
    with pytest.raises(TypeError):
        write_artifact(tmp_path / "tiny", manifest, {"graph.bin": b"half", "weights.safetensors": "no bytes"})
    assert read_artifact(tmp_path / "tiny").graph() == b"old"
    assert leftovers(tmp_path) == []


def test_without_an_exchange_in_one_step_it_replaces_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "plan9")
    tiny_artifact(tmp_path / "tiny", graph=b"old")
    assert tiny_artifact(tmp_path / "tiny", graph=b"new").graph() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.skipif(sys.platform != "linux", reason="exchanging two folders in one step is Linux's")
def test_linux_exchanges_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"from {name}").touch()
    assert _replace._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "from b").exists()
    assert (tmp_path / "b" / "from a").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a moment in which the folder is not there")
def test_between_any_two_steps_there_is_a_whole_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny"
    tiny_artifact(path, graph=b"old")
    seen: list[bytes] = []

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            done = step(*arguments, **options)
            seen.append(read_artifact(path).graph())
            return done

        return run

    for owner, name in (
        (Path, "rename"),
        (Path, "mkdir"),
        (_replace, "_exchange"),
        (_replace, "sync"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    tiny_artifact(path, graph=b"new")
    assert seen == sorted(seen, reverse=True), "from the old to the new, never back"
    assert set(seen) == {b"old", b"new"}


def test_what_a_killed_writer_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".tiny.aa.partial", ".tiny.bb.partial", ".tiny.v2.cc.partial"))
    for folder in (old, young, other):
        folder.mkdir()
    for folder in (old, other):
        os.utime(folder, (time.time() - 7200,) * 2)
    tiny_artifact(tmp_path / "tiny")
    assert sorted(leftovers(tmp_path)) == [young.name, other.name]


WRITER = """
    import sys
    from tauten.testing.artifacts import tiny_artifact
    turn = 0
    print("ready", flush=True)
    while True:
        turn += 1
        tiny_artifact(sys.argv[1], graph=str(turn).encode() * 5000, key=str(turn))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a moment in which the folder is not there")
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03, 0.05, 0.08])
def test_a_writer_killed_at_any_moment_leaves_a_whole_artifact(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "tiny"
    tiny_artifact(path)
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
    )
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
    found = read_artifact(path)
    turn = found.manifest.key
    assert found.graph() == (turn.encode() * 5000 if turn else b"no graph")


def test_a_reader_beside_a_writer_sees_one_artifact_or_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "tiny"
    tiny_artifact(path)
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        whole = 0
        try:
            for _ in range(200):
                try:
                    found = read_artifact(path)
                except ArtifactError:
                    continue  # the folder that was open has been removed meanwhile
                whole += 1
                assert found.manifest.key == "" or found.manifest.files["graph.bin"] == 5000 * len(found.manifest.key)
        finally:
            writer.kill()
    assert whole
