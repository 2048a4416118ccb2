"""Pages of the documentation as programs: their code blocks, in order, in one folder and one namespace.

What a block is, its fence and the comment before it say:

- ```` ```python ```` is run as Python; with ``title="FILE"`` it is written to that file instead, in the page's folder;
- ```` ```bash ```` is run whole; of ```` ```console ```` the lines that begin with ``$``, and those that continue them;
- ``<!-- background -->`` starts a server, waits for its first line, and stops it when the page is done;
- ``<!-- exit: 3 -->`` is the exit code that a shell block ends with;
- ``<!-- output -->`` before ```` ```text ```` holds what the block before it printed (``...`` stands for anything);
- ``<!-- after: getting-started -->`` anywhere: the page goes on in a copy of the folder that that page leaves;
- ``<!-- not run: reason -->`` leaves the next block alone.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import linecache
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
LANGUAGES = ("python", "bash", "console")
PORT = "8000"
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_AFTER = re.compile(r"^<!-- after: ([\w-]+) -->$", re.MULTILINE)
_TITLE = re.compile(r'title="([^"]+)"')
_SECONDS = 540
"""A block that hangs ends; one that takes a minute alone has taken four beside other work."""


class DocumentationError(Exception):
    """A block that does not do what its page says."""


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, and the comment before it."""

    page: str
    line: int
    language: str
    body: str
    mark: str = ""
    title: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> str:
        """What a shell is given."""
        if self.language == "bash":
            return self.body
        kept, going = [], False
        for line in self.body.splitlines():
            if line.startswith("$ ") or going:
                kept.append(line.removeprefix("$ "))
                going = line.endswith("\\")
        return "\n".join(kept)


def read_blocks(page: str, text: str) -> list[Block]:
    """The blocks that are run, and the texts that are checked."""
    found = []
    for match in _FENCE.finditer(text):
        mark = match["mark"] or ""
        if match["language"] not in LANGUAGES and not (match["language"] == "text" and mark == "output"):
            continue
        if mark.startswith("not run:"):
            continue
        indent = len(match["indent"])
        body = "".join(line[indent:] if line.strip() else "\n" for line in match["body"].splitlines(keepends=True))
        title = _TITLE.search(match["options"])
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(page, line, match["language"], body, mark, title[1] if title else ""))
    return found


def comes_after(text: str) -> str | None:
    """The page whose folder this one goes on in."""
    found = _AFTER.search(text)
    return found[1] if found else None


@dataclass
class Runner:
    """Runs a page's blocks in ``folder``."""

    folder: Path
    namespace: ModuleType = field(default_factory=lambda: ModuleType("page"))
    _servers: list[subprocess.Popen[str]] = field(default_factory=list)
    _printed: str = ""
    _port: str = ""

    def run(self, blocks: list[Block]) -> None:
        """Run them; ``DocumentationError`` names the first that fails."""
        self._port = _free_port()
        with self._inside():
            try:
                for block in blocks:
                    self._one(block)
            finally:
                for server in self._servers:
                    _stop(server)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        was, path = Path.cwd(), list(sys.path)
        known = set(sys.modules)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        sys.modules[self.namespace.__name__] = self.namespace
        try:
            yield
        finally:
            os.chdir(was)
            sys.path[:] = path
            for name in set(sys.modules) - known:
                # A page's own files make way for the next page's files of the same name.
                if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(self.folder)):
                    del sys.modules[name]
            sys.modules.pop(self.namespace.__name__, None)

    def _one(self, block: Block) -> None:
        if block.language == "text":
            self._compare(block)
        elif block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, "utf-8")
        elif block.language == "python":
            self._python(block)
        elif block.mark == "background":
            self._serve(block)
        else:
            self._shell(block)

    def _python(self, block: Block) -> None:
        source = self._with_port(block.body)
        name = f"<{block.where}>"
        # So that tracebacks and torch.export can read the source.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, name, "exec"), self.namespace.__dict__)
        self._printed = printed.getvalue()

    def _shell(self, block: Block) -> None:
        done = subprocess.run(
            self._command(block), cwd=self.folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        wanted = int(block.mark.removeprefix("exit: ")) if block.mark.startswith("exit: ") else 0
        self._printed = done.stdout
        if done.returncode != wanted:
            told = f"{block.where}: exit {done.returncode}, expected {wanted}"
            raise DocumentationError(f"{told}\n{block.commands}\n{done.stdout}\n{done.stderr}")

    def _serve(self, block: Block) -> None:
        server = subprocess.Popen(
            self._command(block), cwd=self.folder, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._servers.append(server)
        if server.stdout is None or not server.stdout.readline():
            raise DocumentationError(f"{block.where}: ended before it was ready, exit {server.wait(_SECONDS)}")

    def _command(self, block: Block) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c", self._with_port(block.commands)]

    def _with_port(self, text: str) -> str:
        """The port that pages show, replaced by one that is free."""
        return re.sub(rf"\b{PORT}\b", self._port, text)

    def _compare(self, block: Block) -> None:
        checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if not checker.check_output(self._with_port(block.body), self._printed, options):
            raise DocumentationError(f"{block.where}: expected\n{block.body}\ngot\n{self._printed}")


def _stop(server: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)
    if server.stdout is not None:
        server.stdout.close()


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def copy_folder(source: Path, target: Path) -> None:
    """What an earlier page left, for the next to go on in."""
    shutil.copytree(source, target, dirs_exist_ok=True)
