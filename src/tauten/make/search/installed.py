"""Whether an engine and its lowering are there, and which extra brings them."""

from __future__ import annotations

from typing import Final

from tauten.errors import ExtraMissing, PluginError
from tauten.make.lower import LOWERINGS
from tauten.make.search.result import EngineTried
from tauten.run.engines import ENGINES

EXTRAS: Final = {"onnx": "optimize", "inductor": "optimize", "openvino": "openvino", "executorch": "edge"}


def missing(engine: str) -> EngineTried | None:
    """Why an engine cannot be asked, or ``None`` where it can. Imports its backend."""
    try:
        for registry in (LOWERINGS, ENGINES):
            registry.get(engine)
    except ExtraMissing as fault:
        extra = EXTRAS.get(engine, fault.extra)
        reason = f'not installed: pip install "tauten[{extra}]" brings it'
        return EngineTried(engine=engine, installed=False, extra=extra, reason=reason)
    except PluginError as fault:
        return EngineTried(engine=engine, installed=False, extra=EXTRAS.get(engine, ""), reason=str(fault))
    return None
