"""One request through everything, before anyone asks."""

from __future__ import annotations

import numpy as np

from tauten.core.tensor import Array, TensorSpec
from tauten.errors import EngineError, TautenError
from tauten.run.engines.engine import Engine
from tauten.run.serve.handler import HandledEngine
from tauten.run.serve.protocol.elements import BytesSpec, to_objects


def dry_run(engine: Engine) -> None:
    """Run one request of zeros, or of the example that a handler gives.

    Raises ``EngineError``, also where the answer is not what the outputs' specs declare.
    """
    what, inputs = "a request of zeros", {spec.name: zeros(spec) for spec in engine.inputs}
    try:
        if isinstance(engine, HandledEngine):
            what = "its handler's example"
            outputs = engine.try_out(engine.example(inputs))
        else:
            outputs = engine(inputs)
        for spec in engine.outputs:
            if spec.name not in outputs:
                raise EngineError(f"expected output {spec.name!r}, got {sorted(outputs)}")
            dtype = "object" if isinstance(spec, BytesSpec) else spec.dtype
            if outputs[spec.name].dtype.name != dtype:
                raise EngineError(f"{spec.name}: expected dtype {spec.dtype}, got {outputs[spec.name].dtype.name}")
            spec.sizes(outputs[spec.name].shape)
    except TautenError as fault:
        raise EngineError(f"the model does not answer {what}: {fault}") from fault


def zeros(spec: TensorSpec) -> Array:
    """One sample of zeros, or of empty elements."""
    shape = spec.concrete()
    if isinstance(spec, BytesSpec):
        return to_objects([b""] * int(np.prod(shape)), shape)
    return np.zeros(shape, spec.dtype)
