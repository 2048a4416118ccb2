"""Several models and versions: which one answers, and what a change of them does."""

from __future__ import annotations

import pytest

from tauten.errors import ConfigError, NotFound, NotReady
from tauten.run.serve.model import ServedModel
from tauten.run.serve.repository import Repository
from tauten.run.serve.server import Server
from tauten.run.serve.settings import ServeSettings
from tests.unit.serve.tiny import Double, ask, ones_request, serving


def model(name: str, version: str = "1") -> ServedModel:
    return ServedModel(name, Double(), version=version)


def test_the_highest_version_answers_where_none_is_named() -> None:
    repository = Repository([model("m", "9"), model("m", "10"), model("m", "2"), model("n")])
    assert repository.find("m").version == "10"
    assert [found.version for found in repository.versions("m")] == ["2", "9", "10"]
    assert repository.find("m", "9").version == "9"
    assert repository.names == ["m", "n"]
    assert len(list(repository)) == 4


def test_the_pinned_version_answers_where_there_is_a_pin() -> None:
    repository = Repository([model("m", "1"), model("m", "2")], {"m": "1"})
    assert repository.find("m").version == "1"
    assert repository.find("m", "2").version == "2"
    with pytest.raises(ConfigError, match=r"'m' is pinned to version 1: expected it among \['2'\]"):
        repository.put("m", [model("m", "2")])
    assert repository.find("m").version == "1"


def test_two_of_one_version_are_refused() -> None:
    with pytest.raises(ConfigError, match="'m' twice in version 1"):
        Repository([model("m"), model("m")])


def test_a_change_tells_what_is_gone_and_those_who_ask() -> None:
    one, two, other = model("m", "1"), model("m", "2"), model("m", "2")
    repository = Repository([one, two])
    told: list[list[str]] = []
    repository.on_change(lambda: told.append(repository.names))
    assert repository.put("m", [one, other]) == [two]
    assert repository.put("n", [model("n")]) == []
    assert repository.put("m", [other]) == [one]
    assert repository.remove("m") == [other]
    assert repository.remove("m") == []
    assert told == [["m"], ["m", "n"], ["m", "n"], ["n"], ["n"]]


def test_what_is_on_its_way_is_not_ready_rather_than_not_there() -> None:
    repository = Repository([model("m")])
    with pytest.raises(NotFound, match="no model named 'n'"):
        repository.find("n")
    repository.loading.add("n")
    with pytest.raises(NotReady, match="'n' is being loaded"):
        repository.find("n")
    repository.starting = True
    assert not repository.ready


def test_every_version_has_its_paths() -> None:
    server = Server([model("m", "1"), model("m", "3"), model("n", "2")], ServeSettings(port=0))
    with serving(server) as running:
        port = running.port
        assert ask(port, "GET", "/v2/models/m").json()["versions"] == ["1", "3"]
        assert ask(port, "GET", "/v2/models/m/versions/1").json()["versions"] == ["1", "3"]
        for path, version in (("m", "3"), ("m/versions/1", "1"), ("m/versions/3", "3"), ("n", "2")):
            reply = ask(port, "POST", f"/v2/models/{path}/infer", ones_request())
            assert (reply.status, reply.json()["model_version"]) == (200, version)
        reply = ask(port, "POST", "/v2/models/m/versions/2/infer", ones_request())
        assert (reply.status, reply.json()) == (404, {"error": "model 'm' has no version '2': expected '1', '3'"})
        told = {(one["name"], one["version"]) for one in ask(port, "GET", "/v2/models/stats").json()["model_stats"]}
        assert told == {("m", "1"), ("m", "3"), ("n", "2")}


def test_statistics_tell_of_batches() -> None:
    with serving(Server([model("m")], ServeSettings(port=0))) as it:
        for rows in (1, 1, 3):
            ask(it.port, "POST", "/v2/models/m/infer", ones_request(rows))
        stats = ask(it.port, "GET", "/v2/models/m/stats").json()["model_stats"][0]
        assert stats["inference_count"] == 5
        assert stats["execution_count"] == 3
        assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in stats["batch_stats"]] == [
            (1, 2),
            (3, 1),
        ]
        assert all(batch["compute_infer"]["ns"] > 0 for batch in stats["batch_stats"])


def test_the_index_tells_of_each_version() -> None:
    with serving(Server([model("m", "1"), model("m", "2")], ServeSettings(port=0))) as running:
        reply = ask(running.port, "POST", "/v2/repository/index", {})
        assert reply.json() == [
            {"name": "m", "version": version, "state": "READY", "reason": ""} for version in ("1", "2")
        ]
        for body, says in ((b"[]", "got a list"), (b"{", "expected a JSON object"), (b'{"ready":1}', "'ready'")):
            reply = ask(running.port, "POST", "/v2/repository/index", body)
            assert reply.status == 400
            assert says in reply.json()["error"]


@pytest.mark.parametrize("action", ["load", "unload"])
def test_a_server_without_a_repository_loads_for_nobody(action: str) -> None:
    with serving(Server([model("m")], ServeSettings(port=0))) as running:
        reply = ask(running.port, "POST", f"/v2/repository/models/m/{action}", {})
        assert reply.status == 403
        assert "start it with --repository" in reply.json()["error"]
        assert "model_repository" not in ask(running.port, "GET", "/v2").json()["extensions"]
        assert ask(running.port, "GET", f"/v2/repository/models/m/{action}").status == 405
        assert ask(running.port, "POST", "/v2/repository/models/m/else").status == 404
        assert ask(running.port, "POST", "/v2/models/m/infer", ones_request()).status == 200
