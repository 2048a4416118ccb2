"""Which models there are on disk, and in which versions.

::

    NAME=PATH, NAME/VERSION=PATH, PATH ── Place ┐
    directory ── NAME or NAME.tauten ───────────┴─ Source: one artifact ── read_artifact ── ServedModel

What lies at a path is an artifact, which is version 1, or a folder whose children are named by numbers, each an
artifact: those are versions. Everything here reads the disk: it is called before the server runs, or in a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from tauten.artifact.manifest import CHECKSUMS, MANIFEST
from tauten.artifact.read import MAX_CHECKSUMS_BYTES, Artifact, read_artifact
from tauten.core.value import Value
from tauten.errors import ArtifactError, ConfigError, NotFound
from tauten.run.serve.settings import MODEL_NAME, check_model_name

FIRST: Final = "1"
PACKED: Final = ".tauten"

_WANTED: Final = (
    f"expected an artifact (a folder with {MANIFEST}, or a file that ends in {PACKED}), "
    "or a folder whose children are named 1, 2, ..., each an artifact"
)
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_NAMED: Final = re.compile(rf"({MODEL_NAME.pattern})(?:/({_VERSION.pattern}))?=(.+)", re.DOTALL)


class Source(Value):
    """One artifact that is one version of a model."""

    name: str
    version: str
    path: str


class Place(Value):
    """Where one model lies: an artifact, or a folder of versions where ``version`` is empty."""

    name: Annotated[str, Field(pattern=rf"^{MODEL_NAME.pattern}$")]
    path: str
    version: Annotated[str, Field(pattern=rf"^({_VERSION.pattern})?$")] = ""

    def sources(self) -> list[Source]:
        """The versions, the lowest first. Raises ``ArtifactError`` where there is none."""
        path = Path(self.path)
        if self.version or _is_artifact(path):
            return [Source(name=self.name, version=self.version or FIRST, path=self.path)]
        found = _versions(path)
        if not found:
            raise ArtifactError(f"{path}: {_WANTED}")
        return [Source(name=self.name, version=version, path=str(found[version])) for version in found]


class Catalog(Value):
    """Every model that a server may load.

    ``places`` are those that the command names, ``directory`` a folder with others: ``NAME`` or ``NAME.tauten`` in it.
    ``pins`` says which version answers where a request names none, by model. ``handler`` is the file that runs before
    and after all of them.
    """

    places: tuple[Place, ...] = ()
    directory: str | None = None
    pins: dict[str, str] = {}
    handler: str | None = None

    def names(self) -> list[str]:
        """The models that are there now."""
        found = dict.fromkeys(place.name for place in self.places)
        if self.directory is not None:
            try:
                children = sorted(os.listdir(self.directory))
            except OSError as fault:
                raise ArtifactError(f"{self.directory}: cannot be read: {fault.strerror}") from None
            for child in children:
                name = child.removesuffix(PACKED)
                if MODEL_NAME.fullmatch(name) and self._inside(name):
                    found[name] = None
        return list(found)

    def sources(self, name: str) -> list[Source]:
        """The versions of a model, the lowest first.

        Raises ``ConfigError`` for what is no name of a model, ``NotFound`` where there is no such model,
        ``ArtifactError`` where what is there is none.
        """
        check_model_name(name)
        places = [place for place in self.places if place.name == name]
        found = [source for place in places for source in place.sources()] or self._inside(name)
        if not found:
            raise NotFound(f"no model named {name!r:.80} to load")
        versions = [source.version for source in found]
        if len(set(versions)) < len(versions):
            raise ConfigError(f"model {name!r}: expected each version once, got {versions}")
        return sorted(found, key=lambda source: int(source.version))

    def state(self, name: str) -> str:
        """What changes when the model on disk does, read without reading all of it; "" where there is none now."""
        try:
            digest = hashlib.sha256(self.handler_digest())
            for source in self.sources(name):
                digest.update(f"{source.version} {source.path}\n".encode(errors="surrogateescape"))
                path = Path(source.path)
                if path.is_dir():
                    with (path / CHECKSUMS).open("rb") as file:
                        digest.update(file.read(MAX_CHECKSUMS_BYTES))
                else:
                    found = path.stat()
                    digest.update(f"{found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode())
        except (NotFound, ArtifactError, ConfigError, OSError):
            return ""
        return digest.hexdigest()

    def handler_digest(self) -> bytes:
        """The digest of the handler's file as it is now, nothing where there is none. Raises ``OSError``."""
        return b"" if self.handler is None else hashlib.sha256(Path(self.handler).read_bytes()).digest()

    def _inside(self, name: str) -> list[Source]:
        """The versions of a model in the directory. A link that leads out of it leads nowhere."""
        if self.directory is None:
            return []
        root = Path(self.directory).resolve()
        for path in (root / name, root / f"{name}{PACKED}"):
            try:
                found = Place(name=name, path=str(path)).sources()
            except ArtifactError:
                continue
            return [source for source in found if Path(source.path).resolve().is_relative_to(root)]
        return []


def make_catalog(
    artifacts: Sequence[str] = (),
    *,
    name: str | None = None,
    directory: str | None = None,
    pins: Sequence[str] = (),
    handler: Path | None = None,
) -> tuple[Catalog, dict[str, Artifact]]:
    """The catalog that a command line asks for, and the artifacts that had to be read for their names, by path.

    Each of ``artifacts`` is ``PATH``, ``NAME=PATH`` or ``NAME/VERSION=PATH``; a folder of versions without a name is
    named as the folder is. ``name`` is for a single one. Each of ``pins`` is ``NAME=VERSION``; ``handler`` is a file.

    Raises ``ConfigError`` for what cannot be read so, ``ArtifactError`` where there is nothing to serve.
    """
    if name is not None and len(artifacts) != 1:
        raise ConfigError(f"expected one artifact beside a name for it, got {len(artifacts)}: use NAME=PATH for each")
    read: dict[str, Artifact] = {}
    places = []
    for text in artifacts:
        match = _NAMED.fullmatch(text)
        if match and not os.path.exists(text):
            places.append(Place(name=name or match[1], version=match[2] or "", path=match[3]))
            continue
        path = Path(text)
        called = name
        if called is None and _is_artifact(path):
            read[text] = read_artifact(path)
            called = read[text].manifest.name
        elif called is None and not _versions(path):
            raise ArtifactError(f"{path}: {_WANTED}")
        places.append(Place(name=check_model_name(called or path.resolve().name), path=text))
    if directory is not None and not os.path.isdir(directory):
        raise ConfigError(f"expected the repository to be a folder, got {directory!r}")
    catalog = Catalog(
        places=tuple(places),
        directory=directory,
        pins=dict(_pin(text) for text in pins),
        handler=None if handler is None else str(handler),
    )
    for place in places:  # says what is wrong before anything is loaded
        catalog.sources(place.name)
    strange = set(catalog.pins) - {place.name for place in places}
    if strange and directory is None:
        raise ConfigError(f"expected pins of models that are served, got {sorted(strange)}")
    return catalog, read


def _pin(text: str) -> tuple[str, str]:
    name, _, version = text.partition("=")
    if not MODEL_NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise ConfigError(f"expected a pin of the form NAME=VERSION, such as digits=1, got {text!r}")
    return name, version


def _is_artifact(path: Path) -> bool:
    return (path / MANIFEST).exists() or (path.suffix == PACKED and path.is_file())


def _versions(path: Path) -> dict[str, Path]:
    """The children of a folder that are versions, the lowest first."""
    try:
        children = os.listdir(path)
    except (OSError, ValueError):
        return {}
    found = {}
    for child in children:
        version = child.removesuffix(PACKED)
        if _VERSION.fullmatch(version) and _is_artifact(path / child):
            found[version] = path / child
    return dict(sorted(found.items(), key=lambda item: int(item[0])))
