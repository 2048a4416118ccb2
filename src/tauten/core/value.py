"""The base of every configuration value: frozen, validated where it is built, and equal after a JSON round-trip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

import pydantic

from tauten.errors import ConfigError

_DEEPEST: Final = 50
_MOST_FAULTS: Final = 8


def explain(error: pydantic.ValidationError) -> str:
    """One line for all faults: where, the rule, and the value that came."""
    lines = []
    for fault in error.errors(include_url=False)[:_MOST_FAULTS]:
        where = ".".join(str(part) for part in fault["loc"])
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            # A value inside this one has already said what it is and what came.
            lines.append(f"{where}: {cause}" if where else str(cause))
            continue
        rule = fault["msg"].removeprefix("Value error, ")
        if not where and fault["type"] == "value_error":
            # A rule between fields: all of them as they came would hide it.
            lines.append(rule)
            continue
        came = repr(fault.get("input"))
        if len(came) > 80:
            came = came[:77] + "..."
        lines.append(f"{where or 'value'}: {rule} (got {came})")
    if error.error_count() > _MOST_FAULTS:
        lines.append(f"and {error.error_count() - _MOST_FAULTS} more")
    return "; ".join(lines)


def _as_json(value: Any, where: str = "value", depth: int = 0) -> Any:
    """``value`` as JSON gives it back: tuples become lists, keys strings. ``ValueError`` says what is no JSON."""
    if depth > _DEEPEST:
        raise ValueError(f"{where}: nested deeper than {_DEEPEST}")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: expected a finite number, got {value}")
        return float(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str | int) for key in value):
            raise ValueError(f"{where}: expected strings as keys")
        return {str(key): _as_json(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item, f"{where}.{index}", depth + 1) for index, item in enumerate(value)]
    raise ValueError(f"{where}: expected what JSON can hold, got a {type(value).__name__}")


JsonObject = Annotated[dict[str, Any], pydantic.BeforeValidator(_as_json)]
"""A field for notes, parameters and options: a JSON object, held to that when the value is built."""


class Value(pydantic.BaseModel):
    """A frozen value.

    Raises ``ConfigError`` (or the subclass' ``raises``), never pydantic's own error.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    raises: ClassVar[type[ConfigError]] = ConfigError

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except pydantic.ValidationError as fault:
            raise self.raises(f"{type(self).__name__}: {explain(fault)}") from None

    def to_json(self) -> dict[str, Any]:
        """A JSON document (plain dicts, lists, strings and numbers)."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, document: object) -> Self:
        """The value that ``to_json`` gave."""
        try:
            return cls.model_validate(document)
        except pydantic.ValidationError as fault:
            faults = explain(fault)
            # What __init__ raised on the way has the name already.
            text = faults if faults.startswith(f"{cls.__name__}: ") else f"{cls.__name__}: {faults}"
            raise cls.raises(text) from None
