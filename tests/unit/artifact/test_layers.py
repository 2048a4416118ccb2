"""Layers: honest bytes, bits and zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tauten.artifact.layers import Layer, layers, masks
from tauten.errors import ConfigError
from tauten.testing.artifacts import tiny_artifact


def of(path: Path, weights: dict[str, np.ndarray], **names: str) -> dict[str, Layer]:
    made = tiny_artifact(path / "tiny", weights=weights, layers=names)
    found = layers(made)
    assert sum(layer.bytes for layer in found) == made.manifest.weights_bytes
    return {layer.weight: layer for layer in found}


def test_a_plain_weight_is_a_row(tmp_path: Path) -> None:
    weight = np.array([[0, 1, 2, 0]], np.float32)
    found = of(tmp_path, {"features.0.weight": weight})
    assert found["features.0.weight"].to_json() == {
        "name": "features.0", "weight": "features.0.weight", "shape": [1, 4], "dtype": "float32", "bits": 32,
        "bytes": 16, "elements": 4, "zeros": 0.5, "coded_bytes": None, "bits_per_weight": None, "entropy": None,
    }  # fmt: skip


def test_scales_and_zero_points_weigh_with_their_weight(tmp_path: Path) -> None:
    weights = {
        "c.weight_quantized": np.array([[0, 1], [0, 0]], np.int8),
        "c.weight_scale": np.ones(2, np.float32),
        "c.weight_zero_point": np.zeros(2, np.int8),
        "lonely_scale": np.ones(3, np.float32),
    }
    found = of(tmp_path, weights)
    assert set(found) == {"c.weight", "lonely_scale"}
    assert (found["c.weight"].bytes, found["c.weight"].elements, found["c.weight"].bits) == (4 + 8 + 2, 4, 8)
    assert found["c.weight"].zeros == 0.75


@pytest.mark.parametrize(
    ("zero_point", "zeros"),
    [
        (np.array(128, np.uint8), 1 / 6),
        (np.array([128], np.uint8), 1 / 6),
        (np.array([128, 7], np.uint8), 3 / 6),
        (np.array([7, 7, 128], np.uint8), 2 / 6),
    ],
)
def test_zeros_are_counted_at_the_zero_point(tmp_path: Path, zero_point: np.ndarray, zeros: float) -> None:
    weights = {"w_quantized": np.array([[128, 0, 1], [7, 7, 9]], np.uint8), "w_zero_point": zero_point}
    assert of(tmp_path, weights)["w"].zeros == pytest.approx(zeros)


def test_the_manifest_names_the_modules(tmp_path: Path) -> None:
    weights = {
        "onnx::MatMul_7": np.ones(2, np.float32),
        "v_quantized": np.ones(2, np.int8),
        "bare": np.ones(1, np.int8),
    }
    made = tiny_artifact(tmp_path / "t", weights=weights, layers={"onnx::MatMul_7": "head", "v_quantized": "body.3"})
    assert {layer.weight: layer.name for layer in layers(made)} == {
        "onnx::MatMul_7": "head",
        "v": "body.3",
        "bare": "bare",
    }


def test_rows_are_in_the_order_that_people_count(tmp_path: Path) -> None:
    weights = {f"f.{index}.weight": np.ones(1, np.float32) for index in (10, 2, 0, 1)}
    assert list(of(tmp_path, weights)) == ["f.0.weight", "f.1.weight", "f.2.weight", "f.10.weight"]


def test_nothing_at_all_has_no_zeros(tmp_path: Path) -> None:
    found = of(tmp_path, {"none": np.zeros((0, 3), np.float32), "one": np.zeros((), np.float32)})
    assert (found["none"].zeros, found["none"].bytes, found["one"].shape) == (0.0, 0, ())
    assert of(tmp_path, {}) == {}


def test_a_layer_is_a_value() -> None:
    with pytest.raises(ConfigError, match="zeros"):
        Layer(name="a", weight="a", shape=(1,), dtype="int8", bits=8, bytes=1, elements=1, zeros=2)


def test_a_mask_shows_where_a_weight_is_not_zero(tmp_path: Path) -> None:
    weights = {
        "b.weight": np.array([[[0, 0], [1, 1]], [[0, 0], [0, 0]]], np.float32),
        "a.weight_quantized": np.array([[7, 0], [0, 7]], np.uint8),
        "a.weight_scale": np.ones(1, np.float32),
        "a.weight_zero_point": np.array([7], np.uint8),
        "full.weight": np.ones((2, 2), np.float32),
        "a.bias": np.zeros(2, np.float32),
    }
    first, second = masks(tiny_artifact(tmp_path / "tiny", weights=weights))
    assert (first.layer, first.weight, first.shape, first.zeros) == ("a", "a.weight", (2, 2), 0.5)
    assert first.rows == ("0f", "f0")
    assert second.rows == ("00ff", "0000")
    assert second.zeros == 0.75


def test_a_large_mask_is_drawn_in_cells(tmp_path: Path) -> None:
    weight = np.ones((10, 7, 1, 2), np.float32)
    weight[:5] = 0
    weight[5:, :, 0, 1] = 0
    (mask,) = masks(tiny_artifact(tmp_path / "tiny", weights={"w": weight}), cells=4)
    assert len(mask.rows) == 4
    assert mask.rows[0] == "0000"
    # Blocks of 2, 3, 2 and 3 rows, of 3, 4, 3 and 4 columns: cells hold means.
    assert mask.rows[3][1] == mask.rows[3][3] == "8"
    assert mask.shape == (10, 7, 1, 2)
