"""What takes part in a comparison: a pass whose strength is varied."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tauten.errors import RecipeError
from tauten.make.model.pass_ import Pass
from tauten.make.passes import PASSES

SHORT = {"dynamic": "dynamic.early_exit"}
"""Short names of strategies that are not the last part of a pass' name."""
STRENGTHS = ("ratio", "share")
"""The parameter of a pass that a comparison varies: the first of these that it has."""


@dataclass(frozen=True)
class Contender:
    """A pass whose strength is varied, by the name that it was asked for."""

    label: str
    kind: type[Pass]
    parameters: Mapping[str, Any]

    @property
    def strength(self) -> str:
        """The parameter that a ratio sets."""
        return next(name for name in STRENGTHS if name in {field.name for field in dataclasses.fields(self.kind)})

    def at(self, ratio: float) -> Pass:
        """The pass at a ratio; ``RecipeError`` where it cannot be."""
        return self.kind.from_parameters({**self.parameters, self.strength: ratio})

    def name(self, ratio: float) -> str:
        """What its candidates are called."""
        return f"{re.sub(r'[^A-Za-z0-9._]+', '-', self.label).strip('-._')}-{ratio:g}"


def find_contender(text: str) -> Contender:
    """A strategy by name: ``prune.structured``, ``structured``, or ``structured:criterion=l1`` with parameters.

    Any pass that has a ``ratio`` or a ``share`` is one. ``RecipeError`` where there is no such pass, or several.
    """
    label = text.strip()
    short, *given = label.split(":")
    whole = SHORT.get(short, short)
    names = [name for name in PASSES.names() if name == whole or (whole == short and name.endswith(f".{short}"))]
    if len(names) != 1:
        said = f"{', '.join(names)} are called so: give the whole name" if names else _there_are()
        raise RecipeError(f"passes: no strategy named {short!r}; {said}")
    kind = PASSES.get(names[0])
    if not {field.name for field in dataclasses.fields(kind)} & set(STRENGTHS):
        raise RecipeError(f"passes: {names[0]} has no {' or '.join(STRENGTHS)} to vary; {_there_are()}")
    parameters = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"passes: {label}: expected NAME:parameter=value, got {pair!r}")
        parameters[key] = _value(value)
    return Contender(label, kind, parameters)


def _there_are() -> str:
    fitting = [
        name for name, kind in PASSES.all().items() if {f.name for f in dataclasses.fields(kind)} & set(STRENGTHS)
    ]
    return f"there are {', '.join(fitting)}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
