"""Plug-ins: found by file name and entry point, imported one by one, loud when broken."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tauten.core.registry import Registry
from tauten.errors import ExtraMissing, PluginError, TautenError

Make = Callable[..., "Registry[object]"]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A registry over a package of the files given, and installed plug-ins by entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def build(files: dict[str, str], entry_points: dict[str, str] | None = None, **options: object) -> Registry[object]:
        for name, text in {"__init__.py": "", **files}.items():
            path = tmp_path / "shelf" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
            if path.parent.name != "shelf":
                (path.parent / "__init__.py").touch()
        for number, (name, value) in enumerate((entry_points or {}).items()):
            info = tmp_path / f"third_{number}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: third-{number}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[tauten.toys]\n{name.split('#')[0]} = {value}\n")
        importlib.invalidate_caches()
        return Registry("toy", "shelf", **options)

    yield build
    for name in set(sys.modules) - before:
        del sys.modules[name]


GOOD = '__all__ = ["TOY"]\nTOY = "a toy"\n'


def test_files_are_plugins_and_helpers_are_none(make: Make) -> None:
    toys = make({"ball.py": GOOD, "_helper.py": "", "seam.py": "", "deep/top.py": GOOD}, besides=("seam",))
    assert toys.names() == ["ball", "deep.top"]
    assert toys.get("ball") == toys.get("deep.top") == "a toy"
    assert set(toys.all()) == {"ball", "deep.top"}


def test_names_import_nothing(make: Make) -> None:
    toys = make({"ball.py": "raise RuntimeError('imported')"})
    assert toys.names() == ["ball"]
    assert "shelf.ball" not in sys.modules


def test_one_broken_file_does_not_hide_the_others(make: Make) -> None:
    toys = make({"ball.py": GOOD, "broken.py": "syntax error"})
    assert toys.get("ball") == "a toy"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("syntax error", "toy 'odd' does not import: SyntaxError"),
        ("1 / 0", "toy 'odd' does not import: ZeroDivisionError: division by zero"),
        ("from os import no_such_name", "toy 'odd' does not import: ImportError"),
        ("import tauten.no_such_module", "toy 'odd' does not import: No module named 'tauten.no_such_module'"),
        ("TOY = 1", r"shelf.odd: expected one name in __all__, the toy; got \[\]"),
        ('__all__ = ["A", "B"]\nA = B = 1', r"got \['A', 'B'\]"),
        ('__all__ = ["TOY"]', "__all__ names 'TOY', which is not there"),
    ],
)
def test_a_broken_file_is_loud(make: Make, text: str, told: str) -> None:
    toys = make({"odd.py": text})
    with pytest.raises(PluginError, match=told):
        toys.get("odd")
    with pytest.raises(PluginError, match=told):
        toys.all()


def test_a_missing_dependency_names_the_extra(make: Make) -> None:
    toys = make({"heavy.py": "import no_such_backend"}, extra="edge")
    with pytest.raises(ExtraMissing, match=r'no_such_backend is not installed.*pip install "tauten\[edge\]"') as caught:
        toys.get("heavy")
    assert caught.value.extra == "edge"


def test_tautens_own_errors_pass_as_they_are(make: Make) -> None:
    toys = make({"strict.py": "from tauten.errors import TautenError\nraise TautenError('my own words')"})
    with pytest.raises(TautenError, match=r"^my own words$"):
        toys.get("strict")


def test_an_unknown_name_says_which_there_are(make: Make) -> None:
    with pytest.raises(PluginError, match="no toy named 'yoyo': there are ball"):
        make({"ball.py": GOOD}).get("yoyo")


def test_an_installed_plugin_is_found(make: Make) -> None:
    toys = make({"ball.py": GOOD, "_other.py": "KITE = 'a kite'"}, {"kite": "shelf._other:KITE"})
    assert toys.names() == ["ball", "kite"]
    assert toys.get("kite") == "a kite"


@pytest.mark.parametrize("value", ["shelf._nowhere:KITE", "shelf._other:NOTHING", "no_such_package:KITE"])
def test_a_broken_installed_plugin_is_loud(make: Make, value: str) -> None:
    toys = make({"_other.py": ""}, {"kite": value})
    with pytest.raises(PluginError, match=f"toy 'kite' .{value}. does not import"):
        toys.get("kite")


def test_two_plugins_of_one_name_are_a_mistake(make: Make) -> None:
    both = {"ball.py": GOOD, "_other.py": "BALL = 1"}
    with pytest.raises(PluginError, match=r"two toy plug-ins are named 'ball': shelf\.ball and shelf\._other:BALL"):
        make(both, {"ball": "shelf._other:BALL"}).names()


def test_two_installed_plugins_of_one_name_are_a_mistake(make: Make) -> None:
    files = {"_a.py": "KITE = 1", "_b.py": "KITE = 2"}
    with pytest.raises(PluginError, match="two toy plug-ins are named 'kite'"):
        make(files, {"kite#1": "shelf._a:KITE", "kite#2": "shelf._b:KITE"}).names()
