"""Balancing policies: which of a model's instances runs the next batch. One file is one policy, found by its name.

::

    Balancer
    ├── pull               an idle one, or wait (the default)
    ├── round_robin        each in turn
    ├── least_outstanding  the one that holds fewest
    └── p2c                the one of two, drawn at random, that holds fewer

A policy does no I/O and reads no clock.
"""

from __future__ import annotations

from typing import Final

from tauten.core.registry import Registry
from tauten.run.serve.balancer import Balancer

BALANCERS: Registry[type[Balancer]] = Registry("balancer", "tauten.run.serve.balancers")
DEFAULT: Final = "pull"
