"""Imports without the telemetry that some packages bring along."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_REPORTERS: Final = ("openvino_telemetry",)


@contextmanager
def no_telemetry() -> Iterator[None]:
    """What is imported inside finds no package that reports its use: such imports fail, which their importers expect.

    OpenVINO and NNCF would write an identity to the home folder and send it, at their import, unless a user has
    declined. What was imported before stays as it is.
    """
    held: dict[str, Any] = {name: sys.modules[name] for name in _REPORTERS if name in sys.modules}
    modules: dict[str, Any] = sys.modules
    for name in _REPORTERS:
        modules[name] = None
    try:
        yield
    finally:
        for name in _REPORTERS:
            del modules[name]
        modules.update(held)
