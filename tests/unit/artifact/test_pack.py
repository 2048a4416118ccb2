"""An artifact as a single file: the same bytes each time, the same artifact again, and nothing from a hostile one."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from tauten.artifact._packed import MAGIC, read_packed, write_packed
from tauten.artifact.pack import pack, unpack
from tauten.artifact.read import Artifact, read_artifact
from tauten.codecs._wire import varint
from tauten.errors import ArtifactError, ConfigError
from tauten.run.engines import load
from tauten.testing.artifacts import tiny_artifact
from tauten.testing.codecs import same

WEIGHTS = {"linear.weight": (np.arange(-60, 60).reshape(10, 12) * 0.5).astype(np.float32)}


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "tiny", weights=WEIGHTS, graph=b"a graph that says much twice " * 40)


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_it_comes_back_byte_for_byte(artifact: Artifact, tmp_path: Path) -> None:
    first = pack(artifact, tmp_path / "a.tauten").read_bytes()
    assert first == pack(artifact, tmp_path / "b.tauten").read_bytes()
    assert len(first) < artifact.size_bytes
    back = unpack(tmp_path / "a.tauten", tmp_path / "back")
    assert contents(back.path) == contents(artifact.path)
    assert pack(back, tmp_path / "c.tauten").read_bytes() == first


def test_it_is_read_where_it_lies(artifact: Artifact, tmp_path: Path) -> None:
    found = read_artifact(pack(artifact, tmp_path / "a.tauten"))
    assert found.manifest == artifact.manifest
    assert found.checksums == artifact.checksums
    assert found.size_bytes == (tmp_path / "a.tauten").stat().st_size
    assert same(found.weights(), WEIGHTS)
    assert found.graph() == artifact.graph()
    assert load(tmp_path / "a.tauten")({"image": np.zeros((2, 4), np.float32)})["scores"].shape == (2, 3)
    assert pack(found, tmp_path / "again.tauten").read_bytes() == (tmp_path / "a.tauten").read_bytes()


def test_weights_can_be_coded_anew(artifact: Artifact, tmp_path: Path) -> None:
    found = read_artifact(pack(artifact, tmp_path / "a.tauten", "arithmetic"))
    assert found.manifest.codec == "arithmetic"
    assert same(found.weights(), WEIGHTS)
    assert not [entry for entry in tmp_path.iterdir() if entry.name not in ("tiny", "a.tauten")]


def test_every_cut_and_every_flip_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    path = pack(artifact, tmp_path / "a.tauten")
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :], good + b"\0"):
            path.write_bytes(bad)
            with pytest.raises(ArtifactError):
                read_artifact(path).weights()
    with pytest.raises(ArtifactError):
        unpack(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def entry(name: bytes, size: int, stored: int, packed: int = 1) -> bytes:
    return varint(len(name)) + name + bytes([packed]) + varint(size) + varint(stored) + bytes(32)


def read_all(data: bytes) -> dict[str, bytes]:
    return {name: one.read() for name, one in read_packed(data).items()}


HOSTILE = {
    "nothing": (b"", "begins with"),
    "another version": (MAGIC + b"\2\0", "expected version 1, got 2"),
    "files without end": (MAGIC + b"\1" + varint(2**60), "at most 512 files"),
    "no manifest": (MAGIC + b"\1\0", "manifest.json among them"),
    "a name that leaves the folder": (MAGIC + b"\1\1" + entry(b"../x", 0, 0), "the plain name of a file"),
    "an absolute name": (MAGIC + b"\1\1" + entry(b"/etc/x", 0, 0), "the plain name of a file"),
    "a file of its own checksums": (MAGIC + b"\1\1" + entry(b"SHA256SUMS", 0, 0), "the plain name of a file"),
    "a name without end": (MAGIC + b"\1\1" + varint(2**40) + b"x", "more bytes"),
    "more than memory": (MAGIC + b"\1\1" + entry(b"manifest.json", 2**50, 0), "files of fewer bytes"),
    "a way that there is not": (MAGIC + b"\1\1" + entry(b"manifest.json", 1, 1, 2) + b"x", "whether it is packed"),
    "two sizes of one file": (MAGIC + b"\1\1" + entry(b"manifest.json", 2, 1, 0) + b"x", "whether it is packed"),
    "twice the same": (MAGIC + b"\1\2" + 2 * entry(b"manifest.json", 0, 0, 0), "names in order"),
    "out of order": (MAGIC + b"\1\2" + entry(b"manifest.json", 0, 0, 0) + entry(b"a", 0, 0, 0), "names in order"),
    "bytes after the last": (MAGIC + b"\1\1" + entry(b"manifest.json", 0, 0, 0) + b"x", "after its end"),
    "a bomb": (MAGIC + b"\1\1" + entry(b"manifest.json", 2**23, 4) + b"\0\0\0\0", "cannot hold"),
    "other bytes than were packed": (MAGIC + b"\1\1" + entry(b"manifest.json", 1, 1, 0) + b"x", "sha256 differs"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_crafted_files_are_refused(name: str, tmp_path: Path) -> None:
    data, why = HOSTILE[name]
    path = tmp_path / "hostile.tauten"
    path.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    with pytest.raises(ArtifactError, match=why):
        read_all(path.read_bytes())
    with pytest.raises(ArtifactError, match=r"hostile\.tauten"):
        read_artifact(path)


def test_the_checksum_over_all_comes_before_any_use() -> None:
    with pytest.raises(ArtifactError, match="CRC-32 differs"):
        read_packed(MAGIC + b"\1\1" + entry(b"manifest.json", 1, 1, 0) + b"x" + bytes(4))


def test_files_keep_their_bytes() -> None:
    files = {"manifest.json": b"{}", "weights.bin": os.urandom(1000), "graph.bin": bytes(100_000)}
    packed = write_packed(files)
    assert {name: entry.read() for name, entry in read_packed(packed).items()} == files
    with pytest.raises(ArtifactError, match="fewer bytes"):
        read_packed(packed, 100_000)


def test_what_is_no_packed_artifact_is_told(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.tauten"):
        pack(artifact, tmp_path / "a.zip")
    with pytest.raises(ArtifactError, match="No such file"):
        read_artifact(tmp_path / "none.tauten")
    with pytest.raises(ArtifactError, match=r"ends in \.tauten"):
        unpack(artifact.path, tmp_path / "back")
    os.mkfifo(tmp_path / "pipe.tauten")
    with pytest.raises(ArtifactError, match="regular file"):
        read_artifact(tmp_path / "pipe.tauten")
    (tmp_path / "folder.tauten").mkdir()
    with pytest.raises(ArtifactError, match="left alone"):
        pack(artifact, tmp_path / "folder.tauten")


def test_a_folder_may_have_such_a_name(tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path / "model.tauten", weights=WEIGHTS)
    assert read_artifact(made.path).manifest == made.manifest


def test_an_unpacked_artifact_takes_anothers_place_whole(artifact: Artifact, tmp_path: Path) -> None:
    path = pack(artifact, tmp_path / "a.tauten")
    tiny_artifact(tmp_path / "old", weights={})
    assert same(unpack(path, tmp_path / "old").weights(), WEIGHTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="left alone"):
        unpack(path, tmp_path / "mine")
