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


class Stage(Value):
    """One of several graphs of a model that may answer early.

    It reads inputs of the model and what earlier stages handed on, by name, and gives the model's outputs for its rows.
    ``decides`` names the output ``(batch, 1)`` that says which of them leave with these; all do where it is empty.
    ``whole`` are values that are handed on as they are, for they hold no rows. The rest tells what was decided by:
    where the exit reads its features, which measure of confidence, from which threshold on, and the share of rows that
    left here when the threshold was set.
    """

    graph: str
    decides: str = ""
    whole: tuple[str, ...] = ()
    at: str = ""
    confidence: str = ""
    threshold: float | None = None
    share: Annotated[float, Field(ge=0, le=1)] | None = None


class Manifest(Value):
    """Everything an artifact says of itself.

    ``files`` gives each file's bytes; ``graph`` and ``weights`` name two of them. ``weights_bytes`` is the size of the
    decoded arrays, which bounds what a reader allocates. ``four_bit`` gives the shapes of weights that are stored as
    two numbers a byte. ``settings`` tell the engine how to run the graph. ``recipe`` is the JSON of the recipe that
    made it, ``key`` identifies task, recipe, target and seed together, and ``environment`` names the versions and the
    machine that it was made with. ``stages`` are there where the model has early exits; ``graph`` is then the first
    one's.
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
    stages: tuple[Stage, ...] = ()
    codec: str = "plain"
    four_bit: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] = {}
    settings: JsonObject = {}
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

    @field_validator("stages")
    @classmethod
    def _one_leads_to_the_next(cls, stages: tuple[Stage, ...], info: Any) -> tuple[Stage, ...]:
        graphs = [stage.graph for stage in stages]
        if stages and (graphs[0] != info.data.get("graph") or len({*graphs, info.data.get("weights")}) <= len(graphs)):
            raise ValueError(f"expected a graph file of its own for each stage, the first {info.data.get('graph')!r}")
        if any(bool(stage.decides) == (stage is stages[-1]) for stage in stages):
            raise ValueError("expected each stage but the last to name the output that decides which rows leave")
        return stages

    @property
    def graphs(self) -> tuple[str, ...]:
        """The graph file, or those of all stages in order."""
        return tuple(stage.graph for stage in self.stages) or (self.graph,)
