"""The process of ``measure_fresh``: loads one artifact, answers, and tells its own peak memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from tauten.artifact.read import read_artifact
from tauten.codecs import CODECS
from tauten.errors import TautenError
from tauten.run.engines import ENGINES, load
from tauten.run.measure._child import now_ns, open_messages, read_spec

_CALLS_AFTER_THE_FIRST = 5


def main(folder: Path) -> None:
    """Say when the first answer is there and what loading took of it, run a few times more, then say the peak."""
    send = open_messages()
    spec, inputs = read_spec(folder)
    try:
        # Backend and codec are imported first: what it takes to find a library says nothing of the artifact.
        manifest = read_artifact(spec["artifact"]).manifest
        ENGINES.get(manifest.engine)
        CODECS.get(manifest.codec)
        started = now_ns()
        engine = load(spec["artifact"], threads=spec["threads"])
        load_ms = (now_ns() - started) / 1e6
        engine(inputs)
        send({"answered": True, "load_ms": load_ms})
        for _ in range(_CALLS_AFTER_THE_FIRST):
            engine(inputs)
    except TautenError as fault:
        send({"error": str(fault)})
        return
    send({"peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """The most physical memory that this process ever held.

    Linux's ``ru_maxrss`` also counts the process that started this one, up to the moment of exec; ``VmHWM`` does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
