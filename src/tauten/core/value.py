"""The base of every configuration value: frozen, validated where it is built, and equal after a JSON round-trip."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import pydantic

from tauten.errors import ConfigError


def explain(error: pydantic.ValidationError) -> str:
    """One line a fault: where, the rule, and the value that came."""
    lines = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"]) or "value"
        came = repr(fault.get("input"))
        if len(came) > 80:
            came = came[:77] + "..."
        lines.append(f"{where}: {fault['msg']} (got {came})")
    return "; ".join(lines)


class Value(pydantic.BaseModel):
    """A frozen value.

    Raises ``ConfigError`` (or the subclass' ``raises``), never pydantic's own error.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
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
            raise cls.raises(f"{cls.__name__}: {explain(fault)}") from None
