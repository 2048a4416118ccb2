"""Which engine is chosen, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from tauten.core.measure import Measure
from tauten.core.target import Target
from tauten.make.search.evaluator import Sampling
from tauten.make.search.installed import missing
from tauten.make.search.observe import Silent
from tauten.make.search.race import best_float, decide, race, spell
from tauten.make.search.recipe import Recipe, Way
from tauten.make.search.result import EngineTried
from tauten.make.search.tried import Raced
from tauten.run.measure.session import Timing
from tests.unit.search.entries import measure

ROWS = [
    EngineTried(engine="one", precision="float32"),
    EngineTried(engine="two", precision="float32", options={"placement": "products"}),
    EngineTried(engine="three", precision="float32", reason="cannot be made"),
]


def timing(*rounds: float) -> Timing:
    middle = sorted(rounds)[len(rounds) // 2]
    return Timing({"latency_p50_ms": measure(middle, "ms", "lower", (max(rounds) - min(rounds)) / 2)}, rounds)


def drop(value: float, noise: float = 0.1) -> Measure:
    return measure(value, "points", "lower", noise)


def test_the_fastest_outside_the_noise_is_chosen_and_the_others_are_told_why_not() -> None:
    found = decide(
        ROWS, {0: timing(2.0, 2.1, 2.2), 1: timing(1.0, 1.1, 1.0)}, {0: measure(0, "points", "lower"), 1: drop(0.0)}
    )
    assert [row.chosen for row in found] == [False, True, False]
    assert found[1].reason == "the fastest"
    assert "times the time of two placement=products" in found[0].reason
    assert found[2] == ROWS[2]
    assert found[0].latency
    assert found[0].latency.value == 2.1
    assert spell(found[1]) == "two placement=products"
    assert best_float(found, "two") == Way("two", {"placement": "products"})
    assert best_float(found, "three") == Way("three")


def test_a_difference_inside_the_noise_leaves_the_one_that_the_target_names_first() -> None:
    found = decide(ROWS, {0: timing(1.0, 2.0, 3.0), 1: timing(1.1, 1.8, 2.9)}, {0: drop(0), 1: drop(0)})
    assert [row.chosen for row in found] == [True, False, False]
    assert found[1].reason == "no faster than one outside the noise"


def test_speed_does_not_buy_quality() -> None:
    found = decide(ROWS, {0: timing(2.0, 2.0), 1: timing(1.0, 1.0)}, {0: drop(0), 1: drop(3)})
    assert [row.chosen for row in found] == [True, False, False]
    assert found[1].reason == "loses more quality than another, outside the noise"


def test_a_small_difference_is_told_in_percent() -> None:
    found = decide(ROWS[:2], {0: timing(1.0, 1.0), 1: timing(1.004, 1.004)}, {0: drop(0), 1: drop(0)})
    assert found[1].reason == "0.4 % slower than one"


class Shop:
    """Makes nothing and times nothing: each recipe has a name, and onnx is faster in all but dynamic int8."""

    def __init__(self, module: nn.Module) -> None:
        self.order = SimpleNamespace(target=TARGET, observer=Silent(), sampling=Sampling())
        self.model, self.workspace = SimpleNamespace(module=module), self
        self.ways: dict[str, Way] = {}
        self.made: list[str] = []

    def make(self, recipe: Recipe, left: int = 0) -> tuple[Any, bool]:
        assert recipe.kind in recipe.name
        self.made.append(recipe.name)
        return SimpleNamespace(manifest=SimpleNamespace(key=recipe.name, measures={"drop_points": drop(0)})), False

    def time(self, artifacts: dict[str, Any], batches: tuple[int, ...]) -> dict[str, Timing]:
        slow = {"int8-dynamic": "onnx"}
        found = {}
        for place, artifact in artifacts.items():
            kind, _, engine = artifact.manifest.key.removeprefix("race-").rpartition("-")[0].rpartition("-")
            found[place] = timing(*[2.0 if engine == slow.get(kind, "eager") else 1.0] * 3)
        return found

    def load_race(self, key: str) -> None:
        return None

    def save_race(self, key: str, found: Raced) -> None:
        pass


TARGET = Target(name="here", engines=("onnx", "eager"))


def test_what_has_no_fixed_ranges_goes_its_own_way_where_a_model_is_likely_to_want_it() -> None:
    for module, wants in (
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), True),
        (nn.LSTM(4, 4), True),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), False),
        (nn.Sequential(nn.Conv2d(4, 64, 3), nn.LayerNorm(4), nn.Linear(4, 4)), False),
    ):
        shop = Shop(module)
        rows = race(shop)  # type: ignore[arg-type]
        assert [row.precision for row in rows if row.chosen] == ["float32", "int8", *["int8-dynamic"] * wants]
        assert shop.ways["float32"].engine == shop.ways["int8"].engine == "onnx"
        assert shop.ways["int8-dynamic"] == Way("eager" if wants else "onnx", {})
        assert sum("dynamic" in name for name in shop.made) == 2 * wants  # one a engine: placements mean nothing


def test_an_engine_that_is_not_there_is_named() -> None:
    assert missing(Target(name="x").engine) is None
    absent = missing("abacus")
    assert absent is not None
    assert not absent.installed
    assert "no lowering named 'abacus'" in absent.reason
