"""The OpenAPI document and the server say the same: schemathesis makes requests of the one and asks the other.

It holds, among others: what fits the schema is answered and what does not is refused; no 500; each status, type of
content, header and body is one that is described; other methods get 405 with ``Allow``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conformance.server import described, managed
from tests.conformance.test_clients import HERE, PYTHON
from tests.unit.serve.tiny import Running

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="build/clients is not there: make build/clients/installed")

CASES: dict[str, tuple[str, Callable[[Path], AbstractContextManager[Running]]]] = {
    "inference": ("^/v2/models/(one|fixed|varies)/infer$", lambda folder: described()),
    "all else": (
        r"^/(v2|v2/health/.*|v2/models/(stats|one(/(ready|stats|config))?)|[^/]*)$",
        lambda folder: described(),
    ),
    "repository": ("^/v2/repository/", managed),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.slow if what == "inference" else []) for what in CASES]
)
def test_the_server_is_as_it_is_described(tmp_path: Path, what: str) -> None:
    paths, serve = CASES[what]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with serve(tmp_path) as server:
        command = [
            *(str(PYTHON), "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--include-path-regex", paths, "--phases", "examples,coverage,fuzzing", "--max-examples", "15"),
            *(
                "--seed",
                "1",
                "--generation-database",
                "none",
                "--continue-on-failure",
                "--warnings",
                "off",
                "--no-color",
            ),
        ]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=850,
            env={**environment, "SCHEMATHESIS_HOOKS": str(HERE / "hooks.py")},
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "No tests were run" not in done.stdout
