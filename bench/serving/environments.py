"""The peers' virtual environments: made once, with the versions that ``peers.toml`` pins."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

from bench.serving.models import FOLDER

PINS = Path(__file__).with_name("peers.toml")


def packages(name: str) -> list[str]:
    """What is installed into the environment ``name``."""
    told = tomllib.loads(PINS.read_text("utf-8"))
    return [*told["shared"], *told["environments"][name]]


def python(name: str) -> Path:
    """The interpreter of the environment ``name``, made where it is not there or was made with other versions.

    The environment "" is the one that runs this.
    """
    if not name:
        return Path(sys.executable)
    folder = (FOLDER / "venvs" / name).absolute()
    wanted, made = json.dumps(packages(name)), folder / "packages.json"
    if not made.is_file() or made.read_text("utf-8") != wanted:
        print(f"installing {name}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages(name)], check=True)
        made.write_text(wanted, "utf-8")
    return folder / "bin" / "python"


def check_own() -> None:
    """That the peers run the ONNX Runtime and the NumPy that Tauten runs here."""
    for pinned in tomllib.loads(PINS.read_text("utf-8"))["shared"]:
        name, _, wanted = pinned.partition("==")
        if version(name) != wanted:
            raise SystemExit(f"{PINS.name} pins {pinned}, this environment has {version(name)}: pin that one instead")
