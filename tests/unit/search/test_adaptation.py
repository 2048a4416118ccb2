"""Which step is taken next, on networks whose latency and quality are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tauten.core.target import Budget
from tauten.errors import ConfigError
from tauten.make.search.adaptation import Adaptation, Pace
from tauten.make.search.improve import improvements
from tauten.make.search.recipe import Recipe, pass_from_json
from tauten.make.search.result import Entry
from tauten.make.search.strategies import STRATEGIES
from tauten.make.search.strategies._strategy import Trial
from tests.unit.search.entries import measure

UNITS = {"a": 16, "b": 32}
Widths = dict[str, int]


class World:
    """Networks of two groups: what each channel costs in milliseconds, and what each lost one costs in points."""

    def __init__(self, cost: dict[str, float], harm: dict[str, float], noise: float = 0.0) -> None:
        self.cost, self.harm, self.noise = cost, harm, noise
        self.made: list[str] = []
        self.entries: dict[str, Entry] = {}

    def latency(self, widths: Widths) -> float:
        return 1.0 + sum(self.cost[name] * width for name, width in widths.items())

    def entry(self, recipe: Recipe) -> Entry:
        step = next((step.to_json() for step in recipe.passes if step.name == "prune.structured"), None)
        ratios: Any = dict(step["ratios"]) if step else {}
        widths = {name: units - round(units * ratios.get(name, 0.0)) for name, units in UNITS.items()}
        p50 = self.latency(widths)
        lost = sum(self.harm[name] * (units - widths[name]) for name, units in UNITS.items())
        groups = [{"name": name, "before": units, "after": units // 2} for name, units in UNITS.items()]
        return Entry(
            name=recipe.name,
            recipe=recipe.to_json(),
            artifact=recipe.name,
            measures={
                "latency_p50_ms": measure(p50, "ms", "lower", self.noise),
                "latency_p95_ms": measure(1.2 * p50, "ms", "lower"),
            },
            drop_points=measure(lost, "points", "lower", 0.05),
            history=({"name": "prune.structured", "notes": {"groups": groups}},) if step else (),
        )

    def run(self, search: Any, most: int = 500) -> list[Recipe]:
        """Answer until the search is over; the recipes that it asked for besides trials."""
        asked: list[Recipe] = []
        for _ in range(most):
            wanted = search.ask()
            if wanted is None:
                return asked
            if not isinstance(wanted, Trial):
                asked.append(wanted)
                search.tell(wanted, None)
                continue
            self.made.append(wanted.recipe.name)
            entry = self.entries[wanted.recipe.name] = self.entry(wanted.recipe)
            beside = self.entries.get(wanted.against, self.entry(Recipe("whole")))
            search.tell(wanted.recipe, entry, improvements(entry, beside)["latency_p50_ms"])
        raise AssertionError("the search does not end")


def adaptation(limit: float, **pace: Any) -> Adaptation:
    return Adaptation(limit, (), "onnx", Pace(**{"percentile": 50, **pace}))


def kept(search: Adaptation) -> Widths:
    return {name: group.kept for name, group in search.groups.items()}


def test_the_step_that_buys_most_time_per_lost_quality_is_taken() -> None:
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 1.0, "b": 0.1})
    search = adaptation(world.latency(UNITS) * 0.8)
    world.run(search)
    assert search.met
    assert kept(search)["a"] == 16
    assert kept(search)["b"] < 32
    assert {step.group for step in search.taken} == {"b"}


def test_time_that_is_dear_is_bought_where_it_costs_least() -> None:
    # A channel of a saves ten times as much as one of b, at three times the harm.
    world = World(cost={"a": 0.1, "b": 0.01}, harm={"a": 0.3, "b": 0.1})
    search = adaptation(world.latency(UNITS) * 0.8)
    world.run(search)
    assert search.met
    assert kept(search)["b"] == 32


def test_it_ends_as_soon_as_the_limit_holds_with_a_little_to_spare() -> None:
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 1.0, "b": 0.1})
    limit = world.latency(UNITS) * 0.8
    search = adaptation(limit)
    world.run(search)
    last = search.taken[-1]
    assert search.latency_ms <= limit * 0.98
    assert search.latency_ms + last.gain_ms > limit * 0.98
    assert search.why == "the limit holds"
    assert search.cut is not None
    assert dict(search.ratios) == {"b": (32 - kept(search)["b"]) / 32}


def test_a_limit_that_holds_already_takes_one_trial_and_cuts_nothing() -> None:
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 1.0, "b": 1.0})
    search = adaptation(2 * world.latency(UNITS))
    world.run(search)
    assert search.met
    assert search.cut is None
    assert len(world.made) == 1


def test_a_limit_out_of_reach_ends_with_what_may_stay() -> None:
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 1.0, "b": 1.0})
    search = adaptation(0.5, keep_at_least=0.25)
    world.run(search)
    assert not search.met
    assert search.why == "no group has a step left that gains time"
    assert kept(search) == {"a": 4, "b": 8}
    assert all(group.closed == "nothing more may go" for group in search.groups.values())


def test_a_gain_inside_the_noise_does_not_count_and_longer_steps_are_tried() -> None:
    # Cutting a saves nothing; each channel of b so little that a single step is lost in the noise.
    world = World(cost={"a": 0.0, "b": 0.01}, harm={"a": 0.0, "b": 0.1}, noise=0.03)
    search = adaptation(1.2)
    world.run(search)
    assert kept(search)["a"] == 16
    assert search.groups["a"].closed == "its steps gain no time outside the noise"
    assert kept(search)["b"] < 32
    assert all(step.gain_ms > 0.05 for step in search.taken)


def test_the_number_of_artifacts_is_bounded() -> None:
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 0.1, "b": 0.1})
    search = adaptation(0.5, keep_at_least=0.1)
    world.run(search)
    steps = sum(1 for _ in search.taken)
    # The whole, the groups, a first look at each, and for each step at most a look at every group.
    assert len(world.made) <= 2 + len(UNITS) + steps * len(UNITS)
    few = adaptation(0.5, trials=6)
    World(cost={"a": 0.1, "b": 0.1}, harm={"a": 0.1, "b": 0.1}).run(few)
    assert few.spent == 6
    assert few.why == "all 6 trials are spent"


def test_steps_keep_multiples() -> None:
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 0.1, "b": 0.1})
    search = adaptation(0.5, round_to=8)
    world.run(search)
    assert kept(search) == {"a": 8, "b": 8}


def test_trials_of_the_same_cut_have_the_same_name() -> None:
    names = []
    for _ in range(2):
        world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 1.0, "b": 0.1})
        world.run(adaptation(world.latency(UNITS) * 0.8))
        names.append(world.made)
    assert names[0] == names[1]
    assert len(set(names[0])) == len(names[0])


def test_what_cannot_be_made_closes_its_group() -> None:
    search = adaptation(0.5)
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 0.1, "b": 0.1})
    for answer in (world.entry, world.entry, None):
        trial = search.ask()
        assert trial is not None
        entry = answer(trial.recipe) if answer else None
        gain = improvements(entry, entry)["latency_p50_ms"] if entry else None
        search.tell(trial.recipe, entry, gain)
    assert search.groups["a"].closed == "could not be made"
    with pytest.raises(ConfigError, match="the trial that was asked for last"):
        search.tell(Recipe("other"), None)


def test_an_untouched_model_that_cannot_be_made_ends_it() -> None:
    search = adaptation(0.5)
    trial = search.ask()
    assert trial is not None
    search.tell(trial.recipe, None)
    assert search.ask() is None
    assert search.cut is None
    assert not search.met


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Pace(step=0), "step: expected a share between 0 and 1, got 0"),
        (lambda: Pace(round_to=0), "expected 1 or more, got 0 and 80"),
        (lambda: Pace(keep_at_least=0), "keep_at_least: expected above 0"),
        (lambda: Pace(percentile=99), "percentile: expected 50 or 95, got 99"),
        (lambda: adaptation(0.0), "max_latency_ms: expected a number above 0, got 0.0"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def recipes() -> list[Recipe]:
    eight, train = pass_from_json({"pass": "quantize.post_training"}), pass_from_json({"pass": "distill.recover"})
    cuts = [pass_from_json({"pass": "prune.structured", "ratio": ratio}) for ratio in (0.5, 0.7)]
    found = [Recipe("int8", (eight,))]
    for number, cut in enumerate(cuts):
        found += [Recipe(f"cut-{number}", (cut, train)), Recipe(f"cut-{number}-int8", (cut, train, eight))]
    return found


def test_the_strategy_gives_each_way_to_go_on_a_cut_of_its_own() -> None:
    world = World(cost={"a": 0.1, "b": 0.1}, harm={"a": 1.0, "b": 0.1})
    search = STRATEGIES.get("adapt")(recipes(), 0, Budget(max_latency_ms=1.2 * 0.8 * world.latency(UNITS)))
    asked = world.run(search)
    assert [recipe.name for recipe in asked] == ["int8", "adapted-fp32", "adapted-int8"]
    for recipe in asked[1:]:
        first, second = recipe.passes[:2]
        assert (first.name, second.name) == ("prune.structured", "distill.recover")
        assert dict(first.to_json()["ratios"]).keys() == {"b"}
    # Trials run in the precision of the final model, and train nothing.
    assert any(name.startswith("adapt-int8-") for name in world.made)
    assert search.left == 0


@pytest.mark.parametrize(
    ("given", "budget", "said"),
    [
        (recipes(), Budget(max_drop=1), "expected a budget with max_latency_ms"),
        ([Recipe("fp32")], Budget(max_latency_ms=1), "expected a recipe with prune.structured"),
    ],
)
def test_the_strategy_says_what_it_lacks(given: list[Recipe], budget: Budget, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        STRATEGIES.get("adapt")(given, 0, budget)


def test_the_plain_strategy_asks_for_each_recipe_once() -> None:
    search = STRATEGIES.get("listed")(recipes(), 0, Budget())
    assert search.left == 5
    assert [recipe.name for recipe in World({}, {}).run(search)] == [recipe.name for recipe in recipes()]
