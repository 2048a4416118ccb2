"""Batching policies: which of the waiting calls run next, together, and when.

One file is one policy; it is found by its name. A policy is a state machine without I/O and without a clock: time is an
argument, in nanoseconds of ``time.perf_counter_ns``.
"""

from __future__ import annotations

from tauten.core.registry import Registry
from tauten.run.serve.scheduler import Scheduler

SCHEDULERS: Registry[type[Scheduler]] = Registry("scheduler", "tauten.run.serve.schedulers")
