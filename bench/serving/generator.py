"""The load generator and the server that shows its limit: compiled when first needed, run on a core of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.serving.models import FOLDER

FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


def compiled(name: str) -> Path:
    """The program ``name`` of this folder's C file of that name, compiled where the file is newer.

    The compiler is ``$CC``, else ``cc``, ``gcc`` or ``clang``, else the ``ziglang`` package: as for the wheel.
    """
    source, made = Path(__file__).with_name(f"{name}.c"), FOLDER / name
    if made.is_file() and made.stat().st_mtime > source.stat().st_mtime:
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    fresh = made.with_suffix(".new")
    subprocess.run([*_compiler(), *FLAGS, str(source), "-o", str(fresh), "-lm"], check=True)
    fresh.replace(made)
    return made


def _compiler() -> list[str]:
    for command in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return [sys.executable, "-m", "ziglang", "cc"]


def load(
    port: int,
    requests: Path,
    connections: int,
    seconds: float,
    warmup: float,
    rate: float | None = None,
    seed: int = 0,
    pids: Sequence[int] = (),
    wait: bool = False,
) -> dict[str, Any]:
    """What ``load.c`` told of one run against ``port``; see there what it counts. ``wait``: it shares its core."""
    command = [str(compiled("load")), str(port), str(requests), "--connections", str(connections)]
    command += ["--seconds", str(seconds), "--warmup", str(warmup), "--seed", str(seed)]
    command += ["--rate", str(rate)] if rate else []
    command += ["--pids", ",".join(map(str, pids))] if pids else []
    command += ["--wait"] if wait else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + warmup + 60, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"the load generator ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
