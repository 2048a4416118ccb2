"""Compiles the arithmetic coder's inner loop while a wheel or an editable install is built.

One C99 file becomes one shared library without ties to a Python version, so a wheel serves every Python of its
platform. The compiler is ``$CC``, else ``cc``, ``gcc`` or ``clang``, else the ``ziglang`` package, which is asked for
only where there is no other. Where nothing compiles, the wheel is a pure one and the coder's Python twin does the work.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src", "tauten", "codecs")
SOURCE = FOLDER / "_mixing.c"
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
LIBRARY = FOLDER / f"_mixing_native{SUFFIX}"
FLAGS = ("-std=c99", "-O3", "-shared", "-fvisibility=hidden", "-DNDEBUG")
LIMIT_S = 300


class CustomBuildHook(BuildHookInterface):
    """Adds the library to the wheel, and the platform to its tag."""

    def dependencies(self) -> list[str]:
        """What must be installed before ``initialize``: a compiler, where the machine has none."""
        return [] if _own_compiler() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; a failure is told and leaves a wheel without the library."""
        fault = _compile(Path(self.root))
        if fault:
            (Path(self.root) / LIBRARY).unlink(missing_ok=True)  # one of another version would be loaded
            self.app.display_warning(f"the arithmetic coder was not compiled; its Python twin is slow: {fault}")
            return
        build_data["artifacts"].append(LIBRARY.as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def _own_compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return []


def _compile(root: Path) -> str:
    """Write the library; what went wrong, or nothing."""
    # Left alone, zig compiles for the very processor that it runs on.
    command = _own_compiler() or [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]
    position = () if sys.platform == "win32" else ("-fPIC",)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / LIBRARY.name
        try:
            done = subprocess.run(
                [*command, *FLAGS, *position, str(root / SOURCE), "-o", str(made)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as fault:
            return str(fault)
        if done.returncode:
            return done.stderr.strip()[-2000:] or f"{command[0]} ended with {done.returncode}"
        # Renamed into place, so that a process which has the old library open keeps it whole.
        beside = root / LIBRARY.with_name(f"{LIBRARY.name}.new")
        shutil.copyfile(made, beside)
        beside.replace(root / LIBRARY)
    return ""
