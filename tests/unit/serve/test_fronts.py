"""Several servers behind one port: real processes, some of them killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tauten.run.serve.one_view import merged_index, merged_metrics, merged_statistics
from tauten.run.serve.past import Past
from tests.unit.serve.artifacts import linear_artifact, null_artifact
from tests.unit.serve.tiny import WAIT_S, ask, ones_request, post, read_replies, tensor, until, wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes share a port in Linux")

INFER = "/v2/models/nothing/infer"
HITS = 'nv_inference_request_success{model="nothing"'


@contextmanager
def fronts(folder: Path, *arguments: str, count: int = 2) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``tauten serve`` in several processes, and the port that they share."""
    what = arguments or (str(null_artifact(folder / "nothing")),)
    command = [str(Path(sys.executable).with_name("tauten")), "serve", *what, "--port", "0", "--json"]
    process = subprocess.Popen([*command, "--fronts", str(count)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield process, int(ready["url"].rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def children(process: subprocess.Popen[str]) -> list[int]:
    return children_of(process.pid)


def children_of(pid: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def counted(port: int) -> float:
    lines = ask(port, "GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(HITS))


def test_they_share_the_work_and_any_tells_the_metrics_of_all(tmp_path: Path) -> None:
    with fronts(tmp_path) as (process, port):
        assert len(children(process)) == 2
        for _ in range(60):
            assert ask(port, "POST", INFER, ones_request()).status == 200
        assert [counted(port) for _ in range(10)] == [60.0] * 10
        text = ask(port, "GET", "/metrics").body.decode()
        for number in range(2):
            assert f'process_resident_memory_bytes{{process="{number}"}}' in text
        took = {line for line in text.splitlines() if line.startswith("process_cpu_seconds_total{")}
        assert len(took) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_one_that_is_killed_comes_back(tmp_path: Path) -> None:
    with fronts(tmp_path) as (process, port):
        (first, second) = children(process)
        os.kill(first, signal.SIGKILL)
        until(lambda: len(children(process)) == 2 and first not in children(process))
        assert second in children(process)

        def answers() -> bool:
            return all(ask(port, "POST", INFER, ones_request()).status == 200 for _ in range(10))

        until(lambda: quietly(answers))
        until(lambda: 'process="0"' in ask(port, "GET", "/metrics").body.decode())


def test_what_one_has_counted_is_not_lost_with_it(tmp_path: Path) -> None:
    with fronts(tmp_path) as (process, port):
        for killed in range(3):  # one after the other, and one of them twice
            for _ in range(20):
                assert ask(port, "POST", INFER, ones_request()).status == 200
            total = 20.0 * (killed + 1)
            assert [counted(port) for _ in range(4)] == [total] * 4
            victim = children(process)[0]
            os.kill(victim, signal.SIGKILL)
            seen: list[float] = []

            def all_back(victim: int = victim, seen: list[float] = seen) -> bool:
                seen.append(counted(port))
                return len(children(process)) == 2 and victim not in children(process) and all_there(port)

            until(lambda all_back=all_back: quietly(all_back))
            assert set(seen) == {total}, seen
            assert {counted(port) for _ in range(8)} == {total}


def test_only_what_grows_is_kept_of_one_that_died(tmp_path: Path) -> None:
    text = (
        b'# HELP a Counts.\n# TYPE a counter\na{x="1"} 3.0\n# TYPE b gauge\nb 5.0\n'
        b'# TYPE c histogram\nc_bucket{le="1"} 1.0\nc_sum 0.5\n# TYPE d untyped\nd 2.0\n'
        b"# TYPE process_cpu_seconds counter\nprocess_cpu_seconds 9.0\n"
    )
    kept = b'# TYPE a counter\na{x="1"} 3.0\n# TYPE c histogram\nc_bucket{le="1"} 1.0\nc_sum 0.5\n'
    kept += b"# TYPE d untyped\nd 2.0\n"
    here, other = Past(tmp_path, 0), Past(tmp_path, 1)
    assert here.of(1) == (b"", b"")
    here.note(1, text)
    here.note(1, text)  # the same figures, told again
    assert here.of(1) == (kept, b"")
    for lives in (1, 2):
        here.note(1, text)
        other.begin()
        assert here.of(1).told == b""
        assert f'a{{x="1"}} {3.0 * lives}' in here.of(1).over.decode()


def quietly(asks: object) -> bool:
    """Whether it holds; not, where a connection was refused."""
    try:
        return bool(asks())  # type: ignore[operator]
    except OSError:
        return False


def test_without_the_first_process_the_others_end(tmp_path: Path) -> None:
    with fronts(tmp_path) as (process, _):
        servers = children(process)
        process.kill()
        until(lambda: not any(alive(pid) for pid in servers))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_a_port_that_is_taken_and_options_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "nothing")
    tauten = str(Path(sys.executable).with_name("tauten"))
    with fronts(tmp_path) as (_, port):
        for more, code, text in (
            (["--port", str(port)], 1, f"cannot listen on port {port}"),
            (["--grpc-port", "0"], 2, "got 0"),
        ):
            done = subprocess.run(
                [tauten, "serve", str(artifact), "--fronts", "2", *more], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == code
            assert text in " ".join(done.stderr.split())


def test_models_that_cannot_be_loaded_end_all_with_a_reason(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "nothing")
    tauten = str(Path(sys.executable).with_name("tauten"))
    started = time.monotonic()
    done = subprocess.run(
        [tauten, "serve", str(artifact), "--fronts", "2", "--port", "0", "--handler", str(tmp_path / "nowhere.py")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "nowhere.py" in " ".join(done.stderr.split())
    assert time.monotonic() - started < 60


def stats(port: int, path: str = "/v2/models/nothing/stats") -> Any:
    (model,) = ask(port, "GET", path).json()["model_stats"]
    return model


def test_any_tells_the_statistics_of_all(tmp_path: Path) -> None:
    with fronts(tmp_path) as (_, port):
        for rows in (1, 1, 2) * 20:
            assert ask(port, "POST", INFER, ones_request(rows)).status == 200
        for path in ("/v2/models/nothing/stats", "/v2/models/nothing/versions/1/stats", "/v2/models/stats") * 5:
            model = stats(port, path)
            assert model["name"] == "nothing"
            assert model["version"] == "1"
            assert model["inference_count"] == 80
            assert model["execution_count"] == 60
            assert model["inference_stats"]["success"]["count"] == 60
            sizes = [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in model["batch_stats"]]
            assert sizes == [(1, 40), (2, 20)]
        assert ask(port, "GET", "/v2/models/no/stats").status == 404


def test_over_grpc_any_tells_the_statistics_of_all(tmp_path: Path) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        grpc_port = free.getsockname()[1]
    with fronts(tmp_path, str(null_artifact(tmp_path / "nothing")), "--grpc-port", str(grpc_port)) as (_, port):
        for _ in range(30):
            assert ask(port, "POST", INFER, ones_request()).status == 200
        for _ in range(6):
            with triton.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
                assert client.is_server_ready()
                assert client.is_model_ready("nothing")
                assert not client.is_model_ready("no")
                (model,) = client.get_inference_statistics("nothing").model_stats
                assert model.inference_count == 30


def test_models_are_loaded_and_unloaded_in_all(tmp_path: Path) -> None:
    null_artifact(tmp_path / "m")
    with fronts(tmp_path, "--repository", str(tmp_path)) as (process, port):
        until(lambda: ask(port, "GET", "/v2/health/ready").status == 200)

        def statuses(path: str) -> set[int]:
            return {ask(port, "GET", path).status for _ in range(12)}

        assert statuses("/v2/models/m/ready") == {200}
        assert statuses("/v2/models/new") == {404}
        null_artifact(tmp_path / "new")
        assert ask(port, "POST", "/v2/repository/models/new/load").status == 200
        assert statuses("/v2/models/new/ready") == {200}
        assert ask(port, "POST", "/v2/repository/models/m/unload").status == 200
        assert statuses("/v2/models/m") == {404}
        index = [
            {"name": "new", "version": "1", "state": "READY", "reason": ""},
            {"name": "m", "state": "UNAVAILABLE", "reason": "unloaded"},
        ]
        for _ in range(5):
            assert ask(port, "POST", "/v2/repository/index").json() == index
            assert ask(port, "POST", "/v2/repository/index", {"ready": True}).json() == index[:1]
        # One that starts again serves what the others serve.
        first = children(process)[0]
        os.kill(first, signal.SIGKILL)
        until(lambda: len(children(process)) == 2 and first not in children(process))
        until(lambda: quietly(lambda: all_there(port)))
        until(lambda: quietly(lambda: statuses("/v2/models/new/ready") == {200}))
        assert statuses("/v2/models/m") == {404}
        # What cannot be loaded is refused by all, and they go on with what they have.
        (tmp_path / "new" / "graph.bin").write_bytes(b"other")
        assert ask(port, "POST", "/v2/repository/models/new/load").status == 400
        assert statuses("/v2/models/new/ready") == {200}


def all_there(port: int, count: int = 2) -> bool:
    text = ask(port, "GET", "/metrics").body.decode()
    return all(f'process="{number}"' in text for number in range(count))


def test_ready_is_said_of_all_that_take_connections(tmp_path: Path) -> None:
    with fronts(tmp_path) as (process, port):
        ready = b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n"
        assert {ask(port, "GET", "/v2/health/ready").status for _ in range(8)} == {200}
        stopped = children(process)[1]
        os.kill(stopped, signal.SIGSTOP)  # it is there, and does not answer
        try:
            replies: list[bytes] = []
            until(lambda: replies.append(first_bytes(port, ready)) or any(replies))
            (reply,) = filter(None, replies)
            assert reply.startswith(b"HTTP/1.1 503 ")
        finally:
            os.kill(stopped, signal.SIGCONT)
        until(lambda: {ask(port, "GET", "/v2/health/ready").status for _ in range(8)} == {200})
        os.kill(stopped, signal.SIGKILL)  # it is not there, and takes no connections
        assert any(first_bytes(port, ready).startswith(b"HTTP/1.1 200 ") for _ in range(3))


def test_health_checks_over_grpc_tell_of_all_that_take_connections(tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc")
    health = pytest.importorskip("grpc_health.v1.health_pb2")
    stubs = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        grpc_port = free.getsockname()[1]

    def status(name: str) -> Any:
        """What the front answers that takes the connection; ``None`` where it does not answer."""
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                return stubs.HealthStub(channel).Check(health.HealthCheckRequest(service=name), timeout=3).status
            except grpc.RpcError:
                return None

    serving = health.HealthCheckResponse
    with fronts(tmp_path, str(null_artifact(tmp_path / "nothing")), "--grpc-port", str(grpc_port)) as (process, _):
        assert {status(""), status("nothing")} == {serving.SERVING}
        stopped = children(process)[1]
        os.kill(stopped, signal.SIGSTOP)  # it is there, and does not answer
        try:
            for name in ("", "nothing"):
                seen: list[Any] = []
                until(lambda name=name, seen=seen: seen.append(status(name)) or any(seen))
                assert set(seen) <= {None, serving.NOT_SERVING}
        finally:
            os.kill(stopped, signal.SIGCONT)
        until(lambda: {status("") for _ in range(4)} == {serving.SERVING})


def first_bytes(port: int, request: bytes) -> bytes:
    """What comes within three seconds."""
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        try:
            connection.sendall(request)
            return connection.recv(4096)
        except OSError:
            return b""


def answers(port: int) -> set[float]:
    """What the fronts answer."""
    x = tensor("x", "FP32", [1, 3], [1, 0, 0])
    replies = [ask(port, "POST", "/v2/models/m/infer", {"inputs": [x]}).json() for _ in range(16)]
    return {reply["outputs"][0]["data"][0] for reply in replies}


def test_an_artifact_that_is_replaced_is_served_by_all_and_by_one_that_starts_again(tmp_path: Path) -> None:
    path = linear_artifact(tmp_path / "m", scale=1)
    with fronts(tmp_path, f"m={path}") as (process, port):
        assert answers(port) == {1.0}
        linear_artifact(path, scale=2)
        process.send_signal(signal.SIGHUP)
        until(lambda: answers(port) == {2.0})
        # Nobody has told of the next one: who starts again finds it, and the others load it then.
        linear_artifact(path, scale=3)
        first = children(process)[0]
        os.kill(first, signal.SIGKILL)
        until(lambda: quietly(lambda: answers(port) == {3.0}))
        assert len(children(process)) == 2
        until(lambda: quietly(lambda: all_there(port)))
        assert answers(port) == {3.0}


class Client(threading.Thread):
    """Asks again and again on one connection; on another one when that has died, which it keeps count of."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.stopping = threading.Event()
        self.answered = 0
        self.died: list[int] = []  # the connections that died, by their own port
        self.failed: list[str] = []
        self.start()

    def run(self) -> None:
        request = post(INFER, json.dumps(ones_request()).encode())
        while not self.stopping.is_set():
            with wire(self.port) as connection:
                own = connection.getsockname()[1]
                while not self.stopping.is_set():
                    try:
                        connection.sendall(request)
                        (reply,) = read_replies(connection, 1)
                    except (ConnectionError, IndexError):  # reset, or ended before an answer
                        self.died.append(own)
                        break
                    except OSError as fault:
                        self.failed.append(repr(fault))
                        return
                    if reply.status == 200:
                        self.answered += 1
                    else:
                        self.failed.append(f"{reply}")


def connected_to(pid: int) -> set[int]:
    """The ports of the clients whose connections a process holds."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(fields[2].partition(":")[2], 16) for fields in lines if fields[9] in inodes}


def test_fronts_and_workers_are_killed_under_load_and_only_a_fronts_own_connections_die(tmp_path: Path) -> None:
    artifact = null_artifact(tmp_path / "nothing")
    with fronts(tmp_path, str(artifact), "--workers", "1") as (process, port):
        first, second = children(process)
        clients = [Client(port) for _ in range(8)]
        until(lambda: all(client.answered > 20 for client in clients))
        # A worker: its requests wait for the next one, and nobody notices.
        (worker,) = children_of(first)
        os.kill(worker, signal.SIGKILL)
        until(lambda: len(children_of(first)) == 1 and worker not in children_of(first))
        before = [client.answered for client in clients]
        until(lambda: all(client.answered > known + 20 for client, known in zip(clients, before, strict=True)))
        assert not any(client.died or client.failed for client in clients)
        # A front, and with it its worker: its connections end, and no other.
        os.kill(second, signal.SIGSTOP)  # no connection comes or goes between the look and the kill
        its, those_of_the_other = connected_to(second), connected_to(first)
        assert its
        (worker,) = children_of(second)
        os.kill(second, signal.SIGKILL)
        until(lambda: len(children(process)) == 2 and second not in children(process))
        until(lambda: not alive(worker))
        # The system's list of children leaves some out while others come.
        until(lambda: [len(children_of(pid)) for pid in children(process) if pid != first] == [1])
        until(lambda: quietly(lambda: all_there(port)))
        before = [client.answered for client in clients]
        until(lambda: all(client.answered > known + 20 for client, known in zip(clients, before, strict=True)))
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(WAIT_S)
            assert not client.failed, client.failed[:3]
            # One more may have been taken by the front that died, while the system ended it.
            assert len(client.died) <= 2
            assert its.issuperset(client.died[:1])
        died = {port for client in clients for port in client.died}
        assert not died & those_of_the_other, "a connection of the other front died"
        for _ in range(8):
            assert ask(port, "POST", INFER, ones_request()).status == 200


def test_merged_statistics_are_sums() -> None:
    def document(count: int, when: int, *batches: tuple[int, int]) -> dict[str, Any]:
        none = {"count": 0, "ns": 0}
        rows = [
            {"batch_size": size, "compute_input": none, "compute_infer": {"count": number, "ns": 10 * number}}
            for size, number in batches
        ]
        model = {"name": "m", "version": "2", "last_inference": when, "inference_count": count, "batch_stats": rows}
        return {"model_stats": [{**model, "inference_stats": {"success": {"count": count, "ns": 5}}}]}

    both = merged_statistics([document(3, 70, (1, 3)), document(4, 50, (1, 2), (2, 1))])
    assert both["model_stats"][0] == {
        **document(7, 70)["model_stats"][0],
        "inference_stats": {"success": {"count": 7, "ns": 10}},
        "batch_stats": document(0, 0, (1, 5), (2, 1))["model_stats"][0]["batch_stats"],
    }
    other = {"model_stats": [{"name": "n", "version": "1", "inference_count": 1}]}
    assert [model["name"] for model in merged_statistics([both, other])["model_stats"]] == ["m", "n"]


def test_a_model_is_ready_where_it_is_in_all() -> None:
    ready = {"name": "m", "version": "1", "state": "READY", "reason": ""}
    assert merged_index([[ready], [ready]]) == [ready]
    for other in (
        [{**ready, "state": "UNAVAILABLE", "reason": "why"}],
        [{"name": "m", "state": "LOADING", "reason": ""}],
        [],
    ):
        for indices in ([[ready], other], [other, [ready]]):
            (entry,) = merged_index(indices)
            assert (entry["name"], entry["version"], entry["state"]) == ("m", "1", "UNAVAILABLE")
            assert entry["reason"]


def test_merged_metrics_are_sums_and_keep_their_families_together() -> None:
    one = b'# HELP h Seconds\n# TYPE h histogram\nh_bucket{le="1.0"} 1\nh_count 2\nh_sum 3.5\n'
    one += b'# TYPE g gauge\ng{a="x y"} 1\n'
    two = one.replace(b"h_count 2", b"h_count 5") + b'g{a="only here"} 7\n'
    assert merged_metrics([(0, one), (1, two)]).decode().splitlines() == [
        "# HELP h Seconds",
        "# TYPE h histogram",
        'h_bucket{le="1.0"} 2.0',
        "h_count 7.0",
        "h_sum 7.0",
        "# TYPE g gauge",
        'g{a="x y"} 2.0',
        'g{a="only here"} 7.0',
    ]
