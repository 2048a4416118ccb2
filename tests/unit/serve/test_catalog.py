"""What models there are on disk, by what a command line says and in a folder of models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tauten.artifact.pack import pack
from tauten.artifact.read import read_artifact
from tauten.errors import ArtifactError, ConfigError, NotFound
from tauten.run.serve.catalog import Catalog, make_catalog
from tests.unit.serve.artifacts import null_artifact


def found(catalog: Catalog, name: str) -> list[tuple[str, str]]:
    return [(source.version, source.path) for source in catalog.sources(name)]


def test_an_artifact_is_named_by_its_manifest_or_by_the_command(tmp_path: Path) -> None:
    path = str(null_artifact(tmp_path / "a", "digits"))
    catalog, read = make_catalog([path])
    assert (catalog.names(), list(read)) == (["digits"], [path])
    assert found(catalog, "digits") == [("1", path)]
    assert make_catalog([path], name="other")[0].names() == ["other"]
    assert make_catalog([f"m={path}"])[0].names() == ["m"]


def test_a_folder_of_numbers_is_a_model_with_versions(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        null_artifact(tmp_path / "m" / version)
    null_artifact(tmp_path / "m" / "03")
    null_artifact(tmp_path / "m" / "latest")
    (tmp_path / "m" / "4").mkdir()
    pack(read_artifact(null_artifact(tmp_path / "x")), tmp_path / "m" / "7.tauten")
    catalog, _ = make_catalog([str(tmp_path / "m")])
    assert [version for version, _ in found(catalog, "m")] == ["1", "2", "7", "10"]
    assert [version for version, _ in found(make_catalog([f"n={tmp_path / 'm'}"])[0], "n")] == ["1", "2", "7", "10"]


def test_versions_can_be_named_one_by_one(tmp_path: Path) -> None:
    a, b = str(null_artifact(tmp_path / "a")), str(null_artifact(tmp_path / "b"))
    catalog, _ = make_catalog([f"m/2={b}", f"m/1={a}"], pins=["m=1"])
    assert found(catalog, "m") == [("1", a), ("2", b)]
    assert catalog.pins == {"m": "1"}
    assert Catalog.from_json(catalog.to_json()) == catalog


@pytest.mark.parametrize(
    ("arguments", "more", "says"),
    [
        (["m=a", "m=a"], {}, "expected each version once"),
        (["a", "b"], {"name": "m"}, "expected one artifact beside a name for it, got 2"),
        (["m=a"], {"pins": ["n=1"]}, r"expected pins of models that are served, got \['n'\]"),
        (["m=a"], {"pins": ["m"]}, "NAME=VERSION"),
        (["m=a"], {"pins": ["m=0"]}, "NAME=VERSION"),
        ([], {"directory": "nowhere"}, "expected the repository to be a folder, got 'nowhere'"),
        (["a"], {"name": "a/b"}, "expected a model name"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], more: dict[str, object], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    null_artifact(Path("a"))
    null_artifact(Path("b"))
    with pytest.raises(ConfigError, match=says):
        make_catalog(arguments, **more)


def test_a_place_without_an_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for text in (str(tmp_path / "empty"), f"m={tmp_path / 'empty'}", str(tmp_path / "gone"), "m/0=x"):
        with pytest.raises(ArtifactError, match="expected an artifact"):
            make_catalog([text])


def test_a_directory_holds_models(tmp_path: Path) -> None:
    root = tmp_path / "models"
    null_artifact(root / "one")
    null_artifact(root / "two" / "5")
    pack(read_artifact(null_artifact(tmp_path / "x")), root / "three.tauten")
    (root / "notes").mkdir()
    (root / "notes.txt").write_text("nothing")
    null_artifact(root / ".hidden")
    catalog, _ = make_catalog(directory=str(root))
    assert catalog.names() == ["one", "three", "two"]
    assert found(catalog, "two") == [("5", str(root / "two" / "5"))]
    assert found(catalog, "three") == [("1", str(root / "three.tauten"))]
    with pytest.raises(NotFound, match="no model named 'notes' to load"):
        catalog.sources("notes")


@pytest.mark.parametrize(
    "name", ["..", "../secret", "models/../../secret", "/etc", "", ".hidden", "a\0b", "a\nb", "x" * 200, "%2e%2e"]
)
def test_a_name_cannot_lead_out_of_the_directory(tmp_path: Path, name: str) -> None:
    null_artifact(tmp_path / "secret")
    root = tmp_path / "models"
    null_artifact(root / ".hidden")
    catalog = Catalog(directory=str(root))
    with pytest.raises(ConfigError, match="expected a model name"):
        catalog.sources(name)


def test_a_link_cannot_lead_out_of_the_directory_and_may_lead_about_in_it(tmp_path: Path) -> None:
    null_artifact(tmp_path / "secret")
    root = tmp_path / "models"
    null_artifact(root / "one")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "in").symlink_to(root / "one")
    (root / "versions").mkdir()
    (root / "versions" / "1").symlink_to(tmp_path / "secret")
    catalog = Catalog(directory=str(root))
    assert catalog.names() == ["in", "one"]
    with pytest.raises(NotFound):
        catalog.sources("out")


def test_the_state_changes_when_the_artifact_does(tmp_path: Path) -> None:
    root = tmp_path / "models"
    null_artifact(root / "m" / "1", "one")
    catalog = Catalog(directory=str(root))
    before = catalog.state("m")
    assert before
    assert before == catalog.state("m")
    null_artifact(root / "m" / "1", "another")
    changed = catalog.state("m")
    null_artifact(root / "m" / "2")
    assert len({"", before, changed, catalog.state("m")}) == 4
    shutil.rmtree(root / "m")
    assert catalog.state("m") == ""
    assert catalog.state("../m") == ""


def test_the_state_of_a_packed_artifact_changes_when_the_file_does(tmp_path: Path) -> None:
    pack(read_artifact(null_artifact(tmp_path / "a")), tmp_path / "m.tauten")
    catalog = Catalog(directory=str(tmp_path))
    before = catalog.state("m")
    pack(read_artifact(null_artifact(tmp_path / "a", "other")), tmp_path / "n.tauten")
    (tmp_path / "n.tauten").rename(tmp_path / "m.tauten")
    assert catalog.state("m") not in ("", before)
