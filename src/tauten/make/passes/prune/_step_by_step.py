"""Runs a module in steps, from one of its layers to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

Take = Callable[[str, torch.Tensor], Any]
"""``(layer, its output) -> what is wanted of it``: called in the walk, before anything changes the output in place."""


class Walk:
    """A call of a module that stops after each of some layers until it is asked to go on.

    The call has a thread of its own, of which one at a time runs: that, or the caller's. It holds what the module
    itself keeps alive, nothing more. A context manager: where it is left, the call ends, be it through or not.
    """

    def __init__(self, run: Callable[[], object], layers: Mapping[str, nn.Module], take: Take) -> None:
        self._run = run
        self._take = take
        self._going, self._there = threading.Semaphore(0), threading.Semaphore(0)
        self._found: tuple[str, Any] | None = None
        self._fault: BaseException | None = None
        self._ended = False
        self._hooks = [layer.register_forward_hook(self._stop_after(name)) for name, layer in layers.items()]
        self._thread = threading.Thread(target=self._walk, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._going.release()
        self._thread.join()
        for hook in self._hooks:
            hook.remove()

    def to_next(self) -> tuple[str, Any]:
        """Go on to the next layer: its name, and what was taken of it. Raises what the module raises."""
        self._going.release()
        self._there.acquire()
        if self._fault is not None:
            raise self._fault
        if self._found is None:
            raise LookupError("the call is through")
        found, self._found = self._found, None
        return found

    def _walk(self) -> None:
        self._going.acquire()
        if self._ended:
            return
        try:
            # Whether gradients are recorded is a matter of each thread.
            with torch.no_grad():
                self._run()
        except _Ended:
            return
        except BaseException as fault:  # noqa: BLE001 - it is raised where it was asked for
            self._fault = fault
        self._there.release()

    def _stop_after(self, name: str) -> Callable[[nn.Module, Sequence[Any], torch.Tensor], None]:
        def hook(layer: nn.Module, given: Sequence[Any], answer: torch.Tensor) -> None:
            self._found = (name, self._take(name, answer))
            self._there.release()
            self._going.acquire()
            if self._ended:
                raise _Ended

        return hook


class _Ended(BaseException):
    """Nobody asks for the rest of the call; no handler of the module's own may take it for a fault."""
