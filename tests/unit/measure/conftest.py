"""Engines that misbehave, installed as a third party's would be, where a fresh process finds them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tauten.testing.artifacts import tiny_artifact

ENGINES = """
import os, signal, sys, time
import numpy as np
from tauten.errors import EngineError
from tauten.run.engines.null import Null

class Crash(Null):
    def run(self, inputs):
        print("about to crash", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

class Fail(Null):
    def run(self, inputs):
        raise EngineError("the accelerator is on strike")

class Bug(Null):
    def run(self, inputs):
        raise RuntimeError("a bug of its own")

class Chatty(Null):
    @classmethod
    def load(cls, artifact, *, threads):
        print("Welcome to Chatty 1.0!", flush=True)
        os.write(1, b"and from C, too\\n")
        return super().load(artifact, threads=threads)

class Silent(Null):
    def run(self, inputs):
        open(os.environ["PID_FILE"], "w").write(str(os.getpid()))
        time.sleep(60)

class Heavy(Null):
    def run(self, inputs):
        np.ones(100 * 2**20, np.uint8).sum()
        return super().run(inputs)

class Strict(Null):
    def run(self, inputs):
        if "torch" in sys.modules or "onnxruntime" in sys.modules or "tauten.make" in sys.modules:
            raise EngineError("the process imported more than it needs")
        if os.path.exists("tauten.py") and os.path.abspath("tauten.py") == sys.modules["tauten"].__file__:
            raise EngineError("shadowed")
        return super().run(inputs)

class Threads(Null):
    @classmethod
    def load(cls, artifact, *, threads):
        if threads != 2:
            raise EngineError(f"expected 2 threads, got {threads}")
        return super().load(artifact, threads=threads)
"""

Make = Callable[..., Path]


@pytest.fixture
def artifact_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """An artifact for one of the engines above (or a bundled one) by name."""
    plugins = tmp_path / "plugins"
    info = plugins / "odd_engines-1.0.dist-info"
    info.mkdir(parents=True)
    (plugins / "odd_engines.py").write_text(ENGINES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-engines\nVersion: 1.0\n")
    names = ("Crash", "Fail", "Bug", "Chatty", "Silent", "Heavy", "Strict", "Threads")
    lines = [f"{name.lower()} = odd_engines:{name}" for name in names]
    (info / "entry_points.txt").write_text("[tauten.engines]\n" + "\n".join(lines) + "\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(plugins), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))

    def make(engine: str, name: str = "", **fields: object) -> Path:
        return tiny_artifact(tmp_path / (name or engine), engine=engine, **fields).path

    return make
