"""``tauten serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tauten.cli.output import JSON

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tauten.run.serve.cache.settings import CacheSettings
    from tauten.run.serve.fronts import Front
    from tauten.run.serve.server import Server
    from tauten.run.serve.settings import ServeSettings

_STOPPING: Final = "stopping: what is under way is finished first; once more ends at once"


def command(
    artifacts: Annotated[
        list[str] | None,
        typer.Argument(help="Artifacts, or folders of versions 1, 2, ...; NAME=PATH and NAME/VERSION=PATH name them."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in URLs; the artifact's own by default.")] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="NAME=VERSION that answers where none is named; the highest by default.")
    ] = None,
    repository: Annotated[
        str | None, typer.Option(help="Folder of models that are served, and loaded and unloaded on request.")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(help="Seconds between looks whether an artifact has changed; never by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 lets the system choose.", min=0, max=65535)] = 8000,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port for gRPC, which needs tauten[grpc]; none by default.", min=0, max=65535)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="The engine's threads for one call; the artifact's own by default.", min=1)
    ] = None,
    instances: Annotated[
        int | None, typer.Option(help="Batches of a model at once; as the cores allow by default.", min=1, max=256)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that run the model, not threads; none by default.", min=1, max=256)
    ] = None,
    fronts: Annotated[int, typer.Option(help="Whole servers that share the port, for many cores.", min=1, max=256)] = 1,
    balancer: Annotated[
        str, typer.Option(help="Which instance runs the next batch: pull, round_robin, least_outstanding or p2c.")
    ] = "pull",
    handler: Annotated[
        Path | None, typer.Option(help="Python file with what runs before and after the model.", dir_okay=False)
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Remember answers: memory, or a Redis that servers share, as redis://HOST:6379/0."),
    ] = None,
    cache_size: Annotated[str, typer.Option(help="Most memory for remembered answers, such as 64MB or 2GB.")] = "256MB",
    cache_age: Annotated[float, typer.Option(help="Seconds for which an answer is given again.")] = 3600.0,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token that requests must carry; TAUTEN_TOKEN says one too.", dir_okay=False),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file with the certificate for HTTPS; none by default.", dir_okay=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file with its key, where the certificate's holds none.", dir_okay=False)
    ] = None,
    log_format: Annotated[str, typer.Option(help="How to log: text, or json with an object a line.")] = "text",
    access_log: Annotated[bool, typer.Option("--access-log", help="Log each request.")] = False,
    traces: Annotated[
        bool, typer.Option("--traces", help="Send traces by OTLP to OTEL_EXPORTER_OTLP_ENDPOINT; needs tauten[traces].")
    ] = False,
    exact_batches: Annotated[
        bool, typer.Option("--exact-batches", help="Let no two requests share a batch, so that none changes another.")
    ] = False,
    max_body: Annotated[str, typer.Option(help="Largest body of a request, such as 512KB or 64MB.")] = "64MB",
    as_json: JSON = False,
) -> None:
    """Serve artifacts with the Open Inference Protocol V2, over HTTP and gRPC, until SIGTERM or Ctrl-C.

    What is under way is finished before the process ends. SIGHUP loads artifacts that have changed.

    Example: `tauten serve build/digits/best --port 8000`
    """
    import gc

    from tauten.artifact.read import Artifact, read_artifact
    from tauten.errors import ConfigError
    from tauten.run.serve.balancers import BALANCERS
    from tauten.run.serve.catalog import Source, make_catalog
    from tauten.run.serve.logs import set_up
    from tauten.run.serve.model import ServedModel
    from tauten.run.serve.protocol.limits import Limits
    from tauten.run.serve.server import Server, reload_signal, run_loop, stop_signals
    from tauten.run.serve.settings import Observing, Security, ServeSettings

    if log_format not in ("text", "json"):
        raise ConfigError(f"--log-format: expected text or json, got {log_format!r}")
    set_up("json" if log_format == "json" else "text")
    if not artifacts and repository is None:
        raise ConfigError("expected an artifact to serve, or --repository")
    if workers and instances:
        raise ConfigError("expected --workers, which are processes, or --instances, which are threads, got both")
    if fronts > 1 and grpc_port == 0:
        raise ConfigError("several --fronts share a port for gRPC: expected the number of one, got 0")
    BALANCERS.get(balancer)
    catalog, known = make_catalog(artifacts or (), name=name, directory=repository, pins=pin or (), handler=handler)

    def load(source: Source, artifact: Artifact) -> ServedModel:
        return ServedModel.load(
            artifact,
            name=source.name,
            version=source.version,
            threads=threads,
            handler=handler,
            workers=workers or 0,
        )

    def sources() -> list[Source]:
        """What the command names, as it lies on disk now."""
        names = dict.fromkeys(place.name for place in catalog.places)
        return [source for name in names for source in catalog.sources(name)]

    found = sources()
    if handler is not None and (repository is not None or len({source.name for source in found}) > 1):
        raise ConfigError("a handler belongs to one model: expected one with --handler, and no --repository")
    read = [known.get(source.path) or read_artifact(source.path) for source in found]
    settings = ServeSettings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        instances=workers or instances,
        fronts=fronts,
        balancer=balancer,
        watch_s=watch,
        cache=None if cache is None else _cache(cache, cache_size, cache_age),
        limits=Limits(max_body_bytes=max_body),
        exact_batches=exact_batches,
        security=Security(token=_token(token_file), certificate=tls_certificate, key=tls_key),
        observing=Observing(access_log=access_log, traces=traces),
    )

    def serve(front: Front | None) -> int:
        """Load and serve until a signal; the exit code."""
        if front is not None and front.again:  # what was read at first may have been replaced
            models = [load(source, read_artifact(source.path)) for source in sources()]
        else:
            models = [load(source, artifact) for source, artifact in zip(found, read, strict=True)]

        async def until_asked() -> int:
            server = Server(models, settings, catalog=catalog, load=load, front=front)
            with reload_signal(server):
                with stop_signals() as asked:
                    if await _started(server, asked):
                        gc.freeze()  # what is there stays: to look through it again would cost requests milliseconds
                        if front is None:
                            _tell(server.url, server.models, server.grpc_target, as_json)
                        else:
                            front.is_ready(asked.set)
                        await asked.wait()
                if front is None:
                    typer.echo(_STOPPING, err=True)
                return await server.stop()

        return 1 if run_loop(until_asked) else 0

    if fronts > 1:
        _serve_fronts(settings, serve, list(dict.fromkeys(source.name for source in found)), as_json)
    elif serve(None):
        _leave_at_once()


def _serve_fronts(
    settings: ServeSettings, serve: Callable[[Front | None], int], models: list[str], as_json: bool
) -> None:
    """Run ``serve`` in several processes that share a port."""
    from tauten.run.serve.fronts import Fronts

    several = Fronts(settings.fronts, settings.host, settings.port, serve)
    scheme = "http" if settings.security.certificate is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    target = None if settings.grpc_port is None else f"{host}:{settings.grpc_port}"
    code = several.run(lambda: _tell(f"{scheme}://{host}:{several.port}", models, target, as_json))
    if code:
        raise typer.Exit(code)


def _tell(url: str, models: list[str], grpc: str | None, as_json: bool) -> None:
    """One line either way: who started the server reads until the line's end, since the output does not end."""
    import json

    document = {"ready": True, "url": url, "models": models}
    text = f"ready: {', '.join(models) or 'no models yet'} at {url}"
    if grpc is not None:
        document["grpc"] = grpc
        text += f" and for gRPC at {grpc}"
    print(json.dumps(document) if as_json else text, flush=True)


def _cache(where: str, size: str, age_s: float) -> CacheSettings:
    """What remembers answers; a rule that is broken is told of the option."""
    import re

    from tauten.errors import ConfigError
    from tauten.run.serve.cache.settings import CacheSettings

    try:
        return CacheSettings(where=where, max_bytes=size, age_s=age_s)
    except ConfigError as fault:
        options = {"where": "--cache", "max_bytes": "--cache-size", "age_s": "--cache-age"}
        said = str(fault).removeprefix("CacheSettings: ")
        said = re.sub(rf"(^|; )({'|'.join(options)}):", lambda found: f"{found[1]}{options[found[2]]}:", said)
        raise ConfigError(said) from None


def _token(path: Path | None) -> str | None:
    """The token in that file, or in the environment: a command line can be read by others of the machine."""
    import os

    from tauten.errors import ConfigError

    if path is None:
        return os.environ.get("TAUTEN_TOKEN") or None
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"--token-file: cannot read {path}: {fault}") from None


async def _started(server: Server, asked: asyncio.Event) -> bool:
    """Start; ``False`` where the signal to stop came before all models were there."""
    import asyncio

    starting, stopping = asyncio.ensure_future(server.start()), asyncio.ensure_future(asked.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    started = starting.done()
    starting.cancel()
    stopping.cancel()
    await asyncio.wait({starting, stopping})
    if started:
        starting.result()
    return started


def _leave_at_once() -> None:
    """End although an engine call still runs: the interpreter would wait for its thread, maybe for ever."""
    import os
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
