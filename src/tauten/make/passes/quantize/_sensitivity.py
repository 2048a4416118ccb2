"""What each layer's quantization alone costs."""

from __future__ import annotations

import copy

from tauten.errors import PassError
from tauten.make.layers.quantized import put_layer
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context, Pass
from tauten.make.passes.quantize._calibrate import Data
from tauten.make.passes.quantize._convert import QuantizingPass
from tauten.make.passes.quantize._noise import Noise


def layer_sensitivity(model: Model, context: Context, step: Pass, samples: int = 64) -> dict[str, float]:
    """The outputs' noise power over their power when only one layer is as ``step`` makes it, by the layer's path.

    Of several outputs, the largest share. Measured on ``samples`` calibration samples, with one run of them a layer;
    the layers are decided once, as the pass decides them together. ``model`` is left as it was. Raises ``PassError``
    for a pass that puts no layers on grids.
    """
    if not isinstance(step, QuantizingPass):
        raise PassError(f"{step.name}: expected a pass that quantizes layers one by one")
    fork = model.but(module=copy.deepcopy(model.module))
    decided = step.decide(fork, context)
    noise = Noise(Data(fork, context, samples), decided.module, samples)
    found: dict[str, float] = {}
    for done, (path, layer) in enumerate(decided.layers.items()):
        context.progress("sensitivity", done / len(decided.layers))
        was = decided.sites.layers[path]
        module = put_layer(decided.module, was, layer)
        found[path] = max(noise.shares(module).values(), default=0.0)
        put_layer(module, layer, was)
    return found
