"""The folder of a run: what is finished stays, whatever ends the run.

::

    OUT/
      result.json  report.html  best/         written when a run of optimize ends
      compare.json  compare.html              written when a run of compare ends
      pictures/                               PNG files of either
      candidates/NAME/                        one artifact each, with its key and measures in its manifest
      adapt.json                              written when a run of adapt ends
      .state/                                 trained weights of the task, checkpoints of trainings, the notes of coded
                                              candidates, and the lock
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tauten.artifact.read import Artifact, read_artifact
from tauten.codecs.plain import PLAIN
from tauten.core.record import Record
from tauten.core.tensor import Arrays
from tauten.core.value import Value
from tauten.errors import ArtifactError, ConfigError
from tauten.make.search.tried import Costs, Kept, Raced, Tried


class Workspace:
    """Paths and finished work of one output folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.best = self.root / "best"
        self.result = self.root / "result.json"
        self.report = self.root / "report.html"
        self.comparison = self.root / "compare.json"
        self.comparison_report = self.root / "compare.html"
        self.adaptation = self.root / "adapt.json"
        self.pictures = self.root / "pictures"
        self._state = self.root / ".state"
        self.checkpoints = self._state / "training"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder for one run; ``ConfigError`` where another run holds it or it cannot be written."""
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            lock = (self._state / "lock").open("w")
        except OSError as fault:
            raise ConfigError(f"out: cannot write to {self.root}: {fault.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"out: another run is using {self.root}: wait for it, or give another --out"
                ) from None
            self._sweep()
            yield

    def candidate(self, name: str) -> Path:
        return self.root / "candidates" / name

    def relative(self, artifact: Artifact) -> str:
        return artifact.path.relative_to(self.root).as_posix()

    def finished(self, name: str, key: str) -> Artifact | None:
        """The artifact of an earlier run, where it is whole and was made the same way."""
        path = self.candidate(name)
        if not path.is_dir():
            return None
        try:
            artifact = read_artifact(path)
        except ArtifactError:
            return None  # damaged or of another version: it is made again
        return artifact if artifact.manifest.key == key else None

    def load_fitted(self, key: str) -> Arrays | None:
        """Trained weights of an earlier run, where they are whole."""
        try:
            return PLAIN.decode((self._state / f"fitted-{key}.safetensors").read_bytes())
        except (OSError, ArtifactError):
            return None

    def save_fitted(self, key: str, weights: Arrays) -> None:
        """Keep trained weights, so that a later run need not train again."""
        _replace(self._state / f"fitted-{key}.safetensors", PLAIN.encode(weights))

    def load_trial(self, key: str) -> Tried | None:
        """What an earlier run found of a trial, where it is whole."""
        try:
            return Tried.from_json(json.loads((self._state / f"trial-{key}.json").read_text("utf-8")))
        except (OSError, ValueError):
            return None

    def save_trial(self, key: str, found: Tried) -> None:
        """Keep what was found of a trial."""
        _replace(self._state / f"trial-{key}.json", json.dumps(found.to_json()).encode())

    def load_history(self, key: str) -> tuple[Record, ...] | None:
        """What was done to a candidate, with all notes, where an earlier run or this one kept it."""
        try:
            return Kept.from_json(json.loads((self._state / f"history-{key}.json").read_text("utf-8"))).history
        except (OSError, ValueError):
            return None

    def save_history(self, key: str, history: tuple[Record, ...]) -> None:
        """Keep what was done to a candidate whose own manifest has no room for notes."""
        _replace(self._state / f"history-{key}.json", json.dumps(Kept(history=history).to_json()).encode())

    def load_race(self, key: str) -> Raced | None:
        """What an earlier run found of engines, where it is whole."""
        try:
            return Raced.from_json(json.loads((self._state / f"race-{key}.json").read_text("utf-8")))
        except (OSError, ValueError):
            return None

    def save_race(self, key: str, found: Raced) -> None:
        """Keep what was found of engines."""
        _replace(self._state / f"race-{key}.json", json.dumps(found.to_json()).encode())

    def load_costs(self, key: str) -> Costs | None:
        """What an earlier run found that layers cost, where it is whole."""
        try:
            return Costs.from_json(json.loads((self._state / f"costs-{key}.json").read_text("utf-8")))
        except (OSError, ValueError):
            return None

    def save_costs(self, key: str, found: Costs) -> None:
        """Keep what was found that layers cost."""
        _replace(self._state / f"costs-{key}.json", json.dumps(found.to_json()).encode())

    def withdraw(self) -> None:
        """Take back the last run's answer: from here on it would be about another question."""
        self.result.unlink(missing_ok=True)
        self.report.unlink(missing_ok=True)
        shutil.rmtree(self.best, ignore_errors=True)

    def publish(self, result: Value, path: Path) -> None:
        """Write ``result`` as JSON, whole or not at all; the checkpoints of what it tells of are of no more use."""
        _replace(path, json.dumps(result.to_json(), indent=1, allow_nan=False).encode())
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a killed run left half-written."""
        for folder in (self.root, self.root / "candidates", self._state):
            for path in folder.glob(".*.partial"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    fresh = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)  # half a file helps nobody, least of all on a full disk
        raise
