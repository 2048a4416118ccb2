"""A server's figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric

from tauten.run.serve.model import ServedModel
from tauten.run.serve.statistics import BUCKETS_S, FAILURES, PHASES

_COUNTS: Final = {
    "nv_inference_request_success": ("Requests that were answered", "successes"),
    "nv_inference_count": ("Samples that were computed", "inferences"),
    "nv_inference_exec_count": ("Calls of the engine", "executions"),
}
_PADDING: Final = {
    "tauten_positions": ("Positions, rows times columns, of requests that may share a batch", "positions"),
    "tauten_padded_positions": ("Positions that were added so that requests of several lengths could", "padded"),
}
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_CACHE_COUNTS: Final = {
    "nv_cache_num_hits_per_model": ("Answers that were remembered", "hits"),
    "nv_cache_num_misses_per_model": ("Answers that had to be computed", "misses"),
    "tauten_cache_shared": ("Answers that came with another request's computation", "shared"),
    "tauten_cache_remote_hits": ("Answers that another server had computed", "remote_hits"),
}


class Metrics:
    """The figures of ``models``, whichever there are when it is asked, in a registry of their own.

    The names that start with ``nv_`` are those that dashboards of other servers of this protocol read; their
    durations are sums. The histograms hold the same durations with their spread.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = models
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # processor time, memory and open files of the server itself

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the registry asks for."""
        for name, (text, field) in _COUNTS.items():
            # Not "counter": the client library would name it NAME_total, and dashboards know it as NAME.
            metric = Metric(name, text, "unknown")
            for model, labels in self._labelled():
                metric.add_sample(name, labels, getattr(model.statistics, field))
            yield metric
        yield self._failures()
        for phase in PHASES:
            name = f"nv_inference_{phase}_duration_us"
            metric = Metric(name, f"Sum of microseconds: {phase}", "unknown")
            for model, labels in self._labelled():
                metric.add_sample(name, labels, model.statistics.phases[phase].total_ns // 1000)
            yield metric
        pending = Metric("nv_inference_pending_request_count", "Requests that wait for a thread", "gauge")
        for model, labels in self._labelled():
            pending.add_sample(pending.name, labels, model.waiting)
        yield pending
        instances = Metric("tauten_instances", "Batches of a model that may run at once", "gauge")
        for model, labels in self._labelled():
            instances.add_sample(instances.name, labels, model.instances)
        yield instances
        yield self._batches()
        yield from self._padding()
        yield from self._cache()
        for phase in PHASES:
            yield self._histogram(phase)

    def _labelled(self) -> Iterator[tuple[ServedModel, dict[str, str]]]:
        for model in self._models:
            yield model, {"model": model.name, "version": model.version}

    def _failures(self) -> Metric:
        name = "nv_inference_request_failure"
        metric = Metric(name, "Requests that failed, by reason", "unknown")
        for model, labels in self._labelled():
            for reason in FAILURES:
                metric.add_sample(name, {**labels, "reason": reason}, model.statistics.failures[reason])
        return metric

    def _batches(self) -> Metric:
        """Batches by their rows: how well requests come together."""
        family = HistogramMetricFamily(
            "tauten_batch_rows", "Rows of each call of the engine", labels=["model", "version"]
        )
        for model, labels in self._labelled():
            batches = model.statistics.batches
            counts = [(bound, sum(count for rows, (count, _) in batches.items() if rows <= bound)) for bound in _ROWS]
            buckets = [*((str(float(bound)), count) for bound, count in counts), ("+Inf", model.statistics.executions)]
            family.add_metric(list(labels.values()), buckets, sum(rows * count for rows, (count, _) in batches.items()))
        return family

    def _padding(self) -> Iterator[Metric]:
        """How much is computed in vain, where requests of different lengths share batches."""
        ragged = [(model, labels) for model, labels in self._labelled() if model.ragged]
        for name, (text, field) in _PADDING.items() if ragged else ():
            metric = Metric(name, text, "unknown")
            for model, labels in ragged:
                metric.add_sample(name, labels, getattr(model.statistics, field))
            yield metric

    def _cache(self) -> Iterator[Metric]:
        """What is remembered, where answers are: rows, or whole requests where a model has no batch."""
        remembering = [(model.cached, labels) for model, labels in self._labelled() if model.cached is not None]
        if not remembering:
            return
        for name, (text, field) in _CACHE_COUNTS.items():
            metric = Metric(name, text, "unknown")
            for cached, labels in remembering:
                metric.add_sample(name, labels, getattr(cached, field))
            yield metric
        lookups = Metric("tauten_cache_lookup_duration_us", "Sum of microseconds: looking up answers", "unknown")
        for cached, labels in remembering:
            lookups.add_sample(lookups.name, labels, cached.lookup_ns // 1000)
        yield lookups
        memory = remembering[0][0].memory  # all models of a server share it
        for name, text, value in (
            ("nv_cache_num_evictions", "Remembered answers that made room for others", memory.evictions),
            ("nv_cache_num_entries", "Answers that are remembered", len(memory)),
            ("tauten_cache_bytes", "Memory that remembered answers take", memory.bytes),
        ):
            metric = Metric(name, text, "gauge")
            metric.add_sample(name, {}, value)
            yield metric

    def _histogram(self, phase: str) -> Metric:
        family = HistogramMetricFamily(
            f"tauten_{phase}_duration_seconds", f"Seconds of answered requests: {phase}", labels=["model", "version"]
        )
        bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
        for model, labels in self._labelled():
            histogram = model.statistics.phases[phase]
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric(list(labels.values()), buckets, histogram.total_ns * 1e-9)
        return family
