"""What a limit of bytes asks of recipes and candidates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tauten.artifact.read import Artifact
from tauten.artifact.write import write_measures
from tauten.core.measure import Measure
from tauten.errors import ConfigError
from tauten.make.search.aim import aim, aimed, aimed_at, weights_left
from tauten.make.search.levels import LEVELS, check_codec, find_level
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.make.search.sizing import ToSize, rest_bytes
from tauten.make.search.slim import KEPT, MEASURE_BYTES, slim_measures
from tauten.testing.artifacts import tiny_artifact

SHARED = Recipe("sized-shared", (pass_from_json({"pass": "compress.share", "bytes": 4000}),), codec="arithmetic")
INT8 = Recipe("int8", (pass_from_json({"pass": "quantize.post_training"}),))


def shop(artifact: Artifact) -> Any:
    return SimpleNamespace(engine_baseline=artifact)


def sized(folder: Path, size: int, lost: float = 1.0) -> Artifact:
    """An artifact of about ``size`` bytes that loses ``lost`` points, with all measures that it will have."""
    measures = {
        name: Measure.exact(lost if name == "drop_points" else 1.0, "points", "lower")
        for name in (*KEPT, "latency_mean_ms", "latency_p99_ms", "startup_ms")
        if name != "size_bytes"
    } | {f"throughput_per_s.{batch}": Measure.exact(1, "1/s", "higher") for batch in (1, 8, 16)}
    bare = write_measures(tiny_artifact(folder), measures)
    filled = tiny_artifact(folder, graph=b"x" * max(1, 8 + size - bare.size_bytes))
    return write_measures(filled, measures)


def test_recipes_are_aimed_by_the_parameter_that_says_how_many_bytes() -> None:
    assert aimed(SHARED)
    assert aimed_at(SHARED) == 4000
    assert aimed_at(aim(SHARED, 77)) == 77
    assert not aimed(INT8)
    assert aim(INT8, 77) == INT8
    assert weights_left(100_000) == 94_000
    assert weights_left(1000) == 500


def test_a_level_with_a_limit_begins_with_recipes_that_aim_at_it() -> None:
    for level in LEVELS:
        plain, limited = find_level(level), find_level(level, weights_bytes=5000)
        assert limited[-len(plain) :] == plain
        new = limited[: -len(plain)]
        assert {aimed_at(recipe) for recipe in new} == {0, 5000}
        assert all(recipe.codec == "arithmetic" for recipe in new if aimed(recipe))
        assert any(recipe.trains for recipe in new) == (level != "low")
    assert find_level("low", codec="plain", weights_bytes=5000) == find_level("low")
    assert {recipe.codec for recipe in find_level("low", codec="zstd", weights_bytes=5000)} == {"zstd"}
    assert [recipe.codec for recipe in find_level([INT8, SHARED], codec="zstd")] == ["zstd", "arithmetic"]


def test_a_codec_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"codec: expected one of auto, arithmetic, .*, got 'zip'"):
        check_codec("zip")


def test_a_recipe_is_aimed_anew_by_what_the_file_missed_the_limit_by(tmp_path: Path) -> None:
    artifact = sized(tmp_path / "large", 11_000)
    assert abs(artifact.size_bytes - 11_000) < 20
    size = ToSize(shop(artifact), 10_000)
    second = size.again(SHARED, artifact, {})
    assert second is not None
    assert second.name == "sized-shared-2"
    assert aimed_at(second) == pytest.approx(0.99 * 3000, abs=20)
    third = size.again(second, sized(tmp_path / "still", 10_100), {})
    assert third is not None
    assert third.name == "sized-shared-3"
    assert aimed_at(third) < aimed_at(second)
    assert size.again(third, sized(tmp_path / "never", 10_050), {}) is None, "there is an end to it"


def test_what_the_limit_leaves_is_used_where_quality_was_lost(tmp_path: Path) -> None:
    small = sized(tmp_path / "small", 8000)
    larger = ToSize(shop(small), 10_000).again(SHARED, small, {"sized-shared": small})
    assert larger is not None
    assert aimed_at(larger) == pytest.approx(0.99 * 6000, abs=20)
    better = {"sized-shared": small, "sized-rounded": sized(tmp_path / "better", 9000, lost=0.5)}
    assert ToSize(shop(small), 10_000).again(SHARED, small, better) is None, "another is better at that size"
    assert ToSize(shop(small), 10_000).again(SHARED, sized(tmp_path / "perfect", 8000, lost=0.0), {}) is None
    assert ToSize(shop(small), 10_000).again(SHARED, sized(tmp_path / "full", 9900), {}) is None
    assert ToSize(shop(small), 10_000).again(INT8, small, {}) is None
    assert ToSize(shop(small), None).again(SHARED, small, {}) is None
    assert ToSize(shop(small), 10_000, free=False).again(SHARED, small, {}) is None, "the user said how many bytes"


def test_a_levels_recipes_get_what_is_left_beside_the_graph_and_the_manifest(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = {"linear.weight": generator.normal(size=(300, 40)).astype(np.float32)}
    artifact = tiny_artifact(tmp_path / "a", weights=weights, graph=b"g" * 2000)
    rest = rest_bytes(artifact, SHARED)
    assert rest == pytest.approx(2000 + 3000, abs=800), "the graph, and about three thousand bytes of manifest"
    size = ToSize(shop(artifact), 10_000)
    assert [aimed_at(recipe) for recipe in size.aim([SHARED, INT8])] == [10_000 - rest, 0]
    assert ToSize(shop(artifact), 10_000, free=False).aim([SHARED]) == (SHARED,)
    assert ToSize(shop(artifact), 1000).aim([SHARED, INT8]) == (INT8,), "nothing is left for weights"
    assert "alone take about" in ToSize(shop(artifact), 1000).explain()
    assert ToSize(shop(artifact), 50_000).explain() == ""
    assert ToSize(shop(artifact), 60_000).aim([SHARED, INT8]) == (INT8,), "the untouched model fits"


def test_what_cannot_hold_the_limit_is_not_tried_once_something_smaller_is_there(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weights = {"linear.weight": generator.normal(size=(300, 400)).astype(np.float32)}
    size = ToSize(shop(tiny_artifact(tmp_path / "a", weights=weights)), 10_000)
    small = {"small": sized(tmp_path / "small", 9000)}
    assert "10,000 are allowed" in size.hopeless(INT8, small)
    assert size.hopeless(INT8, {}) == "", "something has to come"
    cut = Recipe("cut", (pass_from_json({"pass": "prune.structured", "ratio": 0.9}), *INT8.passes))
    assert size.hopeless(cut, small) == ""
    assert size.hopeless(SHARED, small) == "", "what it comes to cannot be told before"
    # A network that is sparse before anything is done may be small when coded.
    sparse = {"linear.weight": weights["linear.weight"] * (generator.random((300, 400)) < 0.02)}
    assert ToSize(shop(tiny_artifact(tmp_path / "b", weights=sparse)), 10_000).hopeless(INT8, small) == ""


def test_the_measures_that_stay_are_short(tmp_path: Path) -> None:
    long = Measure(
        value=1234.5678912345, low=1234.5678812345, high=1234.5679912345, unit="points", better="lower",
        repeats=10**6, on="16 threads, batch 1, 20 rounds",
    )  # fmt: skip
    kept = slim_measures(dict.fromkeys((*KEPT, "startup_ms"), long))
    assert set(kept) == set(KEPT)
    artifact = tiny_artifact(tmp_path / "a")
    before = write_measures(artifact, {})
    after = write_measures(before, kept)
    assert after.size_bytes - before.size_bytes <= MEASURE_BYTES * len(KEPT)
    size = Measure.exact(123456789, "bytes", "lower")
    assert slim_measures({"size_bytes": size}) == {"size_bytes": size}
