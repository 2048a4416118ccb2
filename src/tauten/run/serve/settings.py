"""How a server is set up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tauten.core.value import Value
from tauten.errors import ConfigError
from tauten.run.serve.cache.settings import CacheSettings
from tauten.run.serve.protocol.limits import Limits, Seconds

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")


Port = Annotated[int, Field(ge=0, le=65_535)]


class Security(Value):
    """Who may ask, and over what. ``token`` is what each request must carry; ``certificate`` and ``key`` (PEM files)
    make it TLS, the key being left out where the certificate's file holds it.
    """

    token: Annotated[
        Annotated[str, Field(min_length=16, max_length=4096, pattern=r"^[\x21-\x7e]+\z")] | None, Field(repr=False)
    ] = None
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _key_of_a_certificate(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("expected a certificate beside the key, got the key alone")
        return self


class Observing(Value):
    """What is told of requests beside the metrics: a line each in the log, and traces in OpenTelemetry's form."""

    access_log: bool = False
    traces: bool = False


class ServeSettings(Value):
    """Where a server listens, how much it does at once and how long it waits.

    ``port`` 0 lets the system choose; with a ``grpc_port``, which needs the extra ``grpc``, there is gRPC as well.
    ``fronts`` whole servers share the port. In each, ``instances`` batches of a model run at once, by default as
    many as there are cores for, and ``queue`` requests more wait; a request beyond that is refused. ``run_in`` is
    where they run: ``loop`` is the event loop, for one instance of a model that takes less time than handing it to
    a thread, ``thread`` a thread each, and ``auto`` measures. ``scheduler`` names the batching policy, ``balancer``
    the one by which an instance is chosen; ``exact_batches`` lets no two requests share a batch. ``answer_s``
    bounds waiting and running of one request, ``drain_s`` how long a stopping server finishes what is under way.
    With ``watch_s``, it looks that often whether artifacts have changed. With a ``cache``, answers are remembered.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8000
    grpc_port: Port | None = None
    instances: Annotated[int, Field(ge=1, le=256)] | None = None
    fronts: Annotated[int, Field(ge=1, le=256)] = 1
    run_in: Literal["auto", "loop", "thread"] = "auto"
    scheduler: Annotated[str, Field(min_length=1)] = "continuous"
    balancer: Annotated[str, Field(min_length=1)] = "pull"
    exact_batches: bool = False
    queue: Annotated[int, Field(ge=0)] = 256
    answer_s: Seconds = 30.0
    drain_s: Seconds = 30.0
    watch_s: Seconds | None = None
    cache: CacheSettings | None = None
    limits: Limits = Limits()
    security: Security = Security()
    observing: Observing = Observing()


def check_model_name(name: str) -> str:
    """``name`` where it can stand in a URL as it is; ``ConfigError`` elsewhere."""
    if not MODEL_NAME.fullmatch(name):
        raise ConfigError(f"expected a model name of letters, digits and _ . + - (128 at most), got {name!r}")
    return name
