"""The page that tells what an artifact is: ``manifest.json``.

The schema is published beside this file as ``schema.json``; a test holds the two together.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from tauten.core.measure import Measure
from tauten.core.record import Record
from tauten.core.target import Target
from tauten.core.tensor import TensorSpec
from tauten.core.value import JsonObject, Value

SCHEMA_VERSION: Final = 1
MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"

FILE_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
"""A file of an artifact: no folder, no leading dot or dash."""
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}"
"""What a model is called: it stands in folders and URLs as it is."""


class Manifest(Value):
    """Everything an artifact says of itself.

    ``files`` gives each file's bytes; ``graph`` and ``weights`` name two of them. ``weights_bytes`` is the size of the
    decoded arrays, which bounds what a reader allocates. ``recipe`` is the JSON of the recipe that made it,
    ``key`` identifies task, recipe, target and seed together, and ``environment`` names the versions and the machine
    that it was made with.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=rf"^{NAME}$")]
    created: str
    tauten: str
    engine: Annotated[str, Field(min_length=1)]
    target: Target
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    graph: str
    weights: str
    codec: str = "plain"
    weights_bytes: Annotated[int, Field(ge=0)]
    files: Annotated[
        dict[str, Annotated[int, Field(ge=0)]],
        Field(
            json_schema_extra={"propertyNames": {"pattern": f"^{FILE_NAME}$", "not": {"enum": [MANIFEST, CHECKSUMS]}}}
        ),
    ]
    key: str = ""
    recipe: JsonObject = {}
    history: tuple[Record, ...] = ()
    measures: dict[str, Measure] = {}
    layers: dict[str, str] = {}
    environment: dict[str, str] = {}

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, int]) -> dict[str, int]:
        for name in files:
            if not re.fullmatch(FILE_NAME, name) or name in (MANIFEST, CHECKSUMS):
                raise ValueError(f"expected a plain file name inside the artifact, got {name!r}")
        return files

    @field_validator("inputs", "outputs")
    @classmethod
    def _one_name_each(cls, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise ValueError(f"expected names that differ, got {names}")
        return specs

    @field_validator("weights")
    @classmethod
    def _two_files(cls, weights: str, info: Any) -> str:
        if weights == info.data.get("graph"):
            raise ValueError(f"graph and weights are one file: {weights!r}")
        return weights
