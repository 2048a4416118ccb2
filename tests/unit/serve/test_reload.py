"""Models are loaded, replaced and unloaded while the server answers."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauten.artifact.read import Artifact, read_artifact
from tauten.core.tensor import Arrays
from tauten.errors import EngineError
from tauten.run.serve.catalog import Catalog, Source, make_catalog
from tauten.run.serve.model import ServedModel, digest_of
from tauten.run.serve.server import Server
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.artifacts import null_artifact
from tests.unit.serve.tiny import WAIT_S, Double, Gated, Reply, Running, ask, ones_request, serving, until


class Marked(Double):
    """Answers as its artifact's name says: ``double`` is filled with the number that the name ends in."""

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = mark
        self.closed = threading.Event()

    def run(self, inputs: Any) -> Arrays:
        found = super().run(inputs)
        return {**found, "double": np.full_like(found["double"], self.mark)}

    def close(self) -> None:
        self.closed.set()


class Loader:
    """Makes marked models of artifacts; ``before`` is called first."""

    def __init__(self) -> None:
        self.made: list[ServedModel] = []
        self.before: Callable[[Source], None] = lambda source: None

    def __call__(self, source: Source, artifact: Artifact) -> ServedModel:
        self.before(source)
        model = ServedModel(source.name, Marked(float(artifact.manifest.name[1:])), version=source.version)
        model.digest = digest_of(read_artifact(source.path))
        self.made.append(model)
        return model


def put(path: Path, mark: int) -> Path:
    return null_artifact(path, f"a{mark}")


@contextmanager
def managed(
    root: Path, load: Loader, *artifacts: str, pins: tuple[str, ...] = (), directory: bool = True, **settings: Any
) -> Iterator[Running]:
    """A server of the models in ``root``, and of others."""
    catalog, _ = make_catalog(artifacts, directory=str(root) if directory else None, pins=pins)
    models = [
        load(source, read_artifact(source.path)) for place in catalog.places for source in catalog.sources(place.name)
    ]
    settings = {"port": 0, "instances": 1, **settings}
    with serving(Server(models, ServeSettings(**settings), catalog=catalog, load=load)) as found:
        yield found


def mark(port: int, path: str = "m") -> float:
    """What answers under ``path``."""
    reply = ask(port, "POST", f"/v2/models/{path}/infer", ones_request())
    assert reply.status == 200, reply.body
    return float(reply.json()["outputs"][0]["data"][0])


def change(port: int, action: str, name: str = "m", body: object = None) -> Reply:
    return ask(port, "POST", f"/v2/repository/models/{name}/{action}", body)


def in_loop(server: Running, work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, server.loop).result(WAIT_S)


def states(port: int, **body: bool) -> dict[str, tuple[str, str]]:
    found = ask(port, "POST", "/v2/repository/index", body).json()
    return {f"{one['name']}/{one.get('version', '')}": (one["state"], one["reason"]) for one in found}


def test_models_come_change_and_go_on_request(tmp_path: Path) -> None:
    put(tmp_path / "m", 1)
    put(tmp_path / "n" / "3", 3)
    load = Loader()
    with managed(tmp_path, load) as server:
        port = server.port
        assert states(port) == {"m/1": ("READY", ""), "n/3": ("READY", "")}
        assert (mark(port), mark(port, "n/versions/3")) == (1, 3)
        put(tmp_path / "m", 2)
        assert mark(port) == 1
        reply = change(port, "load", body={"parameters": {}})
        assert (reply.status, reply.body) == (200, b"")
        assert mark(port) == 2
        first = load.made[0].engine
        assert isinstance(first, Marked)
        assert first.closed.wait(WAIT_S)

        assert change(port, "unload", body={"parameters": {"unload_dependents": False}}).status == 200
        assert ask(port, "POST", "/v2/models/m/infer", ones_request()).status == 404
        assert ask(port, "GET", "/v2/health/ready").status == 200
        assert states(port) == {"n/3": ("READY", ""), "m/": ("UNAVAILABLE", "unloaded")}
        assert list(states(port, ready=True)) == ["n/3"]
        assert change(port, "load").status == 200
        assert mark(port) == 2
        assert "model_repository" in ask(port, "GET", "/v2").json()["extensions"]


def test_versions_come_and_go_and_those_that_stay_go_on(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1", 1)
    put(tmp_path / "m" / "2", 2)
    load = Loader()
    with managed(tmp_path, load) as server:
        put(tmp_path / "m" / "3", 3)
        (tmp_path / "m" / "1" / "manifest.json").unlink()
        assert change(server.port, "load").status == 200
        assert [model.version for model in load.made] == ["1", "2", "3"]
        assert mark(server.port) == 3
        assert mark(server.port, "m/versions/2") == 2
        assert ask(server.port, "GET", "/v2/models/m/versions/1").status == 404
        assert ask(server.port, "GET", "/v2/models/m").json()["versions"] == ["2", "3"]


def test_what_is_the_same_is_not_loaded_again(tmp_path: Path) -> None:
    put(tmp_path / "m", 1)
    load = Loader()
    with managed(tmp_path, load) as server:
        assert change(server.port, "load").status == 200
        in_loop(server, server.server.manager.refresh(again=True))
        assert len(load.made) == 1


@pytest.mark.parametrize("how", ["damaged", "broken", "bug"])
def test_what_cannot_be_loaded_leaves_the_old_one(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "m", 1)
    load = Loader()
    with managed(tmp_path, load) as server:
        put(tmp_path / "m", 2)

        def before(source: Source) -> None:
            raise EngineError("no memory") if how == "broken" else KeyError("oops")

        load.before = before
        if how == "damaged":
            (tmp_path / "m" / "graph.bin").write_bytes(b"nona")
        says = {"damaged": "graph.bin", "broken": "no memory", "bug": "oops"}[how]
        reply = change(server.port, "load")
        assert reply.status == 400
        assert reply.json()["error"].startswith("model 'm' was not loaded (what was served before is served still): ")
        assert says in reply.json()["error"]
        assert mark(server.port) == 1
        state, reason = states(server.port)["m/1"]
        assert state == "READY"
        assert says in reason
        load.before = lambda source: None
        put(tmp_path / "m", 3)
        assert change(server.port, "load").status == 200
        assert (mark(server.port), states(server.port)["m/1"]) == (3, ("READY", ""))
    assert any(record.levelno == logging.ERROR for record in caplog.records)


def test_one_version_that_cannot_be_loaded_keeps_all_of_the_model(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1", 1)
    load = Loader()
    with managed(tmp_path, load) as server:
        put(tmp_path / "m" / "1", 4)
        put(tmp_path / "m" / "2", 5)

        def before(source: Source) -> None:
            if source.version == "2":
                raise EngineError("no memory")

        load.before = before
        assert change(server.port, "load").status == 400
        assert ask(server.port, "GET", "/v2/models/m").json()["versions"] == ["1"]
        assert mark(server.port) == 1
        thrown_away = load.made[-1].engine
        assert isinstance(thrown_away, Marked)
        assert thrown_away.closed.is_set()


def test_the_pinned_version_must_stay(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1", 1)
    put(tmp_path / "m" / "2", 2)
    load = Loader()
    with managed(tmp_path, load, pins=("m=1",)) as server:
        assert mark(server.port) == 1
        (tmp_path / "m" / "1" / "manifest.json").unlink()
        reply = change(server.port, "load")
        assert reply.status == 400
        assert "pinned to version 1" in reply.json()["error"]
        assert mark(server.port) == 1


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("nope", 404),
        ("..%2fsecret", 400),
        ("%2e%2e", 400),
        ("%00", 400),
        ("%2fetc", 400),
        ("x" * 200, 400),
        ("%ff", 400),
    ],
)
@pytest.mark.parametrize("action", ["load", "unload"])
def test_only_what_lies_in_the_repository_is_loaded(tmp_path: Path, name: str, status: int, action: str) -> None:
    put(tmp_path / "secret", 1)
    put(tmp_path / "models" / "m", 1)
    load = Loader()
    with managed(tmp_path / "models", load) as server:
        assert change(server.port, action, name).status == status
        assert len(load.made) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        [],
        {"parameters": []},
        {"parameters": {"config": "{}"}},
        {"parameters": {"file:1/model.onnx": "AAAA"}},
    ],
)
def test_a_model_is_served_as_its_artifact_says(tmp_path: Path, body: object) -> None:
    put(tmp_path / "m", 1)
    with managed(tmp_path, Loader()) as server:
        assert change(server.port, "load", body=body).status == 400


def test_the_server_answers_while_a_model_is_loaded(tmp_path: Path) -> None:
    put(tmp_path / "m", 1)
    load = Loader()
    with managed(tmp_path, load) as server:
        gate, entered = threading.Event(), threading.Event()

        def before(source: Source) -> None:
            entered.set()
            gate.wait(WAIT_S)

        load.before = before
        put(tmp_path / "m", 2)
        put(tmp_path / "new", 3)
        replies: list[Reply] = []
        threads = [
            threading.Thread(target=lambda name=name: replies.append(change(server.port, "load", name)))
            for name in ("m", "new")
        ]
        for thread in threads:
            thread.start()
        assert entered.wait(WAIT_S)
        assert mark(server.port) == 1
        until(lambda: states(server.port).get("new/", ("", ""))[0] == "LOADING")
        reply = ask(server.port, "GET", "/v2/models/new")
        assert (reply.status, reply.json()["error"]) == (503, "model 'new' is being loaded")
        gate.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert [reply.status for reply in replies] == [200, 200]
        assert (mark(server.port), mark(server.port, "new")) == (2, 3)


def test_the_old_model_finishes_what_it_has(tmp_path: Path) -> None:
    load = Loader()
    catalog = Catalog(directory=str(tmp_path))
    engine = Gated()
    old = ServedModel("m", engine)
    settings = ServeSettings(port=0, instances=1, run_in="thread")
    with serving(Server([old], settings, catalog=catalog, load=load)) as server:
        statuses: list[int] = []
        waiting = [
            threading.Thread(
                target=lambda: statuses.append(ask(server.port, "POST", "/v2/models/m/infer", ones_request()).status)
            )
            for _ in range(3)
        ]
        for thread in waiting:
            thread.start()
        engine.wait_entered()
        put(tmp_path / "m", 1)
        assert change(server.port, "load").status == 200
        assert mark(server.port) == 1
        assert statuses == []
        assert old.ready
        engine.gate.set()
        for thread in waiting:
            thread.join(WAIT_S)
        assert statuses == [200, 200, 200]
        until(lambda: not old.ready)
        stats = ask(server.port, "GET", "/v2/models/m/stats").json()["model_stats"][0]
        assert stats["inference_count"] == 4  # those of the old one are not forgotten


def test_a_change_on_disk_is_seen_and_a_bad_one_is_tried_once(tmp_path: Path) -> None:
    put(tmp_path / "models" / "m", 1)
    put(tmp_path / "given", 10)
    load = Loader()
    with managed(tmp_path / "models", load, f"g={tmp_path / 'given'}", watch_s=0.05) as server:
        assert (mark(server.port), mark(server.port, "g")) == (1, 10)
        put(tmp_path / "models" / "m", 2)
        put(tmp_path / "given", 11)
        put(tmp_path / "models" / "new", 3)
        until(lambda: mark(server.port) == 2)
        until(lambda: mark(server.port, "g") == 11)
        until(lambda: ask(server.port, "GET", "/v2/models/new").status == 200)
        tried: list[str] = []

        def before(source: Source) -> None:
            tried.append(source.name)
            raise EngineError("no memory")

        load.before = before
        put(tmp_path / "models" / "m", 4)
        until(lambda: states(server.port)["m/1"][1] == "no memory")
        in_loop(server, server.server.manager.refresh())
        assert tried == ["m"]
        assert mark(server.port) == 2
        load.before = lambda source: None
        in_loop(server, server.server.manager.refresh(again=True))
        assert mark(server.port) == 4


def test_what_was_unloaded_stays_so_until_it_changes(tmp_path: Path) -> None:
    put(tmp_path / "m", 1)
    with managed(tmp_path, Loader()) as server:
        manager = server.server.manager
        assert change(server.port, "unload").status == 200
        in_loop(server, manager.refresh(again=True))
        assert ask(server.port, "GET", "/v2/models/m").status == 404
        put(tmp_path / "m", 2)
        in_loop(server, manager.refresh())
        assert mark(server.port) == 2


def test_what_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    put(tmp_path / "m", 1)
    load = Loader()
    with managed(tmp_path, load) as server:
        put(tmp_path / "m", 2)
        replaced: list[str] = []

        def before(source: Source) -> None:
            if not replaced:
                replaced.append(source.path)
                put(tmp_path / "m", 3)
                raise EngineError("graph.bin: its bytes are not those that were written")

        load.before = before
        assert change(server.port, "load").status == 200
        assert mark(server.port) == 3


def test_at_the_start_the_server_is_there_and_not_ready(tmp_path: Path) -> None:
    put(tmp_path / "a", 1)
    put(tmp_path / "b", 2)
    null_artifact(tmp_path / "c", "notanumber")
    load = Loader()
    gate = threading.Event()
    load.before = lambda source: gate.wait(WAIT_S) and None
    seen: dict[str, tuple[int, str]] = {}

    async def main() -> None:
        server = Server([], ServeSettings(port=0, instances=1), catalog=Catalog(directory=str(tmp_path)), load=load)
        starting = asyncio.ensure_future(server.start())
        try:
            async with asyncio.timeout(WAIT_S):
                while server._listener is None:
                    await asyncio.sleep(0.01)
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/b"):
                reply = await asyncio.to_thread(ask, server.port, "GET", path)
                seen[path] = (reply.status, reply.headers.get("retry-after", ""))
            gate.set()
            await starting
            for path in ("/v2/health/ready", "/v2/models/b", "/v2/models/c"):
                seen[path + " then"] = ((await asyncio.to_thread(ask, server.port, "GET", path)).status, "")
        finally:
            await server.stop()

    asyncio.run(main())
    assert seen == {
        "/v2/health/live": (200, ""),
        "/v2/health/ready": (503, "1"),
        "/v2/models/b": (503, "1"),
        "/v2/health/ready then": (200, ""),
        "/v2/models/b then": (200, ""),
        "/v2/models/c then": (404, ""),
    }


def test_stopping_does_not_wait_for_a_model_that_is_being_loaded(tmp_path: Path) -> None:
    put(tmp_path / "m", 1)
    load = Loader()
    gate = threading.Event()
    with managed(tmp_path, load) as server:
        load.before = lambda source: gate.wait(WAIT_S) and None
        put(tmp_path / "m", 2)
        server.loop.call_soon_threadsafe(server.server.reload)
        until(lambda: threading.active_count() > 2)
        assert server.stop_soon().result(WAIT_S / 2) == 0
    gate.set()
