"""The models of a server, by name and version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from tauten.errors import ConfigError, NotFound, NotReady
from tauten.run.serve.model import ServedModel


class Repository:
    """Models under distinct names and versions. Belongs to one event loop, in which it changes a model in one step.

    Where a request names no version, the one in ``pins`` answers, else the one of the highest number. ``loading`` are
    names that are on their way, ``starting`` says that not all is there yet that should be: then nothing is ready.
    """

    def __init__(self, models: Iterable[ServedModel] = (), pins: Mapping[str, str] | None = None) -> None:
        self.loading: set[str] = set()
        self.starting = False
        self._pins = dict(pins or {})
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._changed: list[Callable[[], None]] = []
        given: dict[str, list[ServedModel]] = {}
        for model in models:
            given.setdefault(model.name, []).append(model)
        for name, versions in given.items():
            self.put(name, versions)

    def __iter__(self) -> Iterator[ServedModel]:
        """Every version of every model."""
        return (model for versions in self._models.values() for model in versions.values())

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def versions(self, name: str) -> list[ServedModel]:
        """The versions of a model, the lowest first; none where it is not there."""
        return list(self._models.get(name, {}).values())

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model of that name.

        ``NotFound`` where there is none, or not in that version; ``NotReady`` where it is being loaded.
        """
        versions = self._models.get(name)
        if versions is None:
            if name in self.loading:
                raise NotReady(f"model {name!r} is being loaded")
            raise NotFound(f"no model named {name!r:.80}: expected one of {list(self._models)}")
        model = versions.get(version or self._pins.get(name) or next(reversed(versions)))
        if model is None:
            there = ", ".join(map(repr, versions))
            raise NotFound(f"model {name!r} has no version {version!r:.80}: expected {there}")
        return model

    def put(self, name: str, models: Iterable[ServedModel]) -> list[ServedModel]:
        """Serve ``models`` under ``name`` from now on, and only those. What was there and is no more comes back.

        Raises ``ConfigError`` for two of one version, or where the pinned one is missing; then nothing has changed.
        """
        versions: dict[str, ServedModel] = {}
        for model in sorted(models, key=lambda model: int(model.version)):
            if model.version in versions:
                raise ConfigError(f"expected models of distinct names, got {name!r} twice in version {model.version}")
            versions[model.version] = model
        pin = self._pins.get(name)
        if pin is not None and pin not in versions:
            raise ConfigError(f"model {name!r} is pinned to version {pin}: expected it among {list(versions)}")
        before = self.versions(name)
        self._models[name] = versions
        for told in self._changed:
            told()
        return [model for model in before if versions.get(model.version) is not model]

    def remove(self, name: str) -> list[ServedModel]:
        """Serve that model no more; what was there comes back."""
        gone = self._models.pop(name, {})
        for told in self._changed:
            told()
        return list(gone.values())

    def on_change(self, told: Callable[[], None]) -> None:
        """Call ``told`` after each change."""
        self._changed.append(told)

    @property
    def ready(self) -> bool:
        """Every model takes requests, and none is still to come from the start."""
        return not self.starting and all(model.ready for model in self)
