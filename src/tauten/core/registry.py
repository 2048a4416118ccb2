"""Finds plug-ins: one file in a package, or one entry point, is one plug-in.

A plug-in file exports exactly one name in ``__all__``: the plug-in. Names are known without importing anything;
only the one asked for is imported, so that an engine's backend loads when that engine is used.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from tauten.errors import ExtraMissing, PluginError, TautenError

T = TypeVar("T")


class Registry(Generic[T]):
    """The plug-ins of one kind.

    ``package`` holds a file a plug-in; files that start with ``_`` and those in ``besides`` are no plug-ins.
    A package inside the package is searched too, and its plug-ins are named ``package.file``.
    Third parties add an entry point in the group ``tauten.<kind>s`` whose object is the plug-in.
    """

    def __init__(self, kind: str, package: str, *, besides: tuple[str, ...] = (), extra: str = "optimize") -> None:
        self.kind = kind
        self._package = package
        self._besides = besides
        self._extra = extra

    @cached_property
    def _modules(self) -> dict[str, str]:
        return dict(self._scan(self._package, ""))

    def _scan(self, package: str, prefix: str) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for item in pkgutil.iter_modules(importlib.import_module(package).__path__):
            name = prefix + item.name
            if item.name.startswith("_") or name in self._besides:
                continue
            if item.ispkg:
                found += self._scan(f"{package}.{item.name}", f"{name}.")
            else:
                found.append((name, f"{package}.{item.name}"))
        return found

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=f"tauten.{self.kind}s"):
            # One distribution may be found twice on the path; two that claim one name are a mistake to be told.
            if found.setdefault(entry.name, entry).value != entry.value or entry.name in self._modules:
                other = self._modules.get(entry.name, found[entry.name].value)
                raise PluginError(f"two {self.kind} plug-ins are named {entry.name!r}: {other} and {entry.value}")
        return found

    def names(self) -> list[str]:
        """Every plug-in's name, sorted; imports none of them."""
        return sorted({*self._modules, *self._entry_points})

    def get(self, name: str) -> T:
        """The plug-in of that name.

        Raises ``PluginError`` where there is none or where it does not import, ``ExtraMissing`` where what it
        stands on is not installed.
        """
        if name in self._entry_points:
            return self._load_entry_point(self._entry_points[name])
        if name not in self._modules:
            raise PluginError(f"no {self.kind} named {name!r}: there are {', '.join(self.names())}")
        try:
            module = importlib.import_module(self._modules[name])
        except ModuleNotFoundError as fault:
            if (fault.name or "").partition(".")[0] in ("tauten", ""):
                raise PluginError(f"{self.kind} {name!r} does not import: {fault}") from fault
            raise ExtraMissing(f"{self.kind} {name!r} ({fault.name} is not installed)", self._extra) from fault
        except TautenError:
            raise
        except Exception as fault:
            raise PluginError(f"{self.kind} {name!r} does not import: {type(fault).__name__}: {fault}") from fault
        return self._only_export(name, module)

    def _load_entry_point(self, entry: EntryPoint) -> T:
        try:
            plugin: T = entry.load()
        except TautenError:
            raise
        except Exception as fault:
            raise PluginError(
                f"{self.kind} {entry.name!r} ({entry.value}) does not import: {type(fault).__name__}: {fault}"
            ) from fault
        return plugin

    def _only_export(self, name: str, module: ModuleType) -> T:
        exported: list[str] = list(getattr(module, "__all__", ()))
        if len(exported) != 1:
            raise PluginError(f"{module.__name__}: expected one name in __all__, the {self.kind}; got {exported}")
        if not hasattr(module, exported[0]):
            raise PluginError(f"{module.__name__}: __all__ names {exported[0]!r}, which is not there")
        plugin: Any = getattr(module, exported[0])
        return cast("T", plugin)  # what a file exports is held to its kind by the contract suite

    def all(self) -> dict[str, T]:
        """Every plug-in by name; imports all of them."""
        return {name: self.get(name) for name in self.names()}
