"""What a user's Python file does before and after a model, as an engine around the model's.

::

    client ── inputs ── before ── the model's inputs ── Engine ── the model's outputs ── after ── outputs ── client

So batching, the cache, worker processes and every protocol treat a model with a handler as any other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from tauten.artifact.read import Artifact
from tauten.core.rows import count_rows
from tauten.core.tensor import Array, Arrays, TensorSpec, check_arrays
from tauten.core.user_file import blame
from tauten.errors import ConfigError, EngineError, InputError
from tauten.run.engines.engine import Engine
from tauten.run.serve._handler_file import Function, Handler, read_handler
from tauten.run.serve.protocol.elements import BytesSpec, to_objects


class HandledEngine(Engine):
    """``engine`` between the two functions of ``handler``. As safe to call from many threads as those are.

    Arrays of a ``BytesSpec`` are of dtype ``object`` and hold ``bytes``.
    """

    def __init__(self, handler: Handler, engine: Engine) -> None:
        super().__init__(handler.inputs or engine.inputs, handler.outputs or engine.outputs)
        self._handler = handler
        self._engine = engine
        for each, specs, name in (
            (handler.before_each, self.inputs, "before_each"),
            (handler.after_each, engine.outputs, "after_each"),
        ):
            if each and any(spec.batch_axis != 0 for spec in specs):
                raise ConfigError(f"{handler.path}: {name} takes samples, and the model has no batch of them")

    @classmethod
    def load(cls, artifact: Artifact, *, threads: int) -> Self:
        """Not here: an artifact has no handler; ``with_handler`` makes one of an engine that is loaded."""
        raise EngineError("a handler is a file of its own: use with_handler")

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs for ``inputs``.

        A ``ValueError`` of the handler's is an ``InputError`` with its message: what the client sent cannot be used.
        Anything else that it raises is an ``EngineError``, whose cause is what the log tells and clients do not see.
        """
        try:
            return self._run(inputs)
        except _HandlerFault as failed:
            cause = failed.cause
            if isinstance(cause, ValueError):
                raise InputError(str(cause) or f"{failed.function} refused the request") from cause
            file = self._handler.path.name
            raise EngineError(f"{file}: {failed.function} failed: the server's log says how") from cause

    def __call__(self, inputs: Mapping[str, Array]) -> Arrays:
        return self.run(_fitted(self.inputs, inputs))

    def example(self, zeros: Arrays) -> Arrays:
        """What the handler gives to try it with; ``zeros`` where it gives nothing. Raises ``EngineError``."""
        handler = self._handler
        if handler.example is None:
            return zeros
        try:
            return self._shaped(self.inputs, _call(handler.example, "example()"), "example()")
        except _HandlerFault as failed:
            raise self._blame(failed) from failed.cause

    def try_out(self, inputs: Arrays) -> Arrays:
        """The same as ``run``, for the one who starts the server: an ``EngineError`` names file, function and line."""
        try:
            return self._run(inputs)
        except _HandlerFault as failed:
            fault = self._blame(failed)
            if self._handler.example is None:
                fault = EngineError(f"{fault}; it was tried on zeros: give it a function example() that returns inputs")
            raise fault from failed.cause

    def describe(self) -> dict[str, Any]:
        return {**self._engine.describe(), "handler": self._handler.path.name}

    def close(self) -> None:
        self._engine.close()

    def _run(self, inputs: Mapping[str, Array]) -> Arrays:
        handler, engine = self._handler, self._engine
        made: Mapping[str, Any]
        rows = count_rows(self.inputs, inputs)
        given = dict(inputs)
        if handler.before is not None:
            what = "before_each()" if handler.before_each else "before()"
            if handler.before_each:
                made = _each(handler.before, what, rows, given)
            else:
                made = _call(handler.before, what, given)
            given = self._shaped(engine.inputs, made, what)
            # Answers belong to requests by their rows.
            if count_rows(engine.inputs, given) != rows:
                raise EngineError(f"{self._name(what)} made {count_rows(engine.inputs, given)} samples of {rows}")
        outputs = engine.run(given)
        if handler.after is None:
            return outputs
        what = "after_each()" if handler.after_each else "after()"
        arguments = (outputs, dict(inputs)) if handler.with_inputs else (outputs,)
        if handler.after_each:
            made = _each(handler.after, what, rows, *arguments)
        else:
            made = _call(handler.after, what, *arguments)
        return self._shaped(self.outputs, made, what)

    def _shaped(self, specs: Sequence[TensorSpec], made: Any, what: str) -> Arrays:
        """What a function gave, as the arrays that ``specs`` describe. ``EngineError`` where it gave something else."""
        names = [spec.name for spec in specs]
        if not isinstance(made, Mapping) or set(made) != set(names):
            came = sorted(map(str, made)) if isinstance(made, Mapping) else f"a {type(made).__name__}"
            raise EngineError(f"{self._name(what)} should give a dict with {names}, it gave {came}")
        try:
            arrays = {spec.name: _array(spec, made[spec.name]) for spec in specs}
            _check(specs, arrays)
        except (ValueError, TypeError) as fault:
            raise EngineError(f"{self._name(what)} gave what does not fit: {fault}") from None
        return arrays

    def _name(self, what: str) -> str:
        return f"{self._handler.path.name}: {what}"

    def _blame(self, failed: _HandlerFault) -> EngineError:
        return EngineError(blame(failed.cause, self._handler.path, f"{self._name(failed.function)} failed"))


class _HandlerFault(Exception):
    """A function of the handler's raised ``cause``."""

    def __init__(self, function: str, cause: BaseException) -> None:
        super().__init__(function)
        self.function = function
        self.cause = cause


def with_handler(engine: Engine, path: str | os.PathLike[str] | None, text: bytes | None = None) -> Engine:
    """``engine`` with the handler of a file around it; ``engine`` itself where there is no file.

    ``text`` is what stood in the file when somebody read it, where that counts. Raises ``ConfigError`` where the file
    holds no handler, or none for this model.
    """
    return engine if path is None else HandledEngine(read_handler(Path(path), text), engine)


def _call(function: Function, name: str, *arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as cause:
        raise _HandlerFault(name, cause) from cause


def _each(function: Function, name: str, rows: int, *arguments: Mapping[str, Array]) -> dict[str, list[Any]]:
    """Call a function for each sample; what it gave for all of them, by name."""
    made: dict[str, list[Any]] = {}
    for row in range(rows):
        samples = [{key: array[row] for key, array in one.items()} for one in arguments]
        given = _call(function, name, *samples)
        if not isinstance(given, Mapping) or (row and given.keys() != made.keys()):
            raise EngineError(f"{name} should give a dict with the same names for each sample, it gave {given!r:.80}")
        for key, value in given.items():
            made.setdefault(key, []).append(value)
    return made


def _array(spec: TensorSpec, value: Any) -> Array:
    """``value`` in the type of ``spec``. Raises ``ValueError`` where that would change what it says."""
    if isinstance(spec, BytesSpec):
        return _elements(spec, value)
    array = np.asarray(value)
    dtype = np.dtype(spec.dtype)
    if array.dtype == dtype:
        return array
    whole = array.dtype.kind in "iu" and dtype.kind in "iu"
    if not np.can_cast(array.dtype, dtype, "same_kind") and not whole:
        raise ValueError(f"{spec.name}: expected {spec.dtype}, got {array.dtype.name}")
    cast = array.astype(dtype)
    if whole and not np.array_equal(cast, array):
        raise ValueError(f"{spec.name}: a number lies outside the range of {spec.dtype}")
    return cast


def _elements(spec: TensorSpec, value: Any) -> Array:
    """Bytes as they are and strings in UTF-8, in a list or an array."""
    given = np.asarray(value, object)
    elements = [one.encode() if isinstance(one, str) else one for one in given.reshape(-1).tolist()]
    for one in elements:
        if not isinstance(one, bytes):
            raise ValueError(f"{spec.name}: expected bytes or strings, got a {type(one).__name__}")
    return to_objects(elements, given.shape)


def _check(specs: Sequence[TensorSpec], arrays: Arrays) -> None:
    """``check_arrays``, elements of bytes included. Raises ``InputError``."""
    sizes: dict[str, int] = {}
    for spec in specs:
        for dim, size in spec.sizes(arrays[spec.name].shape).items():
            if sizes.setdefault(dim, size) != size:
                raise InputError(f"{spec.name}: dimension {dim!r} is {size} here and {sizes[dim]} in another tensor")


def _fitted(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """``inputs`` that were held against ``specs``, elements of bytes included. Raises ``InputError``."""
    plain = [spec for spec in specs if not isinstance(spec, BytesSpec)]
    texts = {spec.name for spec in specs if isinstance(spec, BytesSpec)}
    if texts <= inputs.keys():
        check_arrays(plain, {name: array for name, array in inputs.items() if name not in texts})
        for name in texts:
            if inputs[name].dtype != object:
                raise InputError(f"{name}: expected an array of bytes objects, got dtype {inputs[name].dtype.name}")
        _check(specs, dict(inputs))
        return inputs
    raise InputError(f"expected inputs {[spec.name for spec in specs]}, got {sorted(map(str, inputs))}")
