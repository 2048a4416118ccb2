"""``tauten optimize`` as a user meets it: real processes, real signals.

What processes start is measured for less long than a user's, but by the same code. What ends before any work is run in
this process, by what the command itself calls.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tauten.cli.main import main
from tests.unit.optimize.test_optimize import optimize as quick

HERE = Path(__file__).parent
TASK = f"{HERE / 'task.py'}:task"

RUN = "from tauten.cli.main import main; main()"
QUICK = f"from tauten.make.search import evaluator as e; e.DEFAULT_SAMPLING = e.Sampling(seconds=0.05, starts=1); {RUN}"


def tauten(*arguments: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, check=False)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", QUICK, *map(str, arguments)]


class Here:
    """The command in this process, with a working ``--json``: what it prints, and its exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        self._monkeypatch.setattr(sys, "argv", ["tauten", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self._capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code or 0, printed.out, printed.err)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(monkeypatch, capsys)


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Two recipes, each a second or two of work."""
    path = tmp_path / "recipes.json"
    int8, cut = {"pass": "quantize.post_training"}, {"pass": "prune.structured", "ratio": 0.5}
    path.write_text(json.dumps([{"name": "int8", "passes": [int8]}, {"name": "cut", "passes": [cut, int8]}]))
    return path


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_repeats_no_finished_candidate(tmp_path: Path, recipes: Path) -> None:
    out = tmp_path / "out"
    arguments = ("optimize", TASK, "--level", recipes, "--out", out, "--max-drop", "60")
    first = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    finished = out / "candidates" / "int8" / "manifest.json"
    wait_for(lambda: finished.is_file() and "drop_points" in finished.read_text(), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (out / "result.json").exists()
    kept = [out / "candidates" / name / "weights.safetensors" for name in ("baseline", "engine_baseline", "int8")]
    before = [path.stat().st_mtime_ns for path in kept]
    done = tauten(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert "int8" in done.stderr
    assert "from an earlier run" in done.stderr
    assert json.loads(done.stdout)["met"] is True
    assert not list(out.rglob("*.partial"))


@pytest.fixture
def long_recipes(recipes: Path) -> Path:
    """The same, and minutes of training after them."""
    train = [{"pass": "distill.recover", "epochs": 100_000}]
    recipes.write_text(json.dumps([*json.loads(recipes.read_text()), {"name": "long", "passes": train}]))
    return recipes


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_finished_and_says_so(
    sent: signal.Signals, tmp_path: Path, long_recipes: Path
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("optimize", TASK, "--level", long_recipes, "--out", out, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    finished = out / "candidates" / "int8" / "manifest.json"
    wait_for(lambda: finished.is_file() and "drop_points" in finished.read_text(), process)
    process.send_signal(sent)
    answer, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(answer)["error"]["exit_code"] == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert finished.is_file()


SWALLOWS = """
import time
from pathlib import Path

import tauten
from tests.unit.optimize import task as blobs

ASLEEP = Path(__file__).with_name("asleep")


def metric(outputs, labels):
    try:
        ASLEEP.touch()
        time.sleep(60)
    except BaseException:
        pass
    return 1.0


def task():
    return tauten.Task(
        name="swallows", model=blobs.Net, inputs=blobs.task().inputs, metric=tauten.FunctionMetric(metric),
        calibrate=blobs.batches(32, 1), validate=blobs.batches(32, 2),
    )
"""


def test_an_interrupt_that_the_tasks_own_code_swallows_ends_the_run_all_the_same(tmp_path: Path, recipes: Path) -> None:
    task = tmp_path / "swallows.py"
    task.write_text(SWALLOWS)
    process = subprocess.Popen(
        command("optimize", f"{task}:task", "--level", recipes, "--out", tmp_path / "out", "--max-drop", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    wait_for((tmp_path / "asleep").is_file, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_budget_that_nothing_meets_ends_with_3_and_shows_the_nearest(
    tmp_path: Path, recipes: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tauten.make.search.optimize.optimize", quick)
    out = tmp_path / "out"
    done = here("optimize", TASK, "--level", recipes, "--out", out, "--max-bytes", "1KB")
    assert done.returncode == 3, done.stderr
    assert "The budget is not met" in done.stdout
    assert "int8" in done.stdout
    assert "cut" in done.stdout
    assert not (out / "best").exists()


@pytest.mark.slow
def test_a_budget_that_nothing_meets_is_one_json_document_too(
    tmp_path: Path, recipes: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tauten.make.search.optimize.optimize", quick)
    done = here("optimize", TASK, "--level", recipes, "--out", tmp_path / "out", "--max-bytes", "1KB", "--json")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["met"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["no-such-file.py:task"], 2, "no-such-file.py"),
        ([TASK, "--target", "toaster"], 2, "no target named 'toaster'"),
        ([TASK, "--target", "gpu"], 2, "expected a device that the baselines run on"),
        ([TASK, "--max-bytes", "many"], 2, "expected a size such as 50KB"),
        ([TASK, "--max-drop", "-1"], 2, "greater than or equal to 0"),
        ([TASK, "--engine", "abacus"], 2, "expected auto or one of target server-cpu (onnx, openvino, inductor)"),
        ([TASK, "--level", "extreme"], 2, "use one of low, medium, high"),
        ([f"{HERE / 'task.py'}:nothing"], 2, "nothing"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    arguments: list[str], code: int, said: str, tmp_path: Path, here: Here
) -> None:
    out = tmp_path / "out"
    done = here("optimize", *arguments, "--out", out)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimize", "no-such-file.py:task"], "no-such-file.py"),
        (["optimize"], "Missing argument"),
        (["optimise"], "No such command"),
        (["optimize", TASK, "--seed", "one"], "--seed"),
    ],
)
def test_an_error_is_one_json_document_too(arguments: list[str], said: str, here: Here) -> None:
    done = here(*arguments, "--json")
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    assert error["exit_code"] == done.returncode == 2
    assert said in error["message"]
    assert said in done.stderr


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path, recipes: Path) -> None:
    # A limit on a file's size stands for a full disk: both end a write in the middle.
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000)); {RUN}"
    arguments = ["optimize", TASK, "--level", str(recipes), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["type"] == "OSError"
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert not list(tmp_path.rglob("*.partial"))


def test_a_dry_run_prints_recipes_that_can_be_given_back(tmp_path: Path, here: Here) -> None:
    printed = here("optimize", TASK, "--level", "medium", "--dry-run", "--json")
    path = tmp_path / "recipes.json"
    path.write_text(printed.stdout)
    again = here("optimize", TASK, "--level", path, "--dry-run", "--json")
    assert json.loads(again.stdout) == json.loads(printed.stdout)
    for_people = here("optimize", TASK, "--level", "medium", "--dry-run")
    assert "prune.structured" in for_people.stdout


def wait_for(condition: Any, process: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, "the run ended before what was waited for"
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
