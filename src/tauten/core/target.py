"""Where a model will run, and what must hold of it there."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tauten.core.value import Value
from tauten.errors import ConfigError

AUTO = "auto"
"""In place of an engine's name: the one that measures best."""

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
    """The machine a model is made for, and the engines and precisions that it may use there.

    ``engine`` is the first of ``engines``; either says the other. ``threads`` are an engine's intra-op threads: those
    that share one operation. ``inter_op`` threads run operations beside each other. ``affinity`` names the cores that
    the threads are bound to, none for the system's choice. ``spinning`` threads wait for work without sleeping, which
    in a server takes the core from the next instance. ``batch`` is the largest batch that comes in one call.
    """

    name: str
    engine: Annotated[str, Field(min_length=1)] = "onnx"
    engines: tuple[Annotated[str, Field(min_length=1)], ...] = ("onnx",)
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    inter_op: Annotated[int, Field(ge=1, le=1024)] = 1
    affinity: Annotated[tuple[Annotated[int, Field(ge=0, lt=65536)], ...], Field(max_length=1024)] = ()
    spinning: bool = False
    batch: Annotated[int, Field(ge=1)] = 32
    precisions: tuple[Precision, ...] = ("float32", "int8")

    @model_validator(mode="before")
    @classmethod
    def _engines(cls, given: object) -> object:
        """Let either of the two fields say the other."""
        if not isinstance(given, Mapping):
            return given
        if "engine" in given and "engines" not in given:
            return {**given, "engines": (given["engine"],)}
        named = given.get("engines")
        if "engine" not in given and isinstance(named, list | tuple) and named:
            return {**given, "engine": named[0]}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.engines[:1] != (self.engine,) or len(set(self.engines)) < len(self.engines):
            raise ValueError(
                f"engines: expected different names, {self.engine!r} (the engine) first, got {list(self.engines)}"
            )
        if len(set(self.affinity)) < len(self.affinity):
            raise ValueError(f"affinity: expected different cores, got {list(self.affinity)}")
        return self

    def lowering(self, engine: str | None) -> str:
        """What recipes that name no engine are lowered for: ``engine``, by default the first; ``auto`` as it is.

        Raises ``ConfigError`` for one that the target does not have.
        """
        if engine and engine not in (AUTO, *self.engines):
            raise ConfigError(
                f"engine: expected {AUTO} or one of target {self.name} ({', '.join(self.engines)}), got {engine!r}"
            )
        return engine or self.engine


PRESETS = {
    target.name: target
    for target in (
        # One thread an instance: a server scales by instances, and small models lose time to thread hand-offs.
        Target(
            name="server-cpu",
            engines=("onnx", "openvino", "inductor"),
            precisions=("float32", "float16", "bfloat16", "int8", "int4"),
        ),
        Target(
            name="gpu",
            engines=("onnx", "inductor"),
            device="cuda",
            precisions=("float32", "float16", "bfloat16", "int8"),
        ),
        # ONNX Runtime comes with Tauten itself; ExecuTorch with an extra, so that it is measured where it is there.
        Target(
            name="mobile", engines=("onnx", "executorch"), batch=1, precisions=("float32", "float16", "int8", "int4")
        ),
        Target(name="iot", engines=("onnx", "executorch"), batch=1, precisions=("int8", "int4")),
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
