"""Reading: hostile and damaged folders are refused, clearly and within bounds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauten.artifact import read
from tauten.artifact.manifest import CHECKSUMS, MANIFEST
from tauten.artifact.pack import pack
from tauten.artifact.read import hold, read_artifact
from tauten.errors import ArtifactError
from tauten.run.engines import load
from tauten.testing.artifacts import tiny_artifact


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "tiny", weights={"w": np.arange(3, dtype=np.int8)}, layers={}).path


def seal(path: Path) -> None:
    """Write checksums that agree with what is there, as one who means harm would."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file() and entry.name != CHECKSUMS)
    lines = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (path / CHECKSUMS).write_text("".join(lines))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and seal it again."""
    document = json.loads((path / MANIFEST).read_bytes())
    change(document)
    (path / MANIFEST).write_text(json.dumps(document))
    seal(path)


def replace_weights(path: Path, data: bytes) -> None:
    (path / "weights.safetensors").write_bytes(data)
    edit(path, lambda document: document["files"].update({"weights.safetensors": len(data)}))


def test_every_single_byte_is_guarded(tiny: Path) -> None:
    for name in (MANIFEST, CHECKSUMS, "graph.bin", "weights.safetensors"):
        good = (tiny / name).read_bytes()
        for place in range(len(good)):
            # 0x07 turns a line feed into a carriage return, which some call the end of a line.
            for flip in (0x01, 0x07) if name == CHECKSUMS else (0x01,):
                (tiny / name).write_bytes(good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :])
                with pytest.raises(ArtifactError):
                    read_artifact(tiny)
        (tiny / name).write_bytes(good)
    read_artifact(tiny)


@pytest.mark.parametrize("name", [MANIFEST, CHECKSUMS, "graph.bin", "weights.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "cut", "longer", "empty", "folder", "link", "dangling", "fifo"])
def test_a_file_that_is_not_as_it_was_is_refused_by_name(tiny: Path, name: str, harm: str) -> None:
    path = tiny / name
    good = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(good[:-1])
    elif harm == "longer":
        path.write_bytes(good + b"\n")
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "folder":
        path.mkdir()
    elif harm == "link":
        (tiny.parent / "outside").write_bytes(good)
        path.symlink_to(tiny.parent / "outside")
    elif harm == "dangling":
        path.symlink_to(tiny.parent / "nowhere")
    elif harm == "fifo":
        os.mkfifo(path)
    with pytest.raises(ArtifactError, match=name):
        read_artifact(tiny)


def test_a_hole_in_the_disk_is_refused(tiny: Path) -> None:
    with pytest.raises(ArtifactError, match="expected an artifact"):
        read_artifact(tiny / "nowhere")
    with pytest.raises(ArtifactError, match="expected an artifact"):
        read_artifact(tiny / MANIFEST)
    with pytest.raises(ArtifactError, match="expected an artifact"):
        read_artifact("nul\0byte")
    with pytest.raises(ArtifactError, match=CHECKSUMS):
        read_artifact(tiny.parent)


def _role(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update(graph=name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(schema_version=2), "schema_version 1, got 2: made by another version"),
        (lambda d: d.update(schema_version=True), "schema_version 1, got True"),
        (lambda d: d.update(schema_version=[9] * 999), "another version"),
        (lambda d: d.pop("schema_version"), "got None"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("target"), "target"),
        (lambda d: d.update(name="a/../b"), "name"),
        (lambda d: d.update(inputs=[]), "inputs"),
        (lambda d: d.update(inputs=d["inputs"] * 2), "inputs: expected names that differ"),
        (lambda d: d.update(weights_bytes=-1), "weights_bytes"),
        (lambda d: d["files"].update({"../../etc/passwd": 1}), "plain file name inside the artifact"),
        (lambda d: d["files"].update({"/etc/passwd": 1}), "plain file name inside the artifact"),
        (lambda d: d["files"].update({"graph.bin": 10**18}), "graph of at most"),
        (lambda d: d["files"].update({"weights.safetensors": 10**18}), "expected 1000000000000000000 bytes"),
        (lambda d: d["files"].update(ghost=0), "do not name the same files.*ghost"),
        (lambda d: d["files"].pop("graph.bin"), "do not name the same files.*graph.bin"),
        (_role("../graph.bin"), "not among its files"),
        (_role("weights.safetensors"), "graph and weights are one file"),
        (_role(MANIFEST), "not among its files"),
        (lambda d: d.update(recipe=json.loads('{"a":' * 300 + "1" + "}" * 300)), "recipe: .*nested deeper"),
    ],
)
def test_a_manifest_that_lies_is_refused(tiny: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    edit(tiny, change)
    with pytest.raises(ArtifactError, match=told) as caught:
        read_artifact(tiny)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "expected JSON"),
        (b"{", "expected JSON"),
        (b"[]", "expected a JSON object, got list"),
        (b"\xff\xfe{}", "expected JSON"),
        (b"[" * 200_000, "expected JSON"),
        (b'{"a":' * 200_000, "expected JSON"),
        (b'{"schema_version":1,"schema_version":1}', "a name stands twice"),
        (b'{"schema_version":1,"name":NaN}', "NaN is no JSON number"),
        (b'{"schema_version":1,"name":-Infinity}', "Infinity is no JSON number"),
        (b'{"schema_version":1,"name":"\\ud800"}', "expected JSON"),
        (b'{"schema_version":' + b"9" * 10_000 + b"}", "expected JSON"),
    ],
)
def test_a_manifest_that_is_no_document_is_refused(tiny: Path, text: bytes, told: str) -> None:
    (tiny / MANIFEST).write_bytes(text)
    seal(tiny)
    with pytest.raises(ArtifactError, match=told) as caught:
        read_artifact(tiny)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", [MANIFEST, CHECKSUMS])
def test_a_page_beyond_its_bound_is_not_read(tiny: Path, name: str) -> None:
    with (tiny / name).open("r+b") as file:
        file.truncate(2**40)  # a sparse file: nothing on disk, a terabyte to read
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=f"{name}: expected at most"):
        read_artifact(tiny)
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def test_a_large_file_is_checked_a_block_at_a_time(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path / "tiny", weights={"w": np.zeros(2**24, np.uint8)}, layers={})
    tracemalloc.start()
    read_artifact(made.path)
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("line", ["x", "0" * 64 + " graph.bin", "0" * 64 + "  ../graph.bin", "G" * 64 + "  graph.bin"])
def test_checksums_of_another_form_are_refused(tiny: Path, line: str) -> None:
    (tiny / CHECKSUMS).write_text((tiny / CHECKSUMS).read_text() + line + "\n")
    with pytest.raises(ArtifactError, match="expected lines of"):
        read_artifact(tiny)


@pytest.mark.parametrize("tail", ["x", "\r", "0" * 64 + "  more"])
def test_checksums_that_end_in_the_middle_of_a_line_are_refused(tiny: Path, tail: str) -> None:
    (tiny / CHECKSUMS).write_bytes((tiny / CHECKSUMS).read_bytes() + tail.encode())
    with pytest.raises(ArtifactError, match="middle of a line"):
        read_artifact(tiny)


def test_a_file_named_twice_is_refused(tiny: Path) -> None:
    text = (tiny / CHECKSUMS).read_text()
    (tiny / CHECKSUMS).write_text(text + text.splitlines(keepends=True)[0])
    with pytest.raises(ArtifactError, match="expected lines of"):
        read_artifact(tiny)


def test_unknown_codec_and_engine_are_told(tiny: Path) -> None:
    edit(tiny, lambda document: document.update(codec="rot13"))
    with pytest.raises(ArtifactError, match="no codec named 'rot13': there are"):
        read_artifact(tiny).weights()
    edit(tiny, lambda document: document.update(codec="plain", engine="perpetual"))
    with pytest.raises(ArtifactError, match="no engine named 'perpetual': there are"):
        load(tiny)


def header(document: object, body: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + body


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**20) + b"{}",
        header({"w": {**TENSOR, "shape": [2**62, 2**62]}}, b"1234"),
        header({"w": {**TENSOR, "data_offsets": [0, 2**60]}}, b"1234"),
        header({"w": {**TENSOR, "data_offsets": [4, 0]}}, b"1234"),
        header({"w": {**TENSOR, "shape": [-1]}}, b"1234"),
        header({"w": TENSOR}, b"12345678"),
        header({"w": TENSOR, "v": TENSOR}, b"1234"),
        header(b'{"w":' + json.dumps(TENSOR).encode() + b',"w":' + json.dumps(TENSOR).encode() + b"}", b"12345678"),
        header({"w": {**TENSOR, "dtype": "BF16", "shape": [2]}}, b"1234"),
        header({"w": {**TENSOR, "dtype": "F8_E4M3", "shape": [4]}}, b"1234"),
        header({"w": {**TENSOR, "dtype": "object"}}, b"1234"),
        header(b"[" * 100_000),
        header(b"\xff"),
        b"\x80\x04\x95pickle",
        b"",
    ],
)
def test_hostile_weights_are_refused_within_bounds(tiny: Path, data: bytes) -> None:
    replace_weights(tiny, data)
    artifact = read_artifact(tiny)
    tracemalloc.start()
    with pytest.raises(ArtifactError, match="weights"):
        artifact.weights()
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


def test_weights_of_another_size_than_said_are_refused(tiny: Path) -> None:
    edit(tiny, lambda document: document.update(weights_bytes=10**15))
    with pytest.raises(ArtifactError, match="expected 1000000000000000 bytes of decoded weights, got 3"):
        read_artifact(tiny).weights()


def test_what_changes_after_reading_is_noticed(tiny: Path) -> None:
    artifact = read_artifact(tiny)
    (tiny / "graph.bin").write_bytes(b"NO GRAPH")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        artifact.graph()
    (tiny / "weights.safetensors").unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        artifact.weights()


def test_all_files_are_of_one_folder_even_when_another_takes_its_place(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = read._parse
    other = tiny_artifact(tiny.with_name("other"), graph=b"another").path

    def swap_then_parse(path: Path, raw: bytes) -> dict[str, Any]:
        tiny.rename(tiny.with_name("moved"))
        other.rename(tiny)
        return parse(path, raw)

    monkeypatch.setattr(read, "_parse", swap_then_parse)
    found = read_artifact(tiny)
    assert found.manifest.files["graph.bin"] == len(b"no graph")
    with pytest.raises(ArtifactError):
        found.graph()


@pytest.mark.parametrize("kind", ["folder", "packed"])
def test_files_that_are_held_open_are_those_that_were_there(tiny: Path, tmp_path: Path, kind: str) -> None:
    path = tiny if kind == "folder" else pack(read_artifact(tiny), tmp_path / "tiny.tauten")
    artifact = read_artifact(path)
    weights = {name: array.copy() for name, array in artifact.weights().items()}
    held = hold(artifact)
    try:
        if kind == "folder":
            shutil.rmtree(path)
        else:
            path.unlink()
        again = read_artifact(path, held)
        assert (again.checksums, again.manifest) == (artifact.checksums, artifact.manifest)
        assert again.graph()
        for name, array in again.weights().items():
            np.testing.assert_array_equal(array, weights[name])
        if kind == "folder":
            del held["manifest.json"]
            with pytest.raises(ArtifactError, match="cannot be read"):
                read_artifact(path, held)
    finally:
        for descriptor in held.values():
            os.close(descriptor)
    with pytest.raises(ArtifactError, match="cannot be read"):
        hold(artifact)
