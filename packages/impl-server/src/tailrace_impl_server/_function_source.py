"""Sources that are asynchronous generator functions."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import orjson

from tailrace_common_api import Argument, ConfigurationError, Record, RecordBatch
from tailrace_server_api import RecordSource

_TYPES: tuple[type, ...] = (str, int, float, bool)

Produced = Mapping[str, object] | bytes | str | Record | RecordBatch
"""What such a function may yield: a JSON object, the bytes or the text of one record, a record, or several."""
RecordFunction = Callable[..., AsyncGenerator[Produced, None]]


class FunctionSource(RecordSource):
    """A source that is an asynchronous generator function with keyword parameters.

    Each parameter is annotated as ``str``, ``int``, ``float`` or ``bool``, or one of these ``| None``; the ones without
    a default are required. What it yields is a mapping (sent as JSON), ``bytes``, ``str`` (as UTF-8), a ``Record`` or
    a ``RecordBatch``.
    """

    def __init__(self, function: RecordFunction) -> None:
        """Use ``function``.

        Raises:
            ConfigurationError: It is no such function; the field is ``function``.
        """
        if not inspect.isasyncgenfunction(function):
            raise _unusable("it is no asynchronous generator function")
        self._function: RecordFunction = function
        self._parameters: dict[str, type] = {}
        required = set()
        try:
            hints = typing.get_type_hints(inspect.unwrap(getattr(function, "func", function)))
        except (NameError, TypeError) as error:
            raise _unusable(f"its annotations cannot be read: {error}") from None
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise _unusable(f"{parameter} is no parameter that can be given by its name")
            self._parameters[name] = _type_of(name, hints.get(name))
            if parameter.default is parameter.empty:
                required.add(name)
        self._required = frozenset(required)

    @property
    def parameters(self) -> Mapping[str, type]:
        return self._parameters

    @property
    def required(self) -> frozenset[str]:
        return self._required

    async def query(self, arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        async with aclosing(self._function(**arguments)) as produced:
            async for item in produced:
                yield _batch(item)


def _batch(item: object) -> RecordBatch:
    if isinstance(item, RecordBatch):
        return item
    if isinstance(item, Record) and isinstance(item.data, bytes):
        return RecordBatch((item.data,), (item.key,)) if item.key is not None else RecordBatch((item.data,))
    if isinstance(item, bytes):
        return RecordBatch((item,))
    if isinstance(item, str):
        return RecordBatch((item.encode(),))
    if isinstance(item, dict):
        return RecordBatch((orjson.dumps(item),))
    if isinstance(item, Mapping):
        return RecordBatch((orjson.dumps(dict(item)),))
    raise TypeError(f"a source yielded {type(item).__name__}, which is no record")


def _type_of(name: str, hint: object) -> type:
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
    if len(options) == 1 and isinstance(options[0], type) and options[0] in _TYPES:
        return options[0]
    raise _unusable(f"its parameter {name} is not annotated as str, int, float or bool")


def _unusable(problem: str) -> ConfigurationError:
    return ConfigurationError(field="function", problem=problem)
