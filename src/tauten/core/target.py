"""Where a model will run, and what must hold of it there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from tauten.core.value import Value
from tauten.errors import ConfigError

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str | int) -> int:
    """A size in bytes: ``50KB`` (1,000s), ``2MiB`` (1,024s) or a plain number.

    >>> parse_bytes("50KB"), parse_bytes("2MiB"), parse_bytes(7)
    (50000, 2097152, 7)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match and _UNITS.get(match[2].upper())
    if not match or not unit:
        raise ConfigError(f"expected a size such as 50KB, 2MB or 512KiB, got {text!r}")
    return int(float(match[1]) * unit)


class Budget(Value):
    """What must hold; a limit left out does not bind.

    ``max_drop`` is in points of the metric (for a metric in percent, one point is one percentage point),
    ``max_latency_ms`` bounds p95 at batch 1.
    """

    max_drop: Annotated[float, Field(ge=0)] | None = None
    max_bytes: Annotated[int, Field(gt=0)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    max_memory_mib: Annotated[float, Field(gt=0)] | None = None

    @field_validator("max_bytes", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value


class Target(Value):
    """The machine and engine a model is made for.

    ``threads`` are the engine's intra-op threads, ``batch`` the largest batch it will see in one call.
    """

    name: str
    engine: str = "onnx"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    batch: Annotated[int, Field(ge=1)] = 32
    precisions: tuple[Precision, ...] = ("float32", "int8")


PRESETS = {
    target.name: target
    for target in (
        # One thread an instance: a server scales by instances, and small models lose time to thread hand-offs.
        Target(name="server-cpu"),
        Target(name="gpu", device="cuda", precisions=("float32", "float16")),
        Target(name="mobile", batch=1),
        Target(name="iot", batch=1, precisions=("int8",)),
    )
}


def find_target(name: str | Target) -> Target:
    """A preset by name, or the target that a TOML file describes."""
    if isinstance(name, Target):
        return name
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix == ".toml":
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
            raise ConfigError(f"target file {name}: {fault}") from None
        return Target.from_json({"name": path.stem, **document})
    raise ConfigError(f"no target named {name!r}: use one of {', '.join(PRESETS)}, or a .toml file")
