"""Every code block of the documentation runs, in the order of its page: here those that go on from another page.

Pages that stand alone have a file of their own, so that two processes share the work.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, DocumentationError, Runner, comes_after, copy_folder, read_blocks

PAGES = {
    page.stem: page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
EARLIER = {name: comes_after(page.read_text("utf-8")) for name, page in PAGES.items()}
ALONE = [name for name, earlier in EARLIER.items() if not earlier and name not in EARLIER.values()]
DONE: dict[str, Path] = {}
FAILED: dict[str, str] = {}


@pytest.fixture(autouse=True)
def _installed_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def run_page(name: str, folders: pytest.TempPathFactory) -> Path:
    """The folder that a page leaves; a page that others go on from is run once, and fails once."""
    if name in FAILED:
        raise DocumentationError(f"{name} failed before: {FAILED[name]}")
    if name not in DONE:
        folder = folders.mktemp(name)
        text = PAGES[name].read_text("utf-8")
        earlier = comes_after(text)
        if earlier:
            copy_folder(run_page(earlier, folders), folder)
        try:
            Runner(folder).run(read_blocks(PAGES[name].name, text))
        except (Exception, pytest.fail.Exception) as fault:  # the second: it took too long
            FAILED[name] = f"{type(fault).__name__}: {fault}"[:200]
            raise
        DONE[name] = folder
    return DONE[name]


@pytest.mark.slow  # the first of them makes, measures and serves artifacts for a minute, and the others go on from it
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in PAGES if name not in ALONE])
def test_a_page_does_what_it_says(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    run_page(name, tmp_path_factory)


def test_a_page_that_others_go_on_from_fails_once(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    first.write_text("```bash\necho x >> ../runs; exit 1\n```\n", "utf-8")
    second.write_text("<!-- after: first -->\n", "utf-8")
    monkeypatch.setitem(PAGES, "first", first)
    monkeypatch.setitem(PAGES, "second", second)
    monkeypatch.setattr(f"{__name__}.FAILED", {})
    for name in ("first", "second", "second"):
        with pytest.raises(DocumentationError):
            run_page(name, tmp_path_factory)
    assert (tmp_path_factory.getbasetemp() / "runs").read_text() == "x\n"


PAGE = """\
```python title="plus.py"
def plus(a, b):
    return a + b
```

```python
from plus import plus
print(plus(1, 2))
```

<!-- output -->
```text
3
```

<!-- not run: it would end the world -->
```python
raise SystemExit
```

1. in a list

    ```console
    $ echo one \\
        two
    not a command
    ```

<!-- output -->
```text
one ...
```

<!-- exit: 3 -->
```bash
exit 3
```
"""


def test_a_page_of_all_kinds_of_blocks_runs(tmp_path: Path) -> None:
    blocks = read_blocks("page", PAGE)
    assert [block.language for block in blocks] == ["python", "python", "text", "console", "text", "bash"]
    Runner(tmp_path).run(blocks)
    assert (tmp_path / "plus.py").exists()
    assert "plus" not in sys.modules


@pytest.mark.parametrize(
    ("was", "now", "error"),
    [
        ("return a + b", "return a - b", DocumentationError),
        ("print(plus(1, 2))", "print(minus(1, 2))", NameError),
        ("echo one", "no-such-command one", DocumentationError),
        ("<!-- exit: 3 -->\n", "", DocumentationError),
        ("$ echo one", "$ cd ..; echo two", DocumentationError),
    ],
)
def test_a_page_that_lies_is_found_out(tmp_path: Path, was: str, now: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Runner(tmp_path).run(read_blocks("page", PAGE.replace(was, now)))


def test_a_server_runs_while_its_page_does(tmp_path: Path) -> None:
    page = (
        "<!-- background -->\n```console\n$ echo ready; exec python -m http.server --bind 127.0.0.1 8000\n```\n\n"
        "```bash\npython - <<'END'\nimport time, urllib.request\nfor _ in range(100):\n    try:\n"
        "        print(urllib.request.urlopen('http://127.0.0.1:8000').status)\n        break\n"
        "    except OSError:\n        time.sleep(0.1)\nEND\n```\n\n<!-- output -->\n```text\n200\n```\n"
    )
    runner = Runner(tmp_path)
    runner.run(read_blocks("page", page))
    assert runner._servers[0].poll() is not None
