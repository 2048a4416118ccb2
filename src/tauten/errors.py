"""Every error that Tauten raises on purpose.

::

    TautenError                   exit 1, HTTP 500
    ├── ConfigError (ValueError)  exit 2, HTTP 400   a value that was given breaks a rule
    │   ├── TaskError                                the task file, its model or its data
    │   ├── RecipeError                              passes in an order that cannot work
    │   └── InputError            HTTP 400           arrays that do not fit the model's inputs
    ├── ArtifactError                                a file that is damaged, hostile or of another version
    ├── PluginError                                  a plug-in that is missing or does not import
    │   └── ExtraMissing                             an optional dependency is not installed
    ├── PassError                                    a pass could not treat the model
    ├── LoweringError                                a model could not become a graph file
    │   └── MismatchError                            the graph answers other than the module
    ├── EngineError                                  an engine could not load or run
    ├── MeasureError                                 a measurement could not be taken
    ├── BudgetNotMet              exit 3             no candidate holds the budget
    └── ServeError                                   a request or the server failed
        ├── LoadFailed            HTTP 400               a model could not be loaded while the server runs
        ├── Forbidden             HTTP 403
        ├── NotFound              HTTP 404
        ├── MethodNotAllowed      HTTP 405
        ├── TooLarge              HTTP 413
        ├── Overloaded            HTTP 429
        └── NotReady              HTTP 503

A message says what was expected, what came, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class TautenError(Exception):
    """The root of the tree.

    ``exit_code`` is what a command ends with, ``http_status`` what a server answers.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class ConfigError(TautenError, ValueError):
    """A value that was given breaks a rule."""

    exit_code = 2
    http_status = 400


class TaskError(ConfigError):
    """The task file, its model or its data cannot be used."""


class RecipeError(ConfigError):
    """Passes stand in an order that cannot work."""


class InputError(ConfigError):
    """Arrays do not fit the inputs that the model declares."""


class ArtifactError(TautenError):
    """A file is damaged, hostile or of another version."""


class PluginError(TautenError):
    """A plug-in is missing or does not import."""


class ExtraMissing(PluginError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an extra: pip install "tauten[{extra}]"')
        self.extra = extra


class PassError(TautenError):
    """A pass could not treat the model."""


class LoweringError(TautenError):
    """A model could not become a graph file."""


class MismatchError(LoweringError):
    """The lowered graph answers other than the module."""


class EngineError(TautenError):
    """An engine could not load or run an artifact."""


class MeasureError(TautenError):
    """A measurement could not be taken."""


class BudgetNotMet(TautenError):
    """No candidate holds the budget."""

    exit_code = 3


class ServeError(TautenError):
    """A request could not be answered."""


class LoadFailed(ServeError):
    """A model could not be loaded while the server runs; what it served before it serves still."""

    http_status = 400


class Forbidden(ServeError):
    http_status = 403


class NotFound(ServeError):
    """There is no such model, version or path."""

    http_status = 404


class MethodNotAllowed(ServeError):
    """The path answers another method."""

    http_status = 405


class TooLarge(ServeError):
    """The request is larger than the server takes."""

    http_status = 413


class Overloaded(ServeError):
    """Too much waits already: try again later."""

    http_status = 429


class NotReady(ServeError):
    """What was asked for takes no requests now: try again later."""

    http_status = 503
