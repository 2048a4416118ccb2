"""The models of a server, by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tauten.errors import ConfigError, NotFound
from tauten.run.serve.model import ServedModel


class Repository:
    """Models under distinct names. Each has one version."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models: dict[str, ServedModel] = {}
        for model in models:
            if model.name in self._models:
                raise ConfigError(f"expected models of distinct names, got {model.name!r} twice")
            self._models[model.name] = model
        if not self._models:
            raise ConfigError("expected at least one model to serve, got none")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """The model of that name; ``NotFound`` where there is none, or not in that version."""
        model = self._models.get(name)
        if model is None:
            raise NotFound(f"no model named {name!r:.80}: expected one of {list(self._models)}")
        if version is not None and version != model.version:
            raise NotFound(f"model {name!r} has no version {version!r:.80}: expected {model.version!r}")
        return model

    @property
    def ready(self) -> bool:
        """Every model takes requests."""
        return all(model.ready for model in self)
