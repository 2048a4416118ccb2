"""Files that were written when the format was fixed are read for ever, and written anew alike."""

from __future__ import annotations

import pytest

from tauten.codecs import CODECS
from tauten.testing.codecs import same
from tests.unit.codecs.vectors.make import CODED, FOLDER, weights

FILES = sorted(path.name for path in FOLDER.glob("*.bin"))


def test_there_is_one_for_each() -> None:
    assert sorted(f"{name}.{codec}.bin" for name in weights() for codec in CODED) == FILES


@pytest.mark.parametrize("file", FILES)
def test_it_is_read(file: str) -> None:
    name, codec, _ = file.split(".")
    arrays = CODECS.get("plain").decode((FOLDER / f"{name}.safetensors").read_bytes())
    assert same(arrays, weights()[name])
    assert same(CODECS.get(codec).decode((FOLDER / file).read_bytes()), arrays)


@pytest.mark.parametrize("name", ["layers", "dense"])
def test_the_arithmetic_coder_writes_the_same_bits(name: str) -> None:
    # The others stand on a library whose next version may find shorter ones.
    assert CODECS.get("arithmetic").encode(weights()[name]) == (FOLDER / f"{name}.arithmetic.bin").read_bytes()
