"""How much of a graph's answers is noise that quantization brought."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from onnx import ModelProto

from tauten.core.rows import count_rows
from tauten.core.tensor import Arrays
from tauten.errors import LoweringError
from tauten.make.lower._compare import open_session, run_session
from tauten.make.lower._remembered import remembered
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.make.model.run import forward

_QUIETEST: Final = 200.0  # dB; stands for outputs that are the same to the bit


def noise(
    reference: ModelProto,
    quantized: ModelProto,
    model: Model,
    context: Context,
    samples: Sequence[Arrays],
    *,
    simulated: bool,
) -> dict[str, dict[str, float]]:
    """``{"sqnr_db": {output: dB}}``: ten times the log of the ratio of signal to quantization noise, in power.

    Where the module is ``simulated`` (it rounds as the engine does), ``sqnr_to_module_db`` too: how near the engine's
    answers are to those of the module that was measured. Raises ``LoweringError`` where the answers are lost in noise.
    """
    names = [value.name for value in reference.graph.output]
    after = open_session(quantized)
    # Another plan of the same module may look at more samples, or at fewer.
    which = tuple(count_rows(model.inputs, batch) for batch in samples)
    expected = remembered(model, context, ("graph answers", which), lambda: _answers(reference, names, samples))
    simulation: list[Arrays] = []
    if simulated:
        simulation = remembered(model, context, ("module answers", which), lambda: _simulation(model, samples))
    to_graph, to_module = _Ratio(names), _Ratio(names)
    for index, batch in enumerate(samples):
        came = run_session(after, names, batch)
        to_graph.add(expected[index], came)
        if simulated:
            to_module.add(simulation[index], came)
    ratios: dict[str, Any] = {"sqnr_db": to_graph.decibel()}
    lost = {name: ratio for name, ratio in ratios["sqnr_db"].items() if not ratio > 0}
    if lost:
        raise LoweringError(
            f"quantization: the answers are lost in noise (signal to noise in dB: {lost}); leave the model in float"
        )
    return {**ratios, **({"sqnr_to_module_db": to_module.decibel()} if simulated else {})}


def _answers(graph: ModelProto, names: list[str], samples: Sequence[Arrays]) -> list[Arrays]:
    session = open_session(graph)
    return [run_session(session, names, batch) for batch in samples]


def _simulation(model: Model, samples: Sequence[Arrays]) -> list[Arrays]:
    return [forward(model.module, model.inputs, model.outputs, batch) for batch in samples]


class _Ratio:
    """Powers of signal and noise, summed over batches, an output."""

    def __init__(self, names: Sequence[str]) -> None:
        self._signal, self._noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)

    def add(self, expected: Arrays, came: Arrays) -> None:
        for name in self._signal:
            wanted = expected[name].astype(np.float64)
            kept = np.isfinite(wanted)
            self._signal[name] += float(np.square(wanted[kept]).sum())
            self._noise[name] += float(np.square(wanted[kept] - came[name].astype(np.float64)[kept]).sum())

    def decibel(self) -> dict[str, float]:
        return {name: _decibel(signal, self._noise[name]) for name, signal in self._signal.items()}


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return _QUIETEST
    if signal == 0 or not np.isfinite(noise):
        return float("-inf")
    return round(min(10 * float(np.log10(signal / noise)), _QUIETEST), 2)
