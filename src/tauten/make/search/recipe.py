"""Passes in order, and the engine they are lowered for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from tauten.codecs import CODECS
from tauten.core.target import AUTO
from tauten.errors import PluginError, RecipeError
from tauten.make.lower import LOWERINGS
from tauten.make.model.model import FLOAT_WEIGHTS, QUANTIZED
from tauten.make.model.pass_ import Pass
from tauten.make.passes import PASSES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


Kind = Literal["float32", "int8", "int8-dynamic"]


@dataclass(frozen=True)
class Way:
    """An engine, and the options of its lowering."""

    engine: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Recipe:
    """Passes in order and a lowering, with its options; ``auto`` leaves both to the run. ``codec`` stores the weights.

    Its order is checked here, by the facts that each pass needs, gives and drops, before any compute is spent;
    ``RecipeError`` says which pass lacks what, and which earlier one took it.
    """

    name: str
    passes: tuple[Pass, ...] = ()
    lowering: str = "onnx"
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    codec: str = "plain"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):  # it names the candidate's folder
            raise RecipeError(
                "name: expected at most 100 letters, digits, '-', '_' and '.', a letter or digit first, "
                f"got {self.name!r}"
            )
        self._check_lowering()
        if self.codec not in CODECS.names():
            raise RecipeError(f"{self.name}: no codec {self.codec!r}; there are {', '.join(CODECS.names())}")
        facts = {FLOAT_WEIGHTS}
        taken: dict[str, str] = {}
        for step in self.passes:
            for fact in sorted(step.needs - facts):
                why = f"{taken[fact]} before it ends that" if fact in taken else "nothing before it gives that"
                raise RecipeError(f"{self.name}: {step.name} needs {fact!r}, but {why}")
            facts = (facts - step.drops) | step.gives
            taken.update(dict.fromkeys(step.drops, step.name))

    def _check_lowering(self) -> None:
        if self.lowering == AUTO:
            if self.options:
                raise RecipeError(f"{self.name}: options {dict(self.options)} need a lowering that is named")
            return
        if self.lowering not in LOWERINGS.names():
            raise RecipeError(
                f"{self.name}: no lowering {self.lowering!r}; there are {', '.join([AUTO, *LOWERINGS.names()])}"
            )
        try:
            LOWERINGS.get(self.lowering).chosen(self.options)
        except RecipeError as fault:
            raise RecipeError(f"{self.name}: {self.lowering}: {fault}") from None

    @property
    def trains(self) -> bool:
        """Whether a pass of it needs training data."""
        return any(step.trains for step in self.passes)

    @property
    def quantizes(self) -> bool:
        """Whether a pass of it quantizes."""
        return any(QUANTIZED in step.gives for step in self.passes)

    @property
    def kind(self) -> Kind:
        """What of it decides which way of lowering is fastest: ``int8-dynamic`` where nothing fixes ranges."""
        if not self.quantizes:
            return "float32"
        loose = ("quantize.dynamic", "quantize.weight_only")
        return "int8-dynamic" if any(step.name in loose for step in self.passes) else "int8"

    def on(self, way: Way) -> Recipe:
        """The same recipe lowered that way, where it leaves its engine to the run."""
        return replace(self, lowering=way.engine, options=way.options) if self.lowering == AUTO else self

    def to_json(self) -> dict[str, Any]:
        """``{"name", "passes": [{"pass": …, parameters…}], "lowering"}``.

        ``"options"`` stands where there are any, and ``"codec"`` where it is not ``plain``.
        """
        passes = [step.to_json() for step in self.passes]
        document: dict[str, Any] = {"name": self.name, "passes": passes, "lowering": self.lowering}
        if self.options:
            document["options"] = dict(self.options)
        if self.codec != "plain":
            document["codec"] = self.codec
        return document

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The recipe that ``to_json`` gave; parameters that are left out take their defaults."""
        if not isinstance(document, Mapping) or not isinstance(document.get("passes"), list):
            raise RecipeError(f"expected a recipe as an object with name and passes, got {document!r}")
        unknown = sorted(set(document) - {"name", "passes", "lowering", "options", "codec"})
        if unknown:
            raise RecipeError(f"a recipe has name, passes, lowering, options and codec; got {unknown}")
        return cls(
            name=str(document.get("name", "")),
            passes=tuple(pass_from_json(step) for step in document["passes"]),
            lowering=str(document.get("lowering", "onnx")),
            options=_options(document.get("options", {})),
            codec=str(document.get("codec", "plain")),
        )


def _options(document: object) -> dict[str, str]:
    if not isinstance(document, Mapping) or not all(isinstance(value, str) for value in document.values()):
        raise RecipeError(f"options: expected an object of texts, got {document!r}")
    return {str(name): value for name, value in document.items()}


def pass_from_json(document: object) -> Pass:
    """The pass that its ``to_json`` gave."""
    if not isinstance(document, Mapping) or "pass" not in document:
        raise RecipeError(f'expected a pass as an object with "pass" and its parameters, got {document!r}')
    try:
        kind = PASSES.get(str(document["pass"]))
    except PluginError as fault:
        raise RecipeError(str(fault)) from fault
    return kind.from_parameters({key: value for key, value in document.items() if key != "pass"})
