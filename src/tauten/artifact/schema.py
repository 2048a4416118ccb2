"""The published JSON schema of ``manifest.json``.

It is made from the ``Manifest`` itself; after a change of that, write it anew::

    python -m tauten.artifact.schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tauten.artifact.manifest import Manifest

PATH = Path(__file__).with_name("schema.json")


def schema() -> dict[str, Any]:
    """The schema as a JSON document (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), "utf-8")
