"""A worker process as its server sees it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field

from tauten.core.tensor import TensorSpec
from tauten.core.value import Value
from tauten.errors import EngineError, InputError, TautenError
from tauten.run.engines._padding import Padding
from tauten.run.serve.instances._process_wire import Receiver, send
from tauten.run.serve.protocol.elements import BYTES, BytesSpec

# It keeps to its cores before anything is imported: libraries start threads then, which stay where they are.
_PROGRAM: Final = """
import os, sys
if sys.argv[3:]:
    os.sched_setaffinity(0, map(int, sys.argv[3:]))
from tauten.run.serve.instances._process_main import run
sys.exit(run())
"""


class ProcessSettings(Value):
    """What a worker process loads, and how.

    ``artifact`` is the path of one whose files have ``checksums``, so that each process loads the same. ``handler`` is
    a Python file that runs before and after the model. Where there are open files for them, those are read, whatever
    lies at the paths by now: ``held`` are the artifact's descriptors by name, ``handler_text`` is that of the handler.
    ``cores`` are those that it keeps to, none for any; ``start_s`` is how long it may take to load.
    """

    artifact: Annotated[str, Field(min_length=1)]
    checksums: dict[str, str]
    threads: Annotated[int, Field(ge=1)]
    handler: str | None = None
    held: dict[str, int] = {}
    handler_text: int | None = None
    cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    start_s: Annotated[float, Field(gt=0)] = 120.0

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that a process inherits."""
        return (*self.held.values(), *(() if self.handler_text is None else (self.handler_text,)))


class Specs(NamedTuple):
    """What goes in and out of the process, and the padding that its engine can do without."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    padding: Padding | None = None


class Child:
    """One process, from its start until it was reaped. It ends when this one does, however that comes about.

    ``exited`` is a descriptor that becomes readable when the process has ended.
    """

    def __init__(self, settings: ProcessSettings) -> None:
        if not hasattr(os, "pidfd_open"):
            raise EngineError("worker processes need Linux 5.3 or newer: serve with --instances instead")
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.receive = Receiver(self.channel)
        watched, self._lifeline = os.pipe()
        try:
            passed = (theirs.fileno(), watched)
            # -P: a file in the working directory must not shadow a module. A session of its own: Ctrl-C reaches the
            # server alone. What it prints goes to standard error, since the server's output is read by others.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *map(str, (*passed, *settings.cores))],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(*passed, *settings.descriptors),
                start_new_session=True,
            )
        except BaseException:
            self.channel.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(watched)
        self.pid = self._process.pid
        self.exited = os.pidfd_open(self.pid)
        with suppress(OSError):  # one that has ended already is found by its exit
            send(self.channel, settings.model_dump_json().encode())

    def wait_ready(self, seconds: float) -> Specs:
        """Wait until it answers. Raises ``EngineError`` where it cannot load, ends or takes too long, and ends it."""
        self.channel.settimeout(seconds)
        try:
            data, _ = self.receive()
            if data:
                return read_ready(data)
        except ConnectionResetError:
            pass
        except (TimeoutError, EngineError) as fault:
            self.kill()
            self.reap()
            if isinstance(fault, EngineError):
                raise
            raise EngineError(f"the worker process was not ready within {seconds:g} seconds") from None
        self.kill()
        raise EngineError(f"the worker process {self.reap()} before it was ready")

    def kill(self) -> None:
        """End it at once, whatever it does. It can be reaped soon."""
        if self.exited >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.exited, signal.SIGKILL)

    def reap(self) -> str:
        """Give back what is held of a process that has ended, or was killed; says how it ended."""
        code = self._process.wait()
        self.channel.close()
        if self.exited >= 0:
            os.close(self.exited)
            os.close(self._lifeline)
            self.exited = -1
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def read_ready(data: bytes) -> Specs:
    """The specs that a process that is ready tells. Raises ``EngineError`` with what it could not do instead."""
    document: dict[str, Any] = json.loads(data)
    if "error" in document:
        raise to_fault(document["error"], loading=True)
    inputs, outputs = (tuple(map(_read_spec, document[what])) for what in ("inputs", "outputs"))
    padding = document["padding"]
    return Specs(inputs, outputs, None if padding is None else Padding.from_json(padding))


def to_fault(told: Mapping[str, str], *, loading: bool = False) -> TautenError:
    """The error that a process tells of, with its traceback as a note, which a log shows and a client never sees.

    What was not raised on purpose says nothing to clients either; ``loading`` says that there are none yet.
    """
    if told["kind"] == "input":
        return InputError(told["message"])
    on_purpose = loading or told["kind"] == "engine"
    fault = EngineError(told["message"] if on_purpose else "the model failed: the server's log says how")
    fault.add_note(told["trace"])
    return fault


def _read_spec(document: dict[str, Any]) -> TensorSpec:
    return (BytesSpec if document.get("dtype") == BYTES else TensorSpec).from_json(document)
