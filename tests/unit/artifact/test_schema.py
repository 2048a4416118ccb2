"""The published schema and the reader say the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tauten.artifact import schema
from tauten.artifact.manifest import MANIFEST, Manifest
from tauten.errors import ConfigError
from tauten.testing.artifacts import tiny_artifact

PUBLISHED = json.loads(schema.PATH.read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(PUBLISHED)


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tiny_artifact(tmp_path / "tiny").path / MANIFEST).read_text("utf-8"))


def test_the_file_is_what_the_manifest_gives() -> None:
    assert schema.PATH.read_text("utf-8") == schema.text(), "run: python -m tauten.artifact.schema"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)


def test_a_manifest_fits(document: dict[str, Any]) -> None:
    VALIDATOR.validate(document)
    assert Manifest.from_json(document).to_json() == document


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema_version=2),
        lambda d: d.pop("name"),
        lambda d: d.update(name="../up"),
        lambda d: d.update(extra=1),
        lambda d: d.update(inputs=[]),
        lambda d: d["inputs"][0].update(dtype="complex64"),
        lambda d: d["inputs"][0].update(shape=[-1]),
        lambda d: d["inputs"][0].update(name=""),
        lambda d: d["files"].update({"../up": 1}),
        lambda d: d["files"].update({"manifest.json": 1}),
        lambda d: d["files"].update({"graph.bin": -1}),
        lambda d: d["target"].update(threads=0),
        lambda d: d["target"].update(device="tpu"),
        lambda d: d["measures"]["size_bytes"].update(better="bigger"),
        lambda d: d["measures"]["size_bytes"].update(repeats=0),
        lambda d: d.update(history=[{"name": "p"}]),
        lambda d: d.update(recipe=[]),
    ],
)
def test_what_the_reader_refuses_the_schema_refuses(
    document: dict[str, Any], change: Callable[[dict[str, Any]], object]
) -> None:
    change(document)
    with pytest.raises(ConfigError):
        Manifest.from_json(document)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(document)
