"""Another codec for a written artifact: the same weights, the same answers, the same measures but those of its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tauten.artifact.layers import layers
from tauten.artifact.recode import recode
from tauten.artifact.write import write_artifact, write_measures
from tauten.codecs import CODECS
from tauten.codecs._wire import varint
from tauten.core.measure import Measure
from tauten.core.tensor import Array
from tauten.errors import ArtifactError, PluginError
from tauten.testing.artifacts import tiny_artifact
from tauten.testing.codecs import same

DRAW = np.random.default_rng(0)
FOUR = DRAW.integers(-8, 8, (16, 33)).astype(np.int8)
WEIGHTS: dict[str, Array] = {
    "linear.weight": (DRAW.integers(-3, 4, (30, 40)) * 0.25).astype(np.float32),
    "linear.bias": DRAW.normal(0, 1, 30).astype(np.float32),
    "head.weight_quantized": FOUR,
}


def measure(value: float) -> Measure:
    return Measure(value=value, low=value, high=value, unit="ms", better="lower")


@pytest.mark.parametrize("codec", CODECS.names())
def test_weights_stay_and_so_do_measures_but_the_size(codec: str, tmp_path: Path) -> None:
    plain = write_measures(
        tiny_artifact(tmp_path / "plain", weights=WEIGHTS),
        {"latency_p50_ms": measure(1.5), "startup_ms": measure(99.0), "peak_memory_mib": measure(40.0)},
    )
    made = recode(plain, codec, tmp_path / "made")
    assert same(made.weights(), WEIGHTS)
    assert made.manifest.codec == codec
    assert made.graph() == plain.graph()
    assert made.manifest.measures["latency_p50_ms"] == measure(1.5)
    assert not {"startup_ms", "peak_memory_mib"} & set(made.manifest.measures)
    assert made.manifest.measures["size_bytes"].value == made.size_bytes
    assert made.manifest.name == plain.manifest.name


def test_back_to_plain_halves_four_bit_numbers_again(tmp_path: Path) -> None:
    coded = recode(tiny_artifact(tmp_path / "plain", weights=WEIGHTS), "arithmetic", tmp_path / "coded")
    assert coded.manifest.four_bit == {}
    back = recode(coded, "plain", tmp_path / "back")
    assert back.manifest.four_bit == {"head.weight_quantized": (16, 33)}
    assert same(back.weights(), WEIGHTS)
    assert recode(back, "zstd", tmp_path / "again").manifest.weights_bytes == sum(a.nbytes for a in WEIGHTS.values())


def test_one_that_counts_its_weights_alone_goes_on_so(tmp_path: Path) -> None:
    plain = write_measures(tiny_artifact(tmp_path / "plain", weights=WEIGHTS), {}, "weights")
    made = recode(plain, "zstd", tmp_path / "made")
    assert made.manifest.measures["size_bytes"].value == made.manifest.files["weights.coded"]


def test_an_unknown_codec_is_refused_and_nothing_written(tmp_path: Path) -> None:
    plain = tiny_artifact(tmp_path / "plain", weights=WEIGHTS)
    with pytest.raises(PluginError, match="no codec named 'rar'"):
        recode(plain, "rar", tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("codec", CODECS.names())
def test_layers_tell_what_they_take(codec: str, tmp_path: Path) -> None:
    made = tiny_artifact(tmp_path / "tiny", weights=WEIGHTS, codec=codec)
    rows = {row.weight: row for row in layers(made, coded=True)}
    assert 0 < sum(row.coded_bytes or 0 for row in rows.values()) <= made.manifest.files[made.manifest.weights]
    linear = rows["linear.weight"]
    assert linear.entropy == pytest.approx(np.log2(7), abs=0.05)
    assert linear.bits_per_weight == pytest.approx(8 * (linear.coded_bytes or 0) / 1200)
    assert [row.entropy for row in layers(made)] == [None] * 3


def test_a_manifest_cannot_claim_memory(tmp_path: Path) -> None:
    # One value everywhere: a few bytes that stand for a gigabyte.
    data = bytearray(CODECS.get("zstd").encode({"x": np.zeros(2**20, np.float32)}))
    huge = data.replace(varint(2**22), varint(2**30), 1).replace(varint(2**20), varint(2**28), 1)
    made = tiny_artifact(tmp_path / "tiny", weights={}, codec="zstd")
    files = {"graph.bin": b"", "weights.coded": bytes(huge)}
    hostile = write_artifact(made.path, made.manifest.model_copy(update={"weights_bytes": 2**30}), files)
    with pytest.raises(ArtifactError, match="at most"):
        hostile.weights()
