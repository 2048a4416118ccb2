"""The groups that the graph finds in a small ResNet, held against a file.

A change in what it finds shows as a diff. Where it is meant: ``TAUTEN_GOLDEN=write pytest tests/golden/test_graph.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.graph import nets

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "convnext"])
def test_groups(name: str) -> None:
    make, specs = nets.HANDMADE[name]
    coupling = nets.of(make(), specs)
    found = {
        "groups": [
            {
                "name": group.name,
                "units": group.units,
                "slots": [f"{slot.parameter}:{slot.dim} {slot.role} x{len(slot.index)}" for slot in group.slots],
                "shaped_by": list(group.shaped_by),
            }
            for group in coupling.groups
        ],
        "refused": coupling.refused_layers(),
    }
    text = json.dumps(found, indent=2) + "\n"
    file = HERE / f"graph_{name}.json"
    if os.environ.get("TAUTEN_GOLDEN") == "write":
        file.write_text(text, "utf-8")
    assert text == file.read_text("utf-8")
