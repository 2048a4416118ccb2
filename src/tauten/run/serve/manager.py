"""Models come, change and go while the server answers.

::

    HTTP, gRPC: load, unload ┐             ┌─ in a thread: read_artifact, engine, dry run
    SIGHUP, --watch: refresh ┴─ Manager ───┤
                                           └─ in one step of the event loop: Repository.put
                                              the old model finishes what it has, and is closed
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tauten.artifact.read import Artifact, read_artifact
from tauten.errors import Forbidden, LoadFailed, NotFound, TautenError
from tauten.run.serve.catalog import Catalog, Source
from tauten.run.serve.model import ServedModel, digest_of
from tauten.run.serve.repository import Repository
from tauten.run.serve.settings import ServeSettings, check_model_name

if TYPE_CHECKING:
    from tauten.run.serve.together import Together

T = TypeVar("T")

Load = Callable[[Source, Artifact], ServedModel]
"""Makes a model of an artifact that was read. It is called in a thread of its own."""

log = logging.getLogger("tauten.serve")

_ATTEMPTS: Final = 3
_LOOK_S: Final = 0.02
_SHORT_NS: Final = 20_000_000
_UNLOADED: Final = "unloaded"


class Manager:
    """Changes what ``repository`` serves, by what ``catalog`` finds on disk. Belongs to one event loop.

    Models of one name are loaded one after the other. What cannot be loaded leaves the old one where it is. ``start``
    makes a model take requests.
    """

    def __init__(
        self,
        repository: Repository,
        settings: ServeSettings,
        start: Callable[[ServedModel], None],
        catalog: Catalog | None = None,
        load: Load | None = None,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._start = start
        self._catalog = catalog or Catalog()
        self._make = load or _load
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._seen: dict[str, str] = {}  # the state on disk that each was last loaded from, or failed to
        self._faults: dict[str, str] = {}
        self._old: set[asyncio.Task[None]] = set()
        self.together: Together | None = None
        """The servers that share the port, where there are several: what is asked of one is then done by all."""

    @property
    def unloaded(self) -> dict[str, str]:
        """What was unloaded on request, and the state on disk in which it stays so."""
        return {name: self._seen[name] for name, fault in self._faults.items() if fault == _UNLOADED}

    def keep_unloaded(self, unloaded: Mapping[str, str]) -> None:
        """Take these for unloaded, as another server says: before ``start``."""
        self._seen.update(unloaded)
        self._faults.update(dict.fromkeys(unloaded, _UNLOADED))

    @property
    def managed(self) -> bool:
        """Whether those who ask may load and unload models: where there is a folder for them."""
        return self._catalog.directory is not None

    async def start(self) -> None:
        """Load what lies in the directory. What cannot be loaded is told in the log and in the index."""
        if self.managed:
            self._repository.starting = True
            try:
                self._repository.loading.update(await in_thread(self._catalog.names))
                await self.refresh()
            finally:
                self._repository.loading.clear()
                self._repository.starting = False

    async def load(self, name: str) -> None:
        """Serve what is on disk now as the versions of model ``name``, and nothing else.

        Versions whose artifact is the same as before go on as they are. Raises ``Forbidden`` where the server has no
        directory of models, ``ConfigError`` for what is no name of a model, ``NotFound`` where there is no such model,
        ``LoadFailed`` where it cannot be served; then what was served before is served still.
        """
        self._check_managed()
        await (self.load_here(name) if self.together is None else self.together.load(name))

    async def unload(self, name: str) -> None:
        """Serve that model no more. Raises ``Forbidden``, ``ConfigError`` and ``NotFound`` as ``load`` does."""
        self._check_managed()
        await (self.unload_here(name) if self.together is None else self.together.unload(name))

    async def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """What is served, and, unless only what is ``ready`` is asked for, what could be; with the reason why not."""
        return await (self.index_here(ready=ready) if self.together is None else self.together.index(ready=ready))

    async def load_here(self, name: str) -> None:
        """``load`` in this server alone, where several share a port."""
        await self._load(name)

    async def unload_here(self, name: str) -> None:
        """``unload`` in this server alone."""
        check_model_name(name)
        async with self._locks[name]:
            if not self._repository.versions(name) and name not in await in_thread(self._catalog.names):
                raise NotFound(f"no model named {name!r:.80} to unload")
            self._seen[name] = await in_thread(partial(self._catalog.state, name))
            self._faults[name] = _UNLOADED
            self._retire(self._repository.remove(name))
            log.info("model %s: unloaded", name)

    async def refresh(self, *, again: bool = False) -> None:
        """Load what has changed on disk since it was loaded; with ``again``, also what failed to load then.

        Raises nothing: what fails is told in the log. What was unloaded on request comes back when it has changed.
        """
        try:
            names = await in_thread(self._catalog.names)
        except TautenError as fault:
            log.error("%s", fault)
            return
        for name in names:
            state = await in_thread(partial(self._catalog.state, name))
            failed = self._faults.get(name, _UNLOADED) != _UNLOADED
            if state and (state != self._seen.get(name) or (again and failed)):
                try:
                    await self._load(name)
                except TautenError:
                    continue  # logged there

    async def watch(self, every_s: float) -> None:
        """Refresh again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.refresh()

    async def index_here(self, *, ready: bool = False) -> list[dict[str, str]]:
        """``index`` of this server alone."""
        repository = self._repository
        found = [
            _entry(model.name, "READY" if model.ready else "UNAVAILABLE", self._faults.get(model.name, ""), model)
            for model in repository
            if model.ready or not ready
        ]
        if not ready:
            for name in await in_thread(self._catalog.names):
                if not repository.versions(name):
                    state = "LOADING" if name in repository.loading else "UNAVAILABLE"
                    found.append(_entry(name, state, self._faults.get(name, "")))
        return found

    async def close(self) -> None:
        """Close the old models that have not finished."""
        for task in tuple(self._old):
            task.cancel()
        await asyncio.gather(*self._old, return_exceptions=True)

    def _check_managed(self) -> None:
        if not self.managed:
            raise Forbidden(
                "this server loads the models it was started with, when their artifacts change: "
                "to load and unload others, start it with --repository"
            )

    async def _load(self, name: str) -> None:
        check_model_name(name)
        async with self._locks[name]:
            self._repository.loading.add(name)
            try:
                await self._replace(name)
            except NotFound:
                self._faults.setdefault(name, "")
                raise
            except Exception as fault:
                kept = " (what was served before is served still)" if self._repository.versions(name) else ""
                self._faults[name] = f"{fault}"
                known = isinstance(fault, TautenError)
                log.error("model %s: not loaded%s: %s", name, kept, fault, exc_info=None if known else fault)
                raise LoadFailed(f"model {name!r} was not loaded{kept}: {fault}") from fault
            finally:
                self._repository.loading.discard(name)

    async def _replace(self, name: str) -> None:
        """Load and swap."""
        serving = self._repository.versions(name)
        for attempt in range(1, _ATTEMPTS + 1):
            state = await in_thread(partial(self._catalog.state, name))
            try:
                models = await in_thread(partial(self._read, name, serving))
                break
            except TautenError:
                # Replaced while it was read, it is neither the one nor the other: the next attempt finds it whole.
                changed = state != await in_thread(partial(self._catalog.state, name))
                if attempt == _ATTEMPTS or not changed:
                    self._seen[name] = state
                    raise
        self._seen[name] = state
        new = [model for model in models if model not in serving]
        before = {model.version: model for model in serving}
        try:
            for model in new:
                old = before.get(model.version)
                if old is not None:
                    model.statistics = old.statistics  # counters of one name and version go on
                if model.row_ns is not None and model.row_ns < _SHORT_NS:
                    model.measure()  # the thread had to wait for this one, which was measured with it
                self._start(model)
            gone = self._repository.put(name, models)
        except Exception:
            for model in new:
                model.stop()
                model.engine.close()
            raise
        self._faults.pop(name, None)
        self._retire(gone)
        if new or gone:
            log.info("model %s: serving %s", name, ", ".join(f"version {model.version}" for model in models))

    def _read(self, name: str, serving: Sequence[ServedModel]) -> list[ServedModel]:
        """Every version of a model, loaded where it is another than the one that is served. Called in a thread."""
        known = {model.version: model for model in serving}
        models: list[ServedModel] = []
        handler = self._catalog.handler_digest()
        try:
            for source in self._catalog.sources(name):
                artifact = read_artifact(source.path)
                old = known.get(source.version)
                same = old is not None and (old.digest, old.handler_digest) == (digest_of(artifact), handler)
                models.append(old if old is not None and same else self._make(source, artifact))
        except BaseException:
            for model in models:
                if model not in serving:
                    model.engine.close()
            raise
        return models

    def _retire(self, models: Iterable[ServedModel]) -> None:
        for model in models:
            task = asyncio.get_running_loop().create_task(self._finish(model))
            self._old.add(task)
            task.add_done_callback(self._old.discard)

    async def _finish(self, model: ServedModel) -> None:
        """Let an old model finish what it has, then close it."""
        try:
            async with asyncio.timeout(self._settings.answer_s + self._settings.drain_s):
                while model.busy:
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            log.warning("model %s version %s: closed before all was answered", model.name, model.version)
        finally:
            idle = not model.busy
            model.stop()
            if idle:  # elsewhere a thread may still be in it
                model.engine.close()


def _load(source: Source, artifact: Artifact) -> ServedModel:
    return ServedModel.load(artifact, name=source.name, version=source.version)


def _entry(name: str, state: str, reason: str, model: ServedModel | None = None) -> dict[str, str]:
    entry = {"name": name} if model is None else {"name": name, "version": model.version}
    return {**entry, "state": state, "reason": reason}


async def in_thread(work: Callable[[], T]) -> T:
    """What ``work()`` gives, from a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            outcome(value)

    def run() -> None:
        outcome: Callable[[Any], None]
        value: Any
        try:
            outcome, value = done.set_result, work()
        except BaseException as fault:  # noqa: BLE001 - handed to the one who waits
            outcome, value = done.set_exception, fault
        try:
            loop.call_soon_threadsafe(settle, outcome, value)
        except RuntimeError:
            log.warning("a model was loaded after the server had stopped")

    Thread(target=run, name="tauten-load", daemon=True).start()
    return await done
