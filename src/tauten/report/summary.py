"""What a manager reads: the verdict, a few sentences, the large figures, and the budget beside what was reached."""

from __future__ import annotations

from dataclasses import dataclass

from tauten.core.measure import Measure
from tauten.report import words
from tauten.report.run import Entry, Run


@dataclass(frozen=True)
class Headline:
    """One large figure: what it is, from what to what, and which share (0 to 1) of the old is left."""

    title: str
    figure: str
    caption: str
    before: str
    after: str
    share: float
    good: bool


@dataclass(frozen=True)
class Limit:
    """One limit of the budget and what was reached; ``share`` is reached over limit, above 1 is too much."""

    title: str
    allowed: str
    reached: str
    share: float
    held: bool


_LIMITS = {
    "max_drop": ("Quality lost", "drop_points", "points"),
    "max_bytes": ("Size on disk", "size_bytes", "bytes"),
    "max_latency_ms": ("Latency, p95, batch 1", "latency_p95_ms", "ms"),
    "max_memory_mib": ("Peak memory", "peak_memory_mib", "MiB"),
}
_HEADLINES = (
    ("Speed", "latency_p50_ms", "faster", "slower", "median of one request"),
    ("Size", "size_bytes", "smaller", "larger", "all files of the artifact"),
    ("Memory", "peak_memory_mib", "less", "more", "peak of a fresh process"),
)


def verdict(run: Run) -> str:
    """The outcome in three words."""
    if run.met:
        return "Budget held" if any(run.limits()) else "Finished, no budget was set"
    return "Budget not met"


def sentences(run: Run) -> list[str]:
    """The outcome in plain sentences."""
    shown = run.shown
    if shown is None:
        return ["No candidate could be measured, so there is nothing to compare.", _explanation(run)]
    found = [] if run.met else [_explanation(run) or "Nothing that was tried holds every limit."]
    who = "The optimized model" if run.met else f"The nearest candidate, {shown.name},"
    parts = _compare(run, "baseline")
    quality = _quality(run, shown)
    if parts:
        found.append(f"{who} is {words.listing(parts)} than the original in PyTorch{quality and f', with {quality}'}.")
    elif quality:
        found.append(f"{who} was measured with {quality}.")
    parts = _compare(run, "engine_baseline")
    if parts:
        found.append(f"Against the untouched model on the same engine ({run.engine}) it is {words.listing(parts)}.")
    if run.met:
        found.append(_explanation(run))
    return [text for text in found if text]


def _explanation(run: Run) -> str:
    """The run's own sentence, begun and ended as one; a candidate's name at its beginning stays as it is spelt."""
    text = str(run.raw.get("explanation") or "").strip()
    if not text:
        return ""
    if text.split()[0].rstrip(",:") not in {entry.name for entry in run.candidates}:
        text = text[0].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _compare(run: Run, which: str) -> list[str]:
    parts = []
    for name, better, worse in (("latency_p50_ms", "faster", "slower"), ("size_bytes", "smaller", "larger")):
        ratio = run.ratio(name, which)
        if ratio is not None:
            parts.append(words.compared(ratio, better, worse))
    return parts


def _quality(run: Run, shown: Entry) -> str:
    where, drop, quality = _drop(run, shown)
    if drop is None:
        return ""
    return words.lost(drop.value, where) + (f" ({words.measured(quality)} {run.metric})" if quality else "")


def _drop(run: Run, shown: Entry) -> tuple[str, Measure | None, Measure | None]:
    on_test = run.on_test("drop_points")
    if run.met and on_test:
        return "the test set", on_test, run.on_test("best")
    where = {"validate": "the validation set", "calibrate": "the calibration set"}.get(
        str(run.raw.get("quality_on") or ""), ""
    )
    return where, shown.measure("drop_points"), shown.measure("quality")


def headlines(run: Run) -> list[Headline]:
    """Speed, size, quality and memory, as far as they were measured."""
    shown = run.shown
    if shown is None:
        return []
    found = []
    for title, name, better, worse, caption in _HEADLINES:
        ours, theirs, ratio = shown.measure(name), run.baseline.measure(name), run.ratio(name)
        if ours is None or theirs is None or ratio is None:
            continue
        found.append(
            Headline(
                title=title,
                figure=f"{words.times(ratio if ratio >= 1 else 1 / ratio)}×",
                caption=f"{better if ratio >= 1 else worse}: {caption}",
                before=words.measured(theirs),
                after=words.measured(ours),
                share=min(1.0, ours.value / theirs.value),
                good=ratio >= 1,
            )
        )
    where, drop, quality = _drop(run, shown)
    if drop is not None:
        original = run.on_test("baseline") if run.met and run.on_test("best") else run.baseline.measure("quality")
        allowed = run.raw["budget"].get("max_drop")
        found.insert(
            2,
            Headline(
                title="Quality",
                figure="±0.00" if abs(drop.value) < 0.005 else f"{'−' if drop.value > 0 else '+'}{abs(drop.value):.2f}",
                caption=f"points of {run.metric}" + (f" on {where}" if where else ""),
                before=words.measured(original),
                after=words.measured(quality),
                share=min(1.0, quality.value / original.value) if quality and original and original.value > 0 else 1.0,
                good=drop.value <= (allowed if allowed is not None else 0),
            ),
        )
    return found


def limits(run: Run) -> list[Limit]:
    """Each limit of the budget beside what the shown candidate reached, as it was judged: on the validation data."""
    found = []
    for name, limit in run.limits():
        title, key, unit = _LIMITS.get(name, (words.label(name), name, ""))
        measure = run.shown.measure(key) if run.shown else None
        value = measure.value if measure else None
        found.append(
            Limit(
                title=title,
                allowed=words.amount(limit, unit),
                reached=words.measured(measure),
                share=_share(value, limit),
                held=value is not None and value <= limit,
            )
        )
    return found


def _share(value: float | None, limit: float) -> float:
    if value is None or value <= 0:
        return 0.0
    return value / limit if limit > 0 else 2.0
