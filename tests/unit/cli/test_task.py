from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tauten
from tauten.cli.task import load_task
from tauten.errors import TaskError

GOOD = """
import tauten

def task():
    return tauten.Task(
        model=lambda: None,
        inputs=(tauten.TensorSpec(name="x", shape=("batch", 2)),),
        calibrate=[[[1.0, 2.0]]],
        name="good",
    )
"""


@pytest.fixture(autouse=True)
def _path_and_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave ``sys.path`` and ``sys.modules`` as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("_tauten_file_", "helper_of_", "package_of_")):
            del sys.modules[name]


def write(folder: Path, text: str, name: str = "given.py") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, "utf-8")
    return str(path)


def test_a_file_gives_its_task(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load_task(f"{path}:task").name == "good"
    assert load_task(path).name == "good"
    assert load_task(f"{path}:").name == "good"


def test_a_relative_file_and_another_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "tasks", GOOD.replace("def task", "def other"))
    monkeypatch.chdir(tmp_path)
    assert load_task("tasks/given.py:other").name == "good"


def test_a_module_gives_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "package_of_tasks", "", "__init__.py")
    write(tmp_path / "package_of_tasks", GOOD, "inner.py")
    monkeypatch.chdir(tmp_path)
    assert load_task("package_of_tasks.inner:task").name == "good"
    assert load_task("package_of_tasks.inner").name == "good"


def test_a_module_that_fails_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "package_of_faults", "", "__init__.py")
    write(tmp_path / "package_of_faults", "import json\n\njson.loads('{')\n", "inner.py")
    write(tmp_path / "package_of_faults", GOOD + "\ndef late():\n    return 1 / 0\n", "calls.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TaskError, match=r"package_of_faults.inner does not import \(line 3: json.loads\('\{'\)\): JSON"
    ):
        load_task("package_of_faults.inner:task")
    with pytest.raises(
        TaskError, match=r"package_of_faults.calls: late\(\) failed \(line \d+: return 1 / 0\): ZeroDiv"
    ):
        load_task("package_of_faults.calls:late")


def test_the_file_hides_no_module_and_is_run_anew(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, "json.py")
    first = load_task(path)
    write(tmp_path, GOOD.replace("good", "fine"), "json.py")
    assert load_task(path).name == "fine"
    assert first.name == "good"
    assert not hasattr(sys.modules["json"], "task")
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1
    assert not (tmp_path / "__pycache__").exists()


def test_siblings_import_while_loading_and_later(tmp_path: Path) -> None:
    write(tmp_path, "NAME = 'early'", "helper_of_loading.py")
    write(tmp_path, "NAME = 'late'", "helper_of_building.py")
    text = """
import tauten
from helper_of_loading import NAME

def build():
    from helper_of_building import NAME
    return NAME

def task():
    spec = tauten.TensorSpec(name="x", shape=("batch",))
    return tauten.Task(model=build, inputs=(spec,), calibrate=[[1.0]], name=NAME)
"""
    task = load_task(write(tmp_path, text))
    assert task.name == "early"
    assert task.model() == "late"


def test_dataclasses_with_text_annotations_work(tmp_path: Path) -> None:
    text = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar

@dataclass
class Settings:
    kind: ClassVar[str] = "x"
    size: int = 2
"""
    assert load_task(write(tmp_path, text + GOOD)).name == "good"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def task(:\n", r"given.py, line 1: SyntaxError: invalid syntax"),
        ("x = 1\n  y = 2\n", r"given.py, line 2: IndentationError: unexpected indent"),
        ("a = 1\nb = a / 0\n", r"given.py does not load \(line 2: b = a / 0\): ZeroDivisionError: division by zero"),
        ("raise SystemExit('bye')", r"given.py does not load \(line 1: .*\): SystemExit: bye"),
        ("import no_such_thing", r"does not load \(line 1: import no_such_thing\): ModuleNotFoundError"),
        ("def other(): ...\nimport os\n", r"no function named 'task'; its functions are other$"),
        ("x = 1", r"no function named 'task'; it has no functions$"),
        ("task = 3", r"a int, not a function, named 'task'"),
        ("def task():\n    return 3", r"expected task\(\) to return a tauten.Task, got a int"),
        ("def task(size):\n    return 3", r"task\(\) failed: TypeError: .* missing 1 required positional argument"),
        ("def task():\n    return open('/no/file')", r"task\(\) failed \(line 2: return open.*FileNotFoundError"),
        (
            "import json\ndef inner(): json.loads('{')\ndef task():\n    inner()",
            r"failed \(line 2: def inner\(\): json.loads\('\{'\)\): JSONDecodeError",
        ),
        (GOOD.replace("calibrate=[", "epochs=-1, calibrate=["), r"task\(\) failed \(line \d+: .*TaskError: epochs"),
        ("a = '\0'", "null bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    modules = set(sys.modules)
    with pytest.raises(TaskError, match=message):
        load_task(write(tmp_path, text))
    if "does not load" in message:
        assert not [name for name in set(sys.modules) - modules if name.startswith("_tauten_file_")]


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "given.py"
    path.write_bytes(b"a = '\xff\xfe'\n")
    with pytest.raises(TaskError, match=r"given\.py"):
        load_task(str(path))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no/such/file.py:task", r"no.such.file.py: no such file"),
        ("no_such_module:task", "no module named 'no_such_module'; a task in a file is given as FILE.py:function"),
        ("tauten.no_such:task", "no module named 'tauten.no_such'"),
        ("", "expected a task as FILE.py:function"),
        (":task", "expected a task as FILE.py:function"),
        ("examples/:task", "cannot be read: Is a directory"),
        ("tauten.errors:task", "no function named 'task'"),
    ],
)
def test_what_is_wrong_with_a_reference_is_said(reference: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(tauten.__file__).parents[0])
    with pytest.raises(TaskError, match=message):
        load_task(reference)


def test_a_file_that_needs_torch_says_how_to_get_it(tmp_path: Path) -> None:
    path = write(tmp_path, "import torch\n" + GOOD)
    program = f"""
import sys
sys.modules["torch"] = None
from tauten.cli.task import load_task
from tauten.errors import TaskError
try:
    load_task({path!r})
except TaskError as fault:
    print(fault)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'pip install "tauten[optimize]"' in done.stdout
    assert "line 1: import torch" in done.stdout


@pytest.mark.parametrize("name", ["", "two words", "zählen", "../up", "a/b", ".hidden", "x" * 129])
def test_a_name_that_no_artifact_may_have_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, GOOD.replace('"good"', repr(name)))
    with pytest.raises(TaskError, match="name: expected letters, digits"):
        load_task(path)
