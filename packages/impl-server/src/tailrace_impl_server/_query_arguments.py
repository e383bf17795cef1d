"""Arguments of queries: which are known, and what text means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tailrace_common_api import Argument, InvalidArgument, check_arguments
from tailrace_server_api import RecordSource

MAX_RESULTS = "max_results"
"""Argument that every source has: most records to give."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}\Z")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?\Z")
_LARGEST = 2**63 - 1
_WORDS: Mapping[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def read_arguments(source: RecordSource, given: Mapping[str, Argument]) -> tuple[dict[str, Argument], int | None]:
    """Return the arguments as the source has them, and the most records to give (``None`` for all).

    A value has the type of its parameter, or is text that says one: whole numbers are decimal and fit into 64 bits,
    numbers are finite, a boolean is ``true`` or ``false``. A whole number is a number, too; nothing else is converted.
    ``None`` means not given.

    Raises:
        InvalidArgument: One is unknown, missing or of another type; the field is its name.
    """
    parameters = source.parameters
    arguments: dict[str, Argument] = {}
    for name, value in check_arguments(given).items():
        kind = parameters.get(name, int if name == MAX_RESULTS else None)
        if kind is None:
            known = ", ".join(sorted({*parameters, MAX_RESULTS}))
            raise InvalidArgument(field=name, problem=f"unknown; known are {known}")
        if value is not None:
            arguments[name] = read_value(name, value, kind)
    for name in sorted(source.required - arguments.keys()):
        raise InvalidArgument(field=name, problem=f"missing; it is {_WORDS[parameters[name]]}")
    most = arguments.get(MAX_RESULTS)
    if most is not None and (not isinstance(most, int) or most < 0):
        raise InvalidArgument(field=MAX_RESULTS, problem=f"{most!a} is no number from 0 on")
    if MAX_RESULTS not in parameters:
        arguments.pop(MAX_RESULTS, None)
    return arguments, most


def read_value(name: str, value: str | int | float | bool, kind: type) -> Argument:
    """Return a value as the type of its parameter; see :func:`read_arguments`.

    Raises:
        InvalidArgument: It cannot be one; the field is ``name``.
    """
    read: Argument = None
    if kind is str:
        read = value if isinstance(value, str) else None
    elif kind is bool:
        read = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        read = read if isinstance(read, bool) else None
    elif isinstance(value, bool):
        read = None
    elif kind is int:
        whole = value if not isinstance(value, str) else int(value) if _WHOLE.match(value) else None
        read = whole if isinstance(whole, int) and -_LARGEST - 1 <= whole <= _LARGEST else None
    elif kind is float:
        number = value if not isinstance(value, str) else value if _NUMBER.match(value) else "nan"
        try:
            read = float(number)
        except OverflowError:
            read = None
        read = read if read is not None and math.isfinite(read) else None
    if read is None:
        raise InvalidArgument(field=name, problem=f"{_shown(value)} is not {_WORDS[kind]}")
    return read


def _shown(value: str | int | float | bool) -> str:
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        return "a number of more than 64 bits"
    return ascii(value if not isinstance(value, str) or len(value) <= 80 else value[:77] + "...")
