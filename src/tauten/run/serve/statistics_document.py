"""What a server did, as the document that load tools of the Open Inference Protocol ask for."""

from __future__ import annotations

from typing import Any

from tauten.run.serve.model import ServedModel
from tauten.run.serve.statistics import Statistics


def statistics_document(*models: ServedModel) -> dict[str, Any]:
    """The answer to ``GET /v2/models/M/stats``; durations in nanoseconds."""
    return {"model_stats": [_statistics_of(model) for model in models]}


def _statistics_of(model: ServedModel) -> dict[str, Any]:
    statistics: Statistics = model.statistics

    def phase(name: str) -> dict[str, int]:
        return {"count": statistics.successes, "ns": statistics.phases[name].total_ns}

    none = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inferences,
        "execution_count": statistics.executions,
        "inference_stats": {
            "success": phase("request"),
            "fail": {"count": sum(statistics.failures.values()), "ns": statistics.failed_ns},
            "queue": phase("queue"),
            "compute_input": phase("compute_input"),
            "compute_infer": phase("compute_infer"),
            "compute_output": phase("compute_output"),
            "cache_hit": none if model.cached is None else {"count": model.cached.hits, "ns": model.cached.lookup_ns},
            "cache_miss": none if model.cached is None else {"count": model.cached.misses, "ns": 0},
        },
        # Input and output are read and written request by request, so that they are in no batch's time.
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": none,
                "compute_infer": {"count": count, "ns": ns},
                "compute_output": none,
            }
            for rows, (count, ns) in sorted(statistics.batches.items())
        ],
        **({"padding": {"positions": statistics.positions, "padded": statistics.padded}} if model.ragged else {}),
    }
