"""One request through everything, before anyone asks."""

from __future__ import annotations

import numpy as np

from tauten.core.tensor import Array, Arrays, TensorSpec
from tauten.errors import EngineError, TautenError
from tauten.run.engines.engine import Engine
from tauten.run.serve.handler import HandledEngine
from tauten.run.serve.protocol.elements import BytesSpec, to_objects


def dry_run(engine: Engine, name: str = "the model") -> None:
    """Run one request of zeros, or of the example that a handler gives.

    Raises ``EngineError``, also where the answer is not what the outputs' specs declare.
    """
    handled = isinstance(engine, HandledEngine)
    what = "its handler's example" if handled else "a request of zeros"
    try:
        inputs = sample(engine)
        outputs = engine.try_out(inputs) if isinstance(engine, HandledEngine) else engine(inputs)
        for spec in engine.outputs:
            if spec.name not in outputs:
                raise EngineError(f"expected output {spec.name!r}, got {sorted(outputs)}")
            dtype = "object" if isinstance(spec, BytesSpec) else spec.dtype
            if outputs[spec.name].dtype.name != dtype:
                raise EngineError(f"{spec.name}: expected dtype {spec.dtype}, got {outputs[spec.name].dtype.name}")
            spec.sizes(outputs[spec.name].shape)
    except TautenError as fault:
        raise EngineError(f"{name} does not answer {what}: {fault}") from fault


def sample(engine: Engine) -> Arrays:
    """One request of zeros, or the example that a handler gives. Raises ``EngineError`` where that fails."""
    zeros = {spec.name: _zeros(spec) for spec in engine.inputs}
    return engine.example(zeros) if isinstance(engine, HandledEngine) else zeros


def _zeros(spec: TensorSpec) -> Array:
    """One sample of zeros, or of empty elements."""
    shape = spec.concrete()
    if isinstance(spec, BytesSpec):
        return to_objects([b""] * int(np.prod(shape)), shape)
    return np.zeros(shape, spec.dtype)
