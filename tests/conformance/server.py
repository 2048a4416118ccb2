"""The server that independent clients ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tauten.core.tensor import TensorSpec
from tauten.run.serve.catalog import Catalog
from tauten.run.serve.handler import with_handler
from tauten.run.serve.model import ServedModel
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES
from tauten.run.serve.server import Server
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.artifacts import null_artifact
from tests.unit.serve.tiny import Double, Running, Same, serving

REVERSED = """
import numpy as np
from tauten.run.serve.protocol.elements import BytesSpec

inputs = [BytesSpec(name="picture", shape=("batch", 2))]
outputs = [BytesSpec(name="back", shape=("batch", 2))]

def before(inputs):
    return {"x": np.zeros((len(inputs["picture"]), 3))}

def after(outputs, inputs):
    return {"back": [[element[::-1] for element in row] for row in inputs["picture"]]}
"""
EVERY = [TensorSpec(name=dtype, shape=("batch", 2), dtype=dtype) for dtype in DATATYPES]
FIXED = [
    TensorSpec(name=dtype, shape=(2, 3) if index % 2 else (1,), dtype=dtype)
    for index, dtype in enumerate(name for name in DATATYPES if name not in BINARY_ONLY)
]


@contextmanager
def several(folder: Path, **settings: int) -> Iterator[Running]:
    """``m`` in two versions, ``every`` of all datatypes, ``reversed`` of BYTES, and ``digits`` from a repository."""
    null_artifact(folder / "digits")
    handler = folder / "reversed.py"
    handler.write_text(REVERSED, "utf-8")
    models = [
        ServedModel("m", Double()),
        ServedModel("m", Double(), version="2"),
        ServedModel("every", Same(EVERY)),
        ServedModel("reversed", with_handler(Double(), handler)),
    ]
    chosen = ServeSettings(port=0, instances=1, **settings)
    with serving(Server(models, chosen, catalog=Catalog(directory=str(folder)))) as found:
        yield found


@contextmanager
def described() -> Iterator[Running]:
    """``fixed``, whose shapes do not vary and which has all datatypes that JSON can carry, ``one`` and ``varies``."""
    models = [
        ServedModel("fixed", Same(FIXED)),
        ServedModel("one", Same([TensorSpec(name="x", shape=(2, 2), dtype="float32")])),
        ServedModel("varies", Same([TensorSpec(name="x", shape=("batch", 3), dtype="float32")])),
    ]
    with serving(Server(models, ServeSettings(port=0, instances=1))) as found:
        yield found


@contextmanager
def managed(folder: Path) -> Iterator[Running]:
    """A server of one model, which may be unloaded."""
    null_artifact(folder / "digits")
    catalog = Catalog(directory=str(folder))
    with serving(Server([], ServeSettings(port=0, instances=1), catalog=catalog)) as found:
        yield found
