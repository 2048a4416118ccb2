"""The best against a baseline, said plainly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tauten.core.measure import Measure
from tauten.make.search.result import Entry, Improvement
from tauten.run.measure.session import Timing

_WORDS = {
    "size_bytes": ("smaller", "larger"),
    "latency": ("faster", "slower"),
    "throughput": ("more rows a second", "fewer rows a second"),
    "peak_memory_mib": ("less memory", "more memory"),
    "startup_ms": ("sooner ready", "later ready"),
    "load_ms": ("sooner loaded", "later loaded"),
}


def improvements(
    best: Entry, baseline: Entry, best_rounds: Sequence[float] = (), baseline_rounds: Sequence[float] = ()
) -> dict[str, Improvement]:
    """An improvement a measure that both have.

    ``*_rounds`` are the p50 latencies of the rounds that both ran in, pair by pair: the ratio's interval comes from
    these pairs, so that a machine that slows down slows both.
    """
    found: dict[str, Improvement] = {}
    for name in _names(best):
        ours, theirs = best.measure(name), baseline.measure(name)
        if ours is None or theirs is None:
            continue
        if name == "quality":
            found[name] = _quality(ours, theirs, best.drop_points)
            continue
        ratio = ours.ratio(theirs)
        low, high = _bounds(ours, theirs)
        if name == "latency_p50_ms" and len(best_rounds) == len(baseline_rounds) > 1:
            low, high = _paired(np.asarray(baseline_rounds) / np.asarray(best_rounds), ratio)
        found[name] = Improvement(
            ratio=ratio,
            ratio_low=min(low, ratio),
            ratio_high=max(high, ratio),
            difference=ours.value - theirs.value,
            unit=ours.unit,
            better=ratio > 1,
            text=_text(name, ratio),
        )
    return found


def faster(ours: Timing, theirs: Timing) -> Improvement:
    """The p50 latency of one against another that was timed in the same rounds."""
    key = "latency_p50_ms"
    mine, other = (
        Entry(name="", recipe={}, artifact="", measures={key: timing.measures[key]}) for timing in (ours, theirs)
    )
    return improvements(mine, other, ours.rounds_p50_ms, theirs.rounds_p50_ms)[key]


def _names(entry: Entry) -> list[str]:
    names: list[str] = []
    for key, measure in entry.measures.items():
        names += [f"{key}.{batch}" for batch in measure] if isinstance(measure, dict) else [key]
    return names


def _bounds(ours: Measure, theirs: Measure) -> tuple[float, float]:
    """The ratio's interval from two intervals taken apart: each against the other's far end."""
    ends = [
        ours.model_copy(update={"value": our_end}).ratio(theirs.model_copy(update={"value": their_end}))
        for our_end in (ours.low, ours.high)
        for their_end in (theirs.low, theirs.high)
    ]
    return min(ends), max(ends)


def _paired(ratios: np.ndarray[tuple[int, ...], np.dtype[np.float64]], ratio: float) -> tuple[float, float]:
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(ratios), (1000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return float(low), float(high)


def _quality(ours: Measure, theirs: Measure, drop: Measure | None) -> Improvement:
    lost = drop.value if drop else (theirs.value - ours.value) * (1 if ours.better == "higher" else -1)
    text = f"{abs(lost):.2f} points {'lost' if lost > 0 else 'gained'}" if lost else "the same quality"
    ratio = ours.ratio(theirs) if theirs.value and ours.value else 1.0
    low, high = _bounds(ours, theirs) if theirs.low > 0 and ours.low > 0 else (ratio, ratio)
    return Improvement(
        ratio=ratio,
        ratio_low=min(low, ratio),
        ratio_high=max(high, ratio),
        difference=ours.value - theirs.value,
        unit=ours.unit,
        better=lost < 0,
        text=text,
    )


def _text(name: str, ratio: float) -> str:
    better, worse = next((words for key, words in _WORDS.items() if name.startswith(key)), ("better", "worse"))
    times = ratio if ratio >= 1 else 1 / max(ratio, 1e-12)
    return f"{times:.3g} times {better if ratio >= 1 else worse}" if f"{times:.3g}" != "1" else "the same"
