"""The command as a whole: its verbs, which are imported when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from tauten.cli.main import VERBS, app


def test_it_tells_its_version() -> None:
    told = CliRunner().invoke(app, ["--version"], catch_exceptions=False)
    assert (told.exit_code, told.stdout) == (0, f"tauten {version('tauten')}\n")


def test_help_tells_of_every_verb() -> None:
    told = CliRunner().invoke(app, ["--help"], catch_exceptions=False).stdout
    assert [line.split()[1] for line in told.splitlines() if line[:2] == "│ " and line[2] not in " -"] == list(VERBS)


def test_an_unknown_verb_is_refused_with_what_is_like_it() -> None:
    told = CliRunner().invoke(app, ["serv"])
    assert told.exit_code == 2
    assert "'serve'" in told.output


@pytest.mark.parametrize("verb", ["serve", "inspect"])
def test_a_verb_imports_no_other(verb: str) -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom tauten.cli.main import VERBS, app\n"
        f"assert CliRunner().invoke(app, [{verb!r}, '--help']).exit_code == 0\n"
        "print(*[verb for verb in VERBS if f'tauten.cli.{verb}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [verb]


def test_what_only_tables_need_does_not_delay_a_server() -> None:
    code = (
        "import sys\nimport tauten.cli.main, tauten.cli.serve, tauten.run.serve.server, tauten.run.serve.model\n"
        "print(*[name for name in ('rich', 'jinja2', 'torch', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
