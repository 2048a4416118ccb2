"""Pictures as files: there, of a readable size, and with something on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from tauten.report import draw_comparison, draw_result, render
from tauten.report.pictures import COLOURS, DPI
from tests.unit.report import compared, sample
from tests.unit.report.test_page import Reader

CURVES = {f"compare-quality-{name}.png" for name in ("ratio", "size", "latency", "latency-p95")}


def pixels(path: Path) -> Any:
    """Of a picture, ``(height, width, 3)`` from 0 to 255."""
    return np.round(imread(path)[..., :3] * 255).astype(int)


def share_of(image: Any, colour: str) -> float:
    wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
    return float((np.abs(image - wanted).max(axis=2) <= 2).mean())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw_comparison(compared.comparison(), folder)
    return folder


def test_a_comparison_has_a_picture_of_each_curve_and_pattern(drawn: Path) -> None:
    paths = sorted(drawn.iterdir())
    assert {path.name for path in paths} == CURVES | {
        "compare-masks-magnitude.png", "compare-kept-structured.png", "compare-sensitivity-structured.png",
    }  # fmt: skip
    for path in paths:
        image = pixels(path)
        assert image.shape[0] >= 1.8 * DPI, path.name
        assert image.shape[1] >= 4 * DPI, path.name
        assert len(np.unique(image @ [1, 256, 65536])) > 20, path.name
        assert 0.2 < (image == 255).all(axis=2).mean() < 0.995, path.name
    ratio = pixels(drawn / "compare-quality-ratio.png")
    assert all(share_of(ratio, colour) > 1e-4 for colour in COLOURS[:3])
    assert share_of(ratio, COLOURS[4]) == 0


def test_a_mask_with_more_zeros_is_lighter(drawn: Path) -> None:
    image = pixels(drawn / "compare-masks-magnitude.png")
    middle = image[image.shape[0] // 3 : image.shape[0] // 2].mean(axis=(0, 2))
    left, right = middle[: len(middle) // 3].mean(), middle[-len(middle) // 3 :].mean()
    assert left < right


@pytest.mark.parametrize(
    "make", [compared.lower_is_better, compared.refused, pytest.param(compared.crowded, marks=pytest.mark.slow)]
)
def test_what_is_out_of_the_ordinary_is_drawn_too(make: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    assert {path.name for path in draw_comparison(make(), tmp_path)} >= CURVES


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    document = compared.refused()
    document["task"] = "$\\frac{$ 数"
    assert draw_comparison(document, tmp_path)


def test_earlier_pictures_of_the_same_kind_go(tmp_path: Path) -> None:
    for name in ("compare-old.png", "mine.png", "best-old.png"):
        (tmp_path / name).write_bytes(b"")
    draw_comparison(compared.refused(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == CURVES | {"mine.png", "best-old.png"}


def patterned() -> dict[str, Any]:
    """A run whose best candidate lost channels and has zeros."""
    result = sample.sample()
    notes = {"groups": compared.kept(0.5), "sensitivity": compared.SENSITIVITY}
    result["best"]["history"][0]["notes"] |= notes
    result["masks"] = [compared.mask("conv1", [32, 1, 3, 3], 0.5)]
    return result


def test_the_best_of_a_run_shows_what_it_leaves_out(tmp_path: Path) -> None:
    assert {path.name for path in draw_result(patterned(), tmp_path)} == {
        "best-kept.png", "best-masks.png", "best-sensitivity.png",
    }  # fmt: skip
    read = Reader(render(patterned()))
    assert read.faults == []
    assert read.count("canvas") == len(compared.GROUPS) + 1
    assert "16 of 32 channels kept" in read.text
    assert "conv1.weight: 16 of 32; conv2.weight: 32 of 64" in read.text


def test_a_run_without_patterns_has_no_pictures(tmp_path: Path) -> None:
    assert draw_result(sample.sample(), tmp_path / "pictures") == ()
    assert draw_result(sample.empty(), tmp_path / "pictures") == ()
    assert not (tmp_path / "pictures").exists()
    assert Reader(render(sample.sample())).count("canvas") == 0
