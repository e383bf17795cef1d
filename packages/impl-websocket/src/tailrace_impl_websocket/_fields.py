"""Strict reading of JSON objects: each field is asked for by name and type."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from tailrace_common_api import MAX_OFFSET, ProtocolError, WireValue

_MAX_INTEGER = 2**63 - 1
_MAX_INTEGER_DIGITS = 20
"""Digits and sign of the longest integer that any field takes."""


class _Unusable:
    """Stands for a number that no field takes, so that the error can name the field and its request."""


_UNUSABLE = _Unusable()


def _constant(_: str) -> _Unusable:
    return _UNUSABLE


def _integer(text: str) -> int | _Unusable:
    # Checked before the conversion, which takes quadratic time and has a limit of its own.
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS else _UNUSABLE


def _finite(text: str) -> float | _Unusable:
    value = float(text)
    return value if math.isfinite(value) else _UNUSABLE


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name twice in one object")
    return values


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates,
    parse_int=_integer,
    parse_float=_finite,
    parse_constant=_constant,
)


def parse_object(text: str) -> Fields:
    """Parse the text of one message.

    Raises:
        ProtocolError: It is not one JSON object, or holds a name twice, which others may read differently.
    """
    try:
        value: object = _DECODER.decode(text)
    except RecursionError:
        raise ProtocolError("the message is nested too deeply") from None
    except ValueError as error:
        raise ProtocolError(f"the message is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("the message is not a JSON object")
    return Fields(value, "message")


class Fields:
    """The fields of one JSON object.

    A field that is ``null`` counts as missing. Unknown fields are ignored. All methods raise ``ProtocolError`` for a
    value of another type, and those without ``optional`` in their name also for a missing one.
    """

    __slots__ = ("_values", "_where")

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self._where = where

    def _bad(self, name: str, problem: str) -> ProtocolError:
        return ProtocolError(f"field {name!r} of the {self._where} {problem}")

    def has(self, name: str) -> bool:
        """Return whether the field is there and not ``null``."""
        return self._values.get(name) is not None

    def optional_integer(self, name: str) -> int | None:
        """Return an integer of at most 64 bits: what is wrong with one that is no offset is the resource's to say."""
        return self._bounded(name, -_MAX_INTEGER - 1, _MAX_INTEGER)

    def integer(self, name: str) -> int:
        value = self.optional_integer(name)
        if value is None:
            raise self._bad(name, "is missing")
        return value

    def optional_count(self, name: str, *, minimum: int = 0) -> int | None:
        """Return an integer within ``minimum`` and the largest offset."""
        return self._bounded(name, minimum, MAX_OFFSET)

    def count(self, name: str, *, minimum: int = 0) -> int:
        """Return an integer within ``minimum`` and the largest offset."""
        value = self.optional_count(name, minimum=minimum)
        if value is None:
            raise self._bad(name, "is missing")
        return value

    def _bounded(self, name: str, minimum: int, maximum: int) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        # Not isinstance: a boolean is an integer to Python and not to JSON.
        if type(value) is not int or not minimum <= value <= maximum:
            raise self._bad(name, f"is not an integer within {minimum} and {maximum}")
        return value

    def optional_number(self, name: str) -> float | None:
        value = self._values.get(name)
        if value is None:
            return None
        if type(value) is not float and type(value) is not int:
            raise self._bad(name, "is not a number")
        return float(value)

    def number(self, name: str) -> float:
        value = self.optional_number(name)
        if value is None:
            raise self._bad(name, "is missing")
        return value

    def optional_text(self, name: str) -> str | None:
        value = self._values.get(name)
        return None if value is None else self._text(name, value)

    def text(self, name: str) -> str:
        value = self.optional_text(name)
        if value is None:
            raise self._bad(name, "is missing")
        return value

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise self._bad(name, "is not a string")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._bad(name, "holds half of a surrogate pair") from None
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean; a missing one is ``False``."""
        value = self._values.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._bad(name, "is not a boolean")
        return value

    def optional_digest(self, name: str, size: int) -> bytes | None:
        """Return ``size`` bytes from lower-case hex."""
        value = self._values.get(name)
        return None if value is None else self._digest(name, value, size)

    def digest(self, name: str, size: int) -> bytes:
        """Return ``size`` bytes from lower-case hex."""
        value = self.optional_digest(name, size)
        if value is None:
            raise self._bad(name, "is missing")
        return value

    def _digest(self, name: str, value: object, size: int) -> bytes:
        # bytes.fromhex alone would take upper case and white space.
        if not isinstance(value, str) or len(value) != 2 * size or not set(value) <= _HEX:
            raise self._bad(name, f"is not {2 * size} lower-case hexadecimal digits")
        return bytes.fromhex(value)

    def digests(self, name: str, size: int) -> tuple[bytes, ...]:
        return tuple(self._digest(name, value, size) for value in self._array(name))

    def integers(self, name: str) -> tuple[int, ...]:
        values = []
        for value in self._array(name):
            if type(value) is not int or not -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
                raise self._bad(name, "holds something other than integers of 64 bits")
            values.append(value)
        return tuple(values)

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._text(name, value) for value in self._array(name))

    def optional_nested(self, name: str) -> Fields | None:
        value = self._values.get(name)
        return None if value is None else self._nested(name, value)

    def nested(self, name: str) -> Fields:
        value = self.optional_nested(name)
        if value is None:
            raise self._bad(name, "is missing")
        return value

    def all_nested(self, name: str) -> tuple[Fields, ...]:
        return tuple(self._nested(name, value) for value in self._array(name))

    def text_mapping(self, name: str) -> dict[str, str]:
        """Return an object of strings; a missing one is empty."""
        values = self._values.get(name)
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise self._bad(name, "is not an object")
        return {self._text(name, key): self._text(name, value) for key, value in values.items()}

    def scalar_mapping(self, name: str) -> dict[str, WireValue]:
        """Return an object of strings, numbers, booleans and ``null``; a missing one is empty."""
        values = self._values.get(name)
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise self._bad(name, "is not an object")
        for value in values.values():
            if value is not None and not isinstance(value, str | int | float):
                raise self._bad(name, "holds something other than strings, numbers, booleans and null")
        return dict(values)

    def argument_mapping(self, name: str) -> dict[str, WireValue]:
        """Return an object of strings that have UTF-8, numbers within 64 bits, booleans and ``null``."""
        values = self.scalar_mapping(name)
        for key, value in values.items():
            self._text(name, key)
            if isinstance(value, str):
                self._text(name, value)
            elif isinstance(value, int) and not -_MAX_INTEGER - 1 <= value <= _MAX_INTEGER:
                raise self._bad(name, "holds an integer of more than 64 bits")
        return values

    def flags(self, name: str) -> tuple[bool, ...]:
        values = []
        for value in self._array(name):
            if not isinstance(value, bool):
                raise self._bad(name, "holds something other than booleans")
            values.append(value)
        return tuple(values)

    def _nested(self, name: str, value: object) -> Fields:
        if not isinstance(value, dict):
            raise self._bad(name, "is not an object")
        return Fields(value, name)

    def _array(self, name: str) -> list[object]:
        value = self._values.get(name)
        if not isinstance(value, list):
            raise self._bad(name, "is missing" if value is None else "is not an array")
        return value


_HEX = frozenset("0123456789abcdef")
