"""``tauten compare`` as a user meets it: real processes, real signals."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.unit.optimize.test_command import TASK, Here, command, tauten, wait_for


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(monkeypatch, capsys)


def test_an_interrupt_keeps_what_is_finished_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (
        "compare",
        TASK,
        "--passes",
        "magnitude, structured",
        "--ratios",
        "0.5",
        "--recover",
        "0",
        "--out",
        out,
    )
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finished = out / "candidates" / "magnitude-0.5" / "manifest.json"
    wait_for(lambda: finished.is_file() and "drop_points" in finished.read_text(), process)
    # Seconds remain: another candidate, and four artifacts to be timed side by side.
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    done = tauten(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert "from an earlier run" in done.stderr
    assert [point["name"] for point in json.loads(done.stdout)["points"]] == ["magnitude-0.5", "structured-0.5"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ratios", "half"], "ratios: expected numbers with commas between, got 'half'"),
        (["--passes", "nonsense"], "no strategy named 'nonsense'"),
        (["--target", "toaster"], "no target named 'toaster'"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, here: Here
) -> None:
    done = here("compare", TASK, *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
