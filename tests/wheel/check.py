"""With the wheel alone, without extras: ``inspect``, ``evaluate`` and ``serve`` work on an artifact made elsewhere.

Usage: ``python check.py FOLDER``, where FOLDER is what ``make.py`` wrote and ``digits.py`` lies beside this file.
Must run in an environment into which nothing but Tauten's wheel was installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np

import tauten
from tauten.codecs._native import Native, coder

HERE = Path(__file__).resolve().parent
TAUTEN = Path(sys.executable).parent / "tauten"


def run(*arguments: object, code: int = 0) -> dict[str, object]:
    """The JSON that a verb prints; its exit code must be ``code``."""
    command = [str(TAUTEN), *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != code:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def check(what: str, holds: bool) -> None:
    """Say it, and end where it does not hold."""
    print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        sys.exit(1)


def ask(port: int, image: np.ndarray) -> np.ndarray:
    """What the server answers, by the Open Inference Protocol."""
    tensor = {"name": "image", "shape": image.shape, "datatype": "FP32", "data": image.ravel().tolist()}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/rows/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        output = json.load(answer)["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def ready(port: int) -> bool:
    """Whether the server says that it is ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


made = Path(sys.argv[1]).resolve()
known = np.load(made / "answer.npz")

check("the wheel is what is imported", HERE not in Path(tauten.__file__).parents or "venv" in tauten.__file__)
for module in ("torch", "onnx", "onnxscript", "plotly"):
    check(f"{module} is not importable", importlib.util.find_spec(module) is None)

check(
    "load answers as where it was made",
    np.allclose(tauten.load(made / "artifact")({"image": known["image"]})["output"], known["output"], atol=1e-4),
)
check("the wheel brought the compiled coder", isinstance(coder(), Native))
check(
    "a coded artifact answers alike",
    np.allclose(tauten.load(made / "coded")({"image": known["image"]})["output"], known["output"], atol=1e-4),
)
check("inspect names it", "rows" in json.dumps(run("inspect", made / "artifact")))
check("evaluate measures it", "quality" in json.dumps(run("evaluate", made / "artifact", "--task", "digits.py:task")))

port = free_port()
server = subprocess.Popen([TAUTEN, "serve", made / "artifact", "--port", str(port)])
try:
    deadline = time.monotonic() + 60
    while not ready(port) and server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    check("serve answers as where it was made", np.allclose(ask(port, known["image"]), known["output"], atol=1e-4))
finally:
    server.terminate()
    server.wait(30)

broken = made / "broken"
shutil.copytree(made / "artifact", broken)
graph = next(path for path in broken.iterdir() if path.suffix == ".onnx")
graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
check("a changed byte is refused", "sha256" in json.dumps(run("inspect", broken, code=1)))
