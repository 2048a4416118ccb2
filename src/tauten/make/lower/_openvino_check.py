"""Holds an OpenVINO graph against the module, and a quantized one against the float one: both as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from tauten.core.rows import count_rows
from tauten.core.tensor import Arrays, TensorSpec
from tauten.errors import LoweringError, MismatchError
from tauten.make.lower._compare import TOLERANCE, differences
from tauten.make.lower._openvino_ir import Written
from tauten.make.lower._samples import rows
from tauten.make.model.model import Model
from tauten.make.model.pass_ import Context
from tauten.run.engines.openvino import Compiled, Settings, compile_model, find_ports, options, parse

_BATCH: Final = 32  # samples a call
_MEASURED: Final = 64  # samples that the signal-to-noise ratio is taken on
_QUIETEST: Final = 200.0  # dB; stands for outputs that are the same to the bit


class Runner:
    """A written graph, compiled for one thread. Raises OpenVINO's ``RuntimeError`` where it cannot be."""

    def __init__(
        self, written: Written, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], settings: Settings
    ) -> None:
        graph = parse(written.graph, written.weights)
        places = find_ports("input", inputs, graph.inputs), find_ports("output", outputs, graph.outputs)
        self._compiled = Compiled(compile_model(graph, options(settings, threads=1)), *places)
        self._reads, self._gives = [spec.name for spec in inputs], [spec.name for spec in outputs]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs by name."""
        answers = self._compiled.run([inputs[name] for name in self._reads])
        return dict(zip(self._gives, answers, strict=True))


def check_answers(run: Runner, model: Model, sample: Arrays) -> float:
    """Compare with the module on ``sample``; the largest difference, as a share of the largest number.

    Raises ``MismatchError`` where it is too large.
    """
    largest = 0.0
    for name, batch, off in differences(lambda _, batch: run(batch), model, sample):
        largest = max(largest, off)
        if off > TOLERANCE:
            raise MismatchError(
                f"{name}: OpenVINO's graph differs from the module by {off:.3g} of its largest value (batch "
                f"{count_rows(model.inputs, batch)}, at most {TOLERANCE:g} is allowed), though the ONNX graph that it "
                "was made of does not: lower the model to onnx"
            )
    return largest


def measure_noise(reference: Runner, low: Runner, model: Model, context: Context) -> dict[str, float]:
    """Signal to noise in dB by output: ten times the log of the ratio of their powers, on calibration data.

    Raises ``LoweringError`` where there is more noise than signal.
    """
    powers: dict[str, tuple[float, float]] = {}
    for batch in rows(context.task.data("calibrate"), model.inputs, batch=_BATCH, limit=_MEASURED):
        came = low(batch)
        for name, wanted in reference(batch).items():
            signal, noise = _powers(wanted.astype(np.float64), came[name].astype(np.float64))
            before = powers.get(name, (0.0, 0.0))
            powers[name] = before[0] + signal, before[1] + noise
    ratios = {name: _decibel(*both) for name, both in powers.items()}
    lost = {name: ratio for name, ratio in ratios.items() if not ratio > 0}
    if lost:
        raise LoweringError(
            f"OpenVINO: the answers are lost in noise (signal to noise in dB: {lost}); leave it in float"
        )
    return ratios


def _powers(wanted: npt.NDArray[np.float64], came: npt.NDArray[np.float64]) -> tuple[float, float]:
    kept = np.isfinite(wanted)
    return float(np.square(wanted[kept]).sum()), float(np.square(wanted[kept] - came[kept]).sum())


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return _QUIETEST
    if signal == 0 or not np.isfinite(noise):
        return float("-inf")
    return round(min(10 * float(np.log10(signal / noise)), _QUIETEST), 2)
