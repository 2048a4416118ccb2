"""An engine in a process of its own: what it answers, and what happens when it dies, hangs or fails."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tauten.artifact.read import read_artifact
from tauten.errors import EngineError, InputError, NotReady
from tauten.run.engines import load
from tauten.run.serve.instance import InstanceLost
from tauten.run.serve.instances._process_child import Child, ProcessSettings
from tests.unit.serve.artifacts import linear_artifact, null_artifact
from tests.unit.serve.processes import (
    ask,
    call_for,
    in_loop,
    instance,
    rows,
    settings_for,
    submit,
    until,
)

ECHO = """
from tauten.core.tensor import TensorSpec
outputs = [TensorSpec(name="x", shape=("batch", 3))]

def after(outputs, inputs):
    return inputs
"""
TEXTS = """
from tauten.run.serve.protocol.elements import BytesSpec
inputs = [BytesSpec(name="text", shape=("batch",))]
outputs = [BytesSpec(name="loud", shape=("batch",))]

def before(inputs):
    return {"x": [[len(text)] * 3 for text in inputs["text"]]}

def after(outputs, inputs):
    return {"loud": [text.decode().upper() for text in inputs["text"]]}
"""


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> list[str]:
    """Processes that this one has started and that are still there, dead ones that nobody waited for too."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_it_answers_what_the_engine_in_this_process_answers(tmp_path: Path) -> None:
    path = linear_artifact(tmp_path / "linear")
    artifact = read_artifact(path)
    engine = load(artifact)
    random = np.random.default_rng(0)

    async def main() -> None:
        with instance(ProcessSettings(artifact=str(path), checksums=artifact.checksums, threads=1)) as process:
            for count in (1, 2, 7, 1, 5000, 3, 300_000, 1):  # grows and shrinks over the memory that is there
                x = random.standard_normal((count, 3)).astype(np.float32)
                (found,) = await ask(process, x)
                assert np.array_equal(found, engine({"x": x})["y"])

    in_loop(main)


def test_calls_of_one_batch_get_their_own_rows_and_times(tmp_path: Path) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path)) as process:
            calls = [call_for(rows(*range(begin, begin + count))) for begin, count in ((1, 2), (3, 1), (4, 3))]
            before = time.perf_counter_ns()
            assert await submit(process, *calls) is None
            assert [call.result[0].tolist() for call in calls] == [[4, 5], [6], [7, 8, 9]]
            for call in calls:
                assert before < call.started_ns <= call.ended_ns < time.perf_counter_ns()
                assert (call.batch_rows, call.why) == (6, "test")
                assert set(call.result[1]) == {process.pid}
            assert process.pid != os.getpid()

    in_loop(main)


def test_many_batches_at_once_are_answered_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path)) as process:
            calls = [call_for(rows(number)) for number in range(200)]
            answers = [submit(process, call) for call in calls]
            assert process.outstanding == 200
            assert await asyncio.gather(*answers) == [None] * 200
            assert process.outstanding == 0
            assert [float(call.result[0][0]) for call in calls] == [number + 3 for number in range(200)]

    in_loop(main)


def test_tensors_of_64_mb_go_in_and_out_and_stay_as_they_are(tmp_path: Path) -> None:
    count = 64 * 2**20 // 12

    async def main() -> None:
        with instance(settings_for(tmp_path, ECHO)) as process:
            x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
            (first,) = await ask(process, x)
            (second,) = await ask(process, x + 1)  # while the first answer is still held
            assert np.array_equal(first, x)
            assert np.array_equal(second, x + 1)

    in_loop(main)


def test_memory_is_used_again_and_small_answers_are_copied_out_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path, ECHO)) as process:
            kept = [(await ask(process, rows(number)))[0] for number in range(50)]
            assert [float(array[0, 0]) for array in kept] == list(range(50))
            assert process._slots == 1
            large = [(await ask(process, np.full((100_000, 3), number, np.float32)))[0][-2:] for number in range(3)]
            assert [float(array[0, 0]) for array in large] == [0, 1, 2]
            assert process._slots == 3  # each of the large answers is still held by a view
            del large
            for number in range(10):
                await ask(process, np.full((100_000, 3), number, np.float32))
            assert process._slots <= 4

    in_loop(main)


def test_a_handler_may_keep_its_inputs(tmp_path: Path) -> None:
    keeping = """
from tauten.core.tensor import TensorSpec
outputs = [TensorSpec(name="total", shape=("batch",))]
kept = []

def before(inputs):
    kept.append(inputs["x"])
    return inputs

def after(outputs):
    return {"total": [float(sum(x.sum() for x in kept))]}
"""

    async def main() -> None:
        with instance(settings_for(tmp_path, keeping)) as process:
            totals = [float((await ask(process, rows(number)))[0][0]) for number in (1, 2, 3)]
            assert totals == [4, 9, 15]  # the dry run's zeros add nothing

    in_loop(main)


def test_elements_of_bytes_travel_too(tmp_path: Path) -> None:
    from tauten.run.serve.call import Call
    from tauten.run.serve.protocol.elements import pack_elements

    async def main() -> None:
        with instance(settings_for(tmp_path, TEXTS)) as process:
            texts = ["ab", "", "ä" * 100_000]
            call = Call([pack_elements([text.encode() for text in texts])], [(3,)], 3, None, lambda call: None)
            assert await submit(process, call) is None
            assert [text.decode() for text in call.result[0]] == [text.upper() for text in texts]

    in_loop(main)


def test_it_keeps_to_its_cores(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))

    async def main() -> None:
        with instance(settings_for(tmp_path, cores=(core,))) as process:
            tasks = os.listdir(f"/proc/{process.pid}/task")
            assert all(os.sched_getaffinity(int(task)) == {core} for task in tasks)

    in_loop(main)


@pytest.mark.parametrize(
    ("first", "kind", "says"),
    [
        (-4, InputError, "minus four"),
        (-5, EngineError, "prep.py: before() failed: the server's log says how"),
        (-6, EngineError, "prep.py: before() failed: the server's log says how"),
    ],
)
def test_what_a_handler_raises_becomes_the_batch_s_fault(
    tmp_path: Path, first: float, kind: type[Exception], says: str
) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path)) as process:
            pid = process.pid
            fault = await submit(process, call_for(rows(first)))
            assert type(fault) is kind
            assert str(fault) == says
            if kind is EngineError:  # what the log shows
                assert any("Traceback" in note and "prep.py" in note for note in fault.__notes__)
            assert (await ask(process, rows(1)))[0] == 4
            assert (process.pid, process.restarts) == (pid, 0)

    in_loop(main)


def test_one_that_is_killed_gives_its_batches_back_and_starts_again(tmp_path: Path) -> None:
    told: list[bool] = []

    async def main() -> None:
        with instance(settings_for(tmp_path)) as process:
            process.changed = lambda: told.append(process.healthy)
            await ask(process, rows(1))
            answers = [submit(process, call_for(rows(-2000))) for _ in range(3)]
            os.kill(process.pid, signal.SIGKILL)
            faults = await asyncio.gather(*answers)
            assert [type(fault) for fault in faults] == [InstanceLost] * 3
            assert str(faults[0]) == "the worker process was killed by signal 9"
            assert not process.healthy
            assert process.outstanding == 0
            assert type(await submit(process, call_for(rows(1)))) is InstanceLost  # none there yet
            await until(lambda: process.healthy)
            assert (await ask(process, rows(1)))[0] == 4
            assert told == [False, True]

    in_loop(main)


def test_one_that_a_handler_ends_starts_again(tmp_path: Path) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path)) as process:
            fault = await submit(process, call_for(rows(-1)))
            assert type(fault) is InstanceLost
            assert str(fault) == "the worker process ended with exit code 7"
            await until(lambda: process.healthy)
            assert (await ask(process, rows(5)))[0] == 8

    in_loop(main)


@pytest.mark.parametrize("first", [-2, -3], ids=["sleeps", "holds the interpreter"])
def test_one_that_hangs_is_killed_and_starts_again(tmp_path: Path, first: float) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path), answer_s=0.5) as process:
            pid, started = process.pid, time.perf_counter()
            hung, behind = submit(process, call_for(rows(first))), submit(process, call_for(rows(1)))
            assert type(await hung) is NotReady
            assert 0.4 < time.perf_counter() - started < 5
            assert type(await behind) is InstanceLost
            await until(lambda: process.healthy)
            assert process.pid != pid
            assert not Path(f"/proc/{pid}").exists()
            assert (await ask(process, rows(1)))[0] == 4

    in_loop(main)


def test_one_that_is_slow_and_not_stuck_is_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path), answer_s=1.0) as process:
            answers = [submit(process, call_for(rows(-3000))) for _ in range(6)]  # 0.3 s each, 1.8 s in all
            assert await asyncio.gather(*answers) == [None] * 6
            assert process.restarts == 0

    in_loop(main)


def test_what_runs_when_it_closes_gets_not_ready(tmp_path: Path) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path)) as process:
            answer = submit(process, call_for(rows(-2)))
            process.close()
            assert type(await answer) is NotReady
            assert type(await submit(process, call_for(rows(1)))) is InstanceLost
            process.close()
        assert not children()

    in_loop(main)


def test_nothing_is_left_of_processes_that_died(tmp_path: Path) -> None:
    async def main() -> None:
        with instance(settings_for(tmp_path)) as process:
            await ask(process, np.ones((300_000, 3), np.float32))
            files = open_files()
            for _ in range(3):
                os.kill(process.pid, signal.SIGKILL)
                await until(lambda: not process.healthy)
                await until(lambda: process.healthy)
                await ask(process, np.ones((300_000, 3), np.float32))
                assert open_files() == files
                assert children() == [str(process.pid)]
                process._backoff.ended(60)  # as if it had lived for long

    files = open_files()
    in_loop(main)
    assert open_files() <= files + 1
    assert not children()
    assert not [name for name in os.listdir("/dev/shm") if "tauten" in name]


PARENT = """
import sys
from tauten.run.serve.instances._process_child import Child, ProcessSettings
from tests.unit.serve.processes import call_for, in_loop, rows, submit, instance

async def main():
    import asyncio, json
    settings = ProcessSettings.from_json(json.loads(sys.argv[1]))
    with instance(settings) as idle, instance(settings) as busy:
        submit(busy, call_for(rows(-3)))
        print(idle.pid, busy.pid, flush=True)
        await asyncio.sleep(1000)

in_loop(main)
"""


def test_processes_die_with_a_server_that_is_killed(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, settings.model_dump_json()], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    ) as server:
        assert server.stdout is not None
        pids = [int(pid) for pid in server.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.2)  # until the busy one is busy
        server.kill()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "a worker process outlives its server"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        ("def before(inputs)\n    pass", "prep.py, line 1: SyntaxError"),
        (
            "def before(inputs):\n    return inputs['y']",
            "prep.py: before() failed (line 2: return inputs['y']): KeyError",
        ),
        ("raise RuntimeError('no weights')", "prep.py does not load (line 1: raise RuntimeError('no weights'))"),
    ],
)
def test_one_that_cannot_load_says_why(tmp_path: Path, handler: str, says: str) -> None:
    child = Child(settings_for(tmp_path, handler))
    with pytest.raises(EngineError) as caught:
        child.wait_ready(60)
    assert says in str(caught.value)
    assert not children()


def test_one_that_ends_or_takes_too_long_while_it_loads_says_so(tmp_path: Path) -> None:
    child = Child(settings_for(tmp_path, "import os; os._exit(9)"))
    with pytest.raises(EngineError, match="ended with exit code 9 before it was ready"):
        child.wait_ready(60)
    child = Child(settings_for(tmp_path, "import time; time.sleep(1000)"))
    with pytest.raises(EngineError, match="was not ready within"):
        child.wait_ready(0.5)
    assert not children()


def test_another_artifact_in_the_same_place_is_not_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        settings = settings_for(tmp_path)
        with instance(settings) as process:
            null_artifact(tmp_path / "other", name="another")
            os.rename(settings.artifact, tmp_path / "old")
            os.rename(tmp_path / "other", settings.artifact)
            os.kill(process.pid, signal.SIGKILL)
            await until(lambda: "not the artifact that the server read" in caplog.text)
            assert not process.healthy
            os.rename(settings.artifact, tmp_path / "other")
            os.rename(tmp_path / "old", settings.artifact)
            await until(lambda: process.healthy)

    in_loop(main)
