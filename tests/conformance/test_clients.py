"""Independent clients of the protocol agree with the server. ``make test`` gives them an environment of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conformance.server import several

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / "build" / "clients" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="build/clients is not there: make build/clients/installed")


def run(script: str, *arguments: str) -> None:
    """Run a script with the clients, and tell what it printed where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), str(HERE / script), *arguments], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert done.stdout.endswith("all as expected\n")


@pytest.mark.parametrize("script", ["triton_http.py", "kserve_http.py"])
def test_clients_of_http(tmp_path: Path, script: str) -> None:
    with several(tmp_path) as server:
        run(script, server.url)


@pytest.mark.parametrize("script", ["triton_grpc.py", "kserve_grpc.py"])
def test_clients_of_grpc(tmp_path: Path, script: str) -> None:
    pytest.importorskip("grpc", reason="the extra grpc is not installed")
    with several(tmp_path, grpc_port=0) as server:
        assert server.server.grpc_target is not None
        run(script, server.server.grpc_target)
