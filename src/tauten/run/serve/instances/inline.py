"""Runs batches in the event loop itself.

For models that take less time than handing them to a thread and back: the event loop answers nobody meanwhile, which
for so short a time costs less than the hand-over.
"""

from __future__ import annotations

from time import perf_counter_ns

from tauten.run.engines.engine import Engine
from tauten.run.serve.call import Batch, divide, gather
from tauten.run.serve.instance import Done, Instance


class Inline(Instance):
    """``run`` computes and calls ``done`` before it returns."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def run(self, batch: Batch, done: Done) -> None:
        done(self, batch, compute(self._engine, batch))

    def close(self) -> None:
        pass


def compute(engine: Engine, batch: Batch) -> Exception | None:
    """Run ``batch``, give its calls what came out and when; an error where nothing did."""
    started = perf_counter_ns()
    try:
        outputs = engine.run(gather(batch, engine.inputs))
        divide(batch, [outputs[spec.name] for spec in engine.outputs])
    except Exception as fault:  # noqa: BLE001 - handed to those who asked
        return fault
    finally:
        ended = perf_counter_ns()
        rows, why = batch.rows, batch.why
        for call in batch.calls:
            call.started_ns = started
            call.ended_ns = ended
            call.batch_rows = rows
            call.why = why
    return None
