"""A part of a training that goes over several: the modules change in between, the learning rate goes on."""

from __future__ import annotations

from typing import Any

from tauten.make.model.train import Training


class Segment(Training):
    """A training whose learning rate is that of a longer one, from the share ``begin`` of it to the share ``end``."""

    begin: float = 0.0
    end: float = 1.0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of ``step`` (from 0) of ``steps``."""
        whole = steps / (self.end - self.begin)
        return super().rate(round(self.begin * whole) + step, round(whole))

    def to_json(self) -> dict[str, Any]:
        """As a plain ``Training``: who keeps checkpoints knows the pass and the module that it starts from."""
        return {name: value for name, value in super().to_json().items() if name not in ("begin", "end")}
