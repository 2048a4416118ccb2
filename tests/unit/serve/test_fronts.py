"""Several servers behind one port: real processes, some of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tauten.run.serve.one_view import merged_index, merged_metrics, merged_statistics
from tests.unit.serve.artifacts import null_artifact
from tests.unit.serve.tiny import ask, ones_request, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes share a port in Linux")

INFER = "/v2/models/nothing/infer"
HITS = 'nv_inference_request_success{model="nothing"'


@contextmanager
def fronts(folder: Path, count: int = 2) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``tauten serve`` in several processes, and the port that they share."""
    artifact = null_artifact(folder / "nothing")
    command = [str(Path(sys.executable).with_name("tauten")), "serve", str(artifact), "--port", "0", "--json"]
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
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


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
