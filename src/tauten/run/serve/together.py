"""What servers that share a port do as one, whichever of them a client has reached.

::

    /metrics, /stats, /ready, index ──► the one asked ──► all: their figures, put together
    load, unload                    ──► the one asked, and once that is well, all the others
    one that starts again           ──► the others: what is unloaded, and which artifacts they serve
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tauten.errors import LoadFailed, NotFound, NotReady, TautenError
from tauten.run.serve.manager import Manager
from tauten.run.serve.one_view import merged_index, merged_metrics, merged_statistics
from tauten.run.serve.past import Past
from tauten.run.serve.repository import Repository
from tauten.run.serve.siblings import ABSENT, SILENT, Siblings
from tauten.run.serve.statistics_document import statistics_document

_READY_S: Final = 0.5
"""Probes wait for a second."""
_CHANGE_S: Final = 600.0

log = logging.getLogger("tauten.serve")


class Together:
    """One of several servers, with what it can ask of the others and they of it. Belongs to one event loop.

    ``metrics`` gives the text of this one's own, ``draining`` says that it stops.
    """

    def __init__(
        self,
        siblings: Siblings,
        past: Past,
        repository: Repository,
        manager: Manager,
        metrics: Callable[[], bytes],
        draining: Callable[[], bool],
    ) -> None:
        self._siblings = siblings
        self._past = past
        self._repository = repository
        self._manager = manager
        self._metrics = metrics
        self._draining = draining
        self._telling: asyncio.Future[Any] | None = None
        self._answers: dict[str, Callable[[str], Awaitable[Any]]] = {
            "statistics": self._statistics_here,
            "ready": self._ready_here,
            "index": self._index_here,
            "load": lambda name: self._changed_here(manager.load_here, name),
            "unload": lambda name: self._changed_here(manager.unload_here, name),
            "state": self._state_here,
            "refresh": self._refresh_here,
        }

    async def start(self) -> None:
        """Answer the others, and leave unloaded what they have unloaded."""
        self._past.begin()
        await self._siblings.start(self._answer)
        for state in (await self._told("state")).values():
            self._manager.keep_unloaded(state["unloaded"])

    async def stop(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        await self._siblings.stop()

    async def agree(self) -> None:
        """Have the others load what has changed on disk, where they serve other artifacts than this one found there.

        One that starts again can load no other: all of them then serve the same again.
        """
        here, states = self._served(), await self._told("state")
        if any(state["served"] != here for state in states.values()):
            log.warning("the other servers serve other artifacts than lie on disk now: they load those")
            self._telling = asyncio.ensure_future(self._siblings.ask("refresh", "", _CHANGE_S))

    async def metrics(self) -> bytes:
        """The metrics of all that answer, and what others counted."""
        found = {**await self._siblings.ask("metrics"), self._siblings.index: self._metrics()}
        texts = []
        for number, text in sorted(found.items()):
            if text:
                self._past.note(number, text)
            told, over = self._past.of(number)
            texts += [(number, text or told), (number, over)]
        return merged_metrics(texts)

    async def statistics(self, name: str = "", version: str | None = None) -> dict[str, Any]:
        """The statistics of all that answer; of one model where it is named. Raises ``NotFound`` and ``NotReady``."""
        models = [self._repository.find(name, version)] if name else list(self._repository)
        told = await self._told("statistics", json.dumps([name, models[0].version if name else None]))
        return merged_statistics([statistics_document(*models), *told.values()])

    async def ready(self, name: str = "", version: str | None = None) -> bool:
        """Whether the server, or the model that is named, is ready wherever a connection may lead.

        One that is being started again takes no connections; one that does not answer does.
        """
        if not self._is_ready(name, version):
            return False
        answers = await self._siblings.ask("ready", json.dumps([name, version]), _READY_S)
        return all(answer is ABSENT or answer == b"true" for answer in answers.values())

    async def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """What all of them hold, as ``Manager.index`` tells it of one."""
        told = await self._told("index")
        found = merged_index([await self._manager.index_here(), *told.values()])
        return [entry for entry in found if entry["state"] == "READY" or not ready]

    async def load(self, name: str) -> None:
        """``Manager.load`` in all. Where this one cannot, none does."""
        await self._change("load", self._manager.load_here, name)

    async def unload(self, name: str) -> None:
        """``Manager.unload`` in all."""
        await self._change("unload", self._manager.unload_here, name)

    async def _change(self, what: str, here: Callable[[str], Awaitable[None]], name: str) -> None:
        async with self._siblings.alone():  # two changes at once could end otherwise in one than in another
            await here(name)
            answers = await self._siblings.ask(what, name, _CHANGE_S)
        faults = []
        for number, answer in answers.items():
            if answer is not ABSENT:  # it finds what is on disk, and asks what is unloaded, when it starts
                fault = "it does not answer" if answer == SILENT else json.loads(answer).get("error")
                if fault is not None:
                    faults.append(f"server {number + 1}: {fault}")
        if faults:
            total = self._siblings.count
            raise LoadFailed(
                f"{what} of model {name!r}: {total - len(faults)} of {total} servers have done so, and answer "
                f"otherwise than the rest until it is done again; {'; '.join(faults)}"
            )

    async def _told(self, what: str, about: str = "") -> dict[int, Any]:
        """The documents that the others answer with, without those that do not."""
        answers = await self._siblings.ask(what, about)
        return {number: json.loads(answer) for number, answer in answers.items() if answer}

    async def _answer(self, what: str, about: str) -> bytes:
        if what == "metrics":
            return self._metrics()
        return json.dumps(await self._answers[what](about)).encode()

    async def _statistics_here(self, about: str) -> dict[str, Any]:
        name, version = json.loads(about)
        try:
            return statistics_document(*([self._repository.find(name, version)] if name else self._repository))
        except (NotFound, NotReady):
            return statistics_document()

    async def _ready_here(self, about: str) -> bool:
        return self._is_ready(*json.loads(about))

    async def _index_here(self, about: str) -> list[dict[str, str]]:
        return await self._manager.index_here()

    async def _changed_here(self, change: Callable[[str], Awaitable[None]], name: str) -> dict[str, str]:
        try:
            await change(name)
        except NotFound as fault:
            return {} if change == self._manager.unload_here else {"error": str(fault)}
        except TautenError as fault:
            return {"error": str(fault)}
        return {}

    async def _state_here(self, about: str) -> dict[str, Any]:
        return {"unloaded": self._manager.unloaded, "served": self._served()}

    async def _refresh_here(self, about: str) -> dict[str, str]:
        await self._manager.refresh()
        return {}

    def _is_ready(self, name: str, version: str | None) -> bool:
        if self._draining():
            return False
        try:
            return self._repository.find(name, version).ready if name else self._repository.ready
        except (NotFound, NotReady):
            return False

    def _served(self) -> dict[str, str]:
        """The artifacts that are served here, by model and version: the digests of them and of their handlers."""
        return {
            f"{model.name}/{model.version}": (model.digest + model.handler_digest).hex() for model in self._repository
        }
