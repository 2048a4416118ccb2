"""An artifact of every codec against the artifacts' contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tauten.artifact.read import Artifact
from tauten.artifact.write import write_measures
from tauten.codecs import CODECS
from tauten.testing import artifacts

WEIGHTS = {
    "conv.weight_quantized": np.arange(-12, 12, dtype=np.int8).reshape(4, 2, 3),
    "conv.weight_scale": np.ones(4, np.float32),
    "conv.weight_zero_point": np.zeros(4, np.int8),
    "conv.bias": np.zeros(4, np.float32),
    "scalar": np.float32(2).reshape(()),
    "none": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("check", artifacts.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("codec", CODECS.names())
def test_artifact_holds_the_contract(codec: str, check: Callable[[Artifact, Path], None], tmp_path: Path) -> None:
    check(artifacts.tiny_artifact(tmp_path / "tiny", weights=WEIGHTS, codec=codec), tmp_path)


def test_one_that_counts_its_weights_alone_holds_it_too(tmp_path: Path) -> None:
    made = write_measures(artifacts.tiny_artifact(tmp_path / "tiny", weights=WEIGHTS), {}, "weights")
    artifacts.weighs_what_it_says(made, tmp_path)


def test_contract_catches_a_size_that_is_not_counted(tmp_path: Path) -> None:
    made = artifacts.tiny_artifact(tmp_path / "tiny")
    (made.path / "extra").write_bytes(b"12345")
    with pytest.raises(AssertionError, match="bytes, and has"):
        artifacts.weighs_what_it_says(made, tmp_path)


def test_contract_catches_a_pickle(tmp_path: Path) -> None:
    made = artifacts.tiny_artifact(tmp_path / "tiny", graph=b"\x80\x04pickled")
    with pytest.raises(AssertionError, match="looks like a pickle"):
        artifacts.holds_no_pickle(made, tmp_path)
