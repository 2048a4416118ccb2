"""``tauten serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tauten.cli.output import JSON, console


def command(
    artifact: Annotated[Path, typer.Argument(help="The folder of the artifact.")],
    name: Annotated[str | None, typer.Option(help="Name of the model in URLs; the artifact's own by default.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 lets the system choose.", min=0, max=65535)] = 8000,
    threads: Annotated[
        int | None, typer.Option(help="The engine's threads for one call; the artifact's own by default.", min=1)
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Calls at once; as many as the cores allow by default.", min=1, max=256)
    ] = None,
    max_body: Annotated[str, typer.Option(help="Largest body of a request, such as 512KB or 64MB.")] = "64MB",
    as_json: JSON = False,
) -> None:
    """Serve an artifact over HTTP with the Open Inference Protocol V2, until SIGTERM or Ctrl-C.

    What is under way is finished before the process ends.

    Example: `tauten serve build/digits/best --port 8000`
    """
    import json
    import logging

    from tauten.artifact.read import read_artifact
    from tauten.run.serve.model import ServedModel
    from tauten.run.serve.protocol.limits import Limits
    from tauten.run.serve.server import Server, run_loop, stop_signals
    from tauten.run.serve.settings import ServeSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    whole = read_artifact(artifact)
    threads = threads or whole.manifest.target.threads
    settings = ServeSettings(
        host=host, port=port, instances=instances or _instances(threads), limits=Limits(max_body_bytes=max_body)
    )
    model = ServedModel.load(whole, name=name, threads=threads)

    async def serve() -> int:
        server = Server([model], settings)
        with stop_signals() as asked:
            await server.start()
            # One line either way: who started the server reads until the line's end, since the output does not end.
            document = {"ready": True, "url": server.url, "models": server.models}
            print(json.dumps(document) if as_json else f"ready: {model.name} at {server.url}", flush=True)
            await asked.wait()
        console.print("stopping: what is under way is finished first; once more ends at once")
        return await server.stop()

    if run_loop(serve):
        _leave_at_once()


def _instances(threads: int) -> int:
    """As many calls at once as leave no core with two threads."""
    import os

    return max(1, len(os.sched_getaffinity(0)) // threads)


def _leave_at_once() -> None:
    """End although an engine call still runs: the interpreter would wait for its thread, maybe for ever."""
    import os
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
