"""What a client sends and what it makes of the answers: bytes in, bytes out, no I/O and no clock."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
import orjson

from tauten.client.retries import Retries
from tauten.core.tensor import Array, Arrays
from tauten.errors import (
    ConfigError,
    InputError,
    MethodNotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    ServeError,
    TautenError,
    TooLarge,
)
from tauten.run.load.client import Answer
from tauten.run.serve.protocol.datatypes import BINARY_ONLY, DATATYPES
from tauten.run.serve.protocol.elements import to_objects
from tauten.run.serve.protocol.v2 import HEADER_LENGTH, Message, decode_response, encode_request

T = TypeVar("T")

_FAULTS: Final[dict[int, type[TautenError]]] = {
    kind.http_status: kind for kind in (InputError, NotFound, MethodNotAllowed, TooLarge, Overloaded, NotReady)
}
_TRY_AGAIN: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class Url:
    """Where a server is: ``prefix`` is the path before ``/v2``, without a slash at its end."""

    host: str
    port: int
    tls: bool
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Url:
        """From ``http://host:port`` or ``https://host:port``, and maybe a path; ``ConfigError`` for anything else."""
        expected = f"expected a URL such as http://127.0.0.1:8000, got {url!r}"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as fault:
            raise ConfigError(f"{expected}: {fault}") from None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
            raise ConfigError(expected)
        tls = parts.scheme == "https"
        return cls(host, port or (443 if tls else 80), tls, quote(parts.path.rstrip("/"), safe="/%"))

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Exchange(Generic[T]):
    """One request, as ``head`` and the parts of its body, and ``read``, which makes a value of the answer to it."""

    head: bytes
    body: Sequence[bytes | bytearray | memoryview]
    read: Callable[[Answer], T]


class Requests:
    """The requests of one client: to whom and with which credentials."""

    def __init__(self, url: Url, token: str | None) -> None:
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigError("expected a token of printable ASCII characters")
        self._url = url
        self._common = f"Host: {url.authority}\r\n" + ("" if token is None else f"Authorization: Bearer {token}\r\n")

    def status(self, path: str) -> Exchange[bool]:
        """Whether a GET of ``path`` is answered with 200."""
        return Exchange(self._head("GET", path, ""), (), lambda answer: answer.status == 200)

    def document(self, path: str) -> Exchange[dict[str, Any]]:
        """The JSON object at ``path``."""
        return Exchange(self._head("GET", path, ""), (), _read_document)

    def infer(
        self,
        model: str,
        version: str | None,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        *,
        binary: bool,
        parameters: Mapping[str, int],
    ) -> Exchange[Arrays]:
        """The outputs for ``inputs``. Raises ``InputError`` for what the protocol cannot carry."""
        arrays = {name: _sendable(name, value, binary) for name, value in inputs.items()}
        message = encode_request(arrays, binary=binary, outputs=outputs, parameters=parameters)
        head = self._head("POST", f"{model_path(model, version)}/infer", _body_headers(message))
        return Exchange(head, message.parts, _read_outputs)

    def _head(self, method: str, path: str, headers: str) -> bytes:
        return f"{method} {self._url.prefix}{path} HTTP/1.1\r\n{self._common}{headers}\r\n".encode("latin-1")


def model_path(model: str | None, version: str | None) -> str:
    """The path of a model, or of the server where none is named."""
    if model is None:
        return "/v2"
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def parameters_of(deadline_s: float | None, priority: int) -> dict[str, int]:
    """The parameters of a request: how long its answer is wanted, in microseconds, and what it goes before."""
    found: dict[str, int] = {}
    if deadline_s is not None:
        if not deadline_s > 0:
            raise ConfigError(f"expected deadline_s above 0, got {deadline_s}")
        found["timeout"] = max(1, round(deadline_s * 1e6))
    if priority:
        found["priority"] = priority
    return found


class Send:
    """What ``converse`` wants: the exchange sent, and an ``Answer`` or the ``OSError`` handed back."""

    __slots__ = ("within_s",)

    def __init__(self, within_s: float) -> None:
        self.within_s = within_s


class Pause:
    """What ``converse`` wants: nothing for a while."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


Conversation = Generator[Send | Pause, "Answer | OSError | None", T]


def converse(
    exchange: Exchange[T],
    authority: str,
    retries: Retries,
    timeout_s: float,
    now: Callable[[], float],
    draw: Callable[[], float],
) -> Conversation[T]:
    """Say what to do next until there is a value, which is returned, or none to be had, which is raised.

    Answers that say "later" (429, 503) and connections that fail are tried again as ``retries`` says, within
    ``timeout_s`` in all. Inference changes nothing on a server, so sending it twice does no harm.
    """
    end = now() + timeout_s
    attempt = 0
    while True:
        outcome = yield Send(max(0.0, end - now()))
        attempt += 1
        retry_after_s = 0.0
        if isinstance(outcome, Answer):
            if outcome.status not in _TRY_AGAIN:
                return exchange.read(outcome)
            retry_after_s = _retry_after_s(outcome)
            fault: TautenError = fault_of(outcome)
        elif isinstance(outcome, TimeoutError):
            raise ServeError(f"no answer from {authority} within {timeout_s:g} seconds") from None
        else:
            fault = ServeError(f"cannot reach a server at {authority}: {outcome}")
        pause_s = retries.pause_s(attempt, retry_after_s, draw())
        if attempt >= retries.tries or now() + pause_s >= end:
            raise fault
        yield Pause(pause_s)


def fault_of(answer: Answer) -> TautenError:
    """What a status other than 200 means."""
    try:
        document = orjson.loads(answer.body)
        reason = str(document["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        reason = f"the server answered with status {answer.status} and no reason"
    if answer.status in (401, 403):
        return ServeError(f"the server wants another token: {reason}")
    return _FAULTS.get(answer.status, ServeError)(reason)


def _read_document(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise fault_of(answer)
    try:
        document = orjson.loads(answer.body)
    except orjson.JSONDecodeError as fault:
        raise ServeError(f"expected a JSON object: {fault}") from None
    if not isinstance(document, dict):
        raise ServeError(f"expected a JSON object, got a {type(document).__name__}")
    return document


def _read_outputs(answer: Answer) -> Arrays:
    if answer.status != 200:
        raise fault_of(answer)
    text = answer.headers.get(HEADER_LENGTH.lower().encode("ascii"))
    if text is not None and not text.isdigit():
        raise ServeError(f"{HEADER_LENGTH}: expected a count of bytes, got {text.decode('latin-1')!r:.80}")
    return decode_response(answer.body, None if text is None else int(text)).outputs


def _body_headers(message: Message) -> str:
    if message.header_length is None:
        return f"Content-Type: application/json\r\nContent-Length: {message.length}\r\n"
    return (
        f"Content-Type: application/octet-stream\r\nContent-Length: {message.length}\r\n"
        f"{HEADER_LENGTH}: {message.header_length}\r\n"
    )


def _retry_after_s(answer: Answer) -> float:
    """What the server asks to wait: seconds, or the time of a date after that of the answer."""
    text = answer.headers.get(b"retry-after", b"").decode("latin-1").strip()
    if text.isdigit():
        return float(text[:9])
    try:
        sent = parsedate_to_datetime(answer.headers.get(b"date", b"").decode("latin-1"))
        return max(0.0, (parsedate_to_datetime(text) - sent).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _sendable(name: str, value: Any, binary: bool) -> Array:
    """``value`` as an array that the protocol can carry; texts as elements of bytes."""
    array: Array = np.asarray(value)
    if array.dtype.kind in "USO":
        elements = [item.encode() if isinstance(item, str) else item for item in array.reshape(-1).tolist()]
        if not all(isinstance(element, bytes) for element in elements):
            raise InputError(f"{name}: expected numbers, truth values, texts or bytes, got other objects")
        return to_objects(elements, array.shape)
    dtype = array.dtype.name
    if dtype not in DATATYPES:
        raise InputError(f"{name}: expected one of {list(DATATYPES)}, got {dtype}")
    if not binary and (dtype in BINARY_ONLY or ("float" in dtype and not np.isfinite(array).all())):
        raise InputError(f"{name}: JSON has neither {dtype} with NaN or infinity nor float16: leave binary=True")
    return array
