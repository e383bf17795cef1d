"""Numbers of JSON with more digits than a 64-bit integer or a double holds.

The parser that all records pass is quick, and makes doubles of them. Where a value goes to a column that could hold
more, or must say that it cannot, its record is read once more, digit by digit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

import orjson

_LONG = re.compile(rb"[0-9][0-9.]{15}")
"""A number without such a part has no more than 15 digits, and a double tells it from all others of that length."""
_LARGEST = 2**64 - 1


class ExactNumbers:
    """Reads records once more, those in which a number may have lost digits."""

    def __init__(self, data: Sequence[bytes]) -> None:
        """Read from ``data``: objects of JSON, which have been parsed before."""
        self._data = data
        self._read: dict[int, Mapping[str, object]] = {}

    def value(self, index: int, field: str, parsed: object) -> object:
        """Return a field of a record that was parsed as ``parsed``.

        Numbers that are no doubles, and integers of more than 64 bits, are ``Decimal``, with the digits they have.

        Raises:
            ValueError: The record is nested too deeply to be read like this.
        """
        if index not in self._read:
            if not _LONG.search(self._data[index]):
                return parsed
            self._read[index] = _read(self._data[index])
        return self._read[index].get(field, parsed)


def as_written(value: object) -> orjson.Fragment:
    """Write what :class:`ExactNumbers` makes of a number; for ``orjson.dumps``."""
    if isinstance(value, Decimal) and value.is_finite():
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} is no value of JSON")


def _read(data: bytes) -> Mapping[str, object]:
    try:
        read = json.loads(data, parse_int=_whole, parse_float=_real)
    except ValueError:
        # A validation of one's own has made an object of something else.
        return {}
    except RecursionError:
        raise ValueError("it is nested too deeply for a number of so many digits") from None
    return read if isinstance(read, dict) else {}


def _whole(digits: str) -> int | Decimal:
    # Python refuses to read an integer of thousands of digits, and a decimal number of as many is cheap.
    if len(digits) > 20:
        return Decimal(digits)
    number = int(digits)
    return number if -(2**63) <= number <= _LARGEST else Decimal(digits)


def _real(digits: str) -> float | Decimal:
    number, exact = float(digits), Decimal(digits)
    return number if Decimal(str(number)) == exact else exact
