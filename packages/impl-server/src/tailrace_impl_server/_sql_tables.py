"""What the sinks of SQL databases share: the tables that take records, and the values of their columns."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
import struct
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from operator import attrgetter, itemgetter
from typing import Any

import orjson

from tailrace_common_api import BulkRefused, ConfigurationError, ProblemKind, RecordProblem, refused_records
from tailrace_impl_server._exact_numbers import ExactNumbers, as_written

_MAY_BE_ROUNDED = frozenset({float, list, dict})
"""Types of values of JSON in which numbers may have lost digits."""
PROBLEMS_LISTED = 100
"""Most records whose problems are named; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTable:
    """A table that takes whole records, whatever they say; made by who uses it, before the sink is started."""

    name: str
    """The table."""
    columns: Mapping[str, str]
    """Value of each column, as an expression of SQL over ``staged.position``, ``staged.key``, ``staged.record`` (bytes)
    and ``bulk.priority``; the records are inserted in the order of their positions."""
    then: str | None = None
    """Statement that ends the final transaction; its one parameter is the number of records."""


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def layout_name(prefix: str, collection: str, layout: str) -> str:
    """Return a name for a table that belongs to a collection and changes with its layout; at most 60 characters."""
    readable = re.sub(r"[^a-z0-9]+", "_", collection.lower())[:24]
    return f"{prefix}_{readable}_{hashlib.sha256(f'{collection} {layout}'.encode()).hexdigest()[:10]}"


def field_columns(columns: Mapping[str, str] | Sequence[str] | None, place: str) -> dict[str, str] | None:
    """Return which field goes to which column; ``None`` for all columns of the table.

    Raises:
        ConfigurationError: There are none, or two go to one column.
    """
    if columns is None:
        return None
    pairs = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    if not pairs or len(set(pairs.values())) < len(pairs):
        raise ConfigurationError(field=place, problem="there must be columns, and no two fields may go to the same one")
    return pairs


# Values


class ColumnKind:
    """What a column takes. Whole columns are looked at at once, single values only where that finds something."""

    __slots__ = ("one", "plain", "whole")

    def __init__(
        self,
        plain: Iterable[type],
        one: Callable[[Any], object],
        whole: Callable[[Sequence[Any]], bool] | None = None,
    ) -> None:
        """Describe a kind.

        Args:
            plain: Types of values that need no change.
            one: Returns what the driver takes for a value; raises ValueError with what is wrong.
            whole: Whether values of these types can all be taken.
        """
        self.plain = frozenset((*plain, type(None)))
        self.one = one
        self.whole = whole


def staged_columns(
    fields: Sequence[str], kinds: Sequence[ColumnKind], first: int, values: Sequence[Any], data: Sequence[bytes]
) -> list[Any]:
    """Return the values of each column, of records that begin with number ``first``.

    Args:
        fields: The field of each column.
        kinds: What each column takes.
        first: Number of the first record.
        values: What the records say.
        data: The records themselves: where a number of JSON has more digits than ``values`` can hold, they count.

    Raises:
        BulkRefused: Some do not fit.
    """
    exact = ExactNumbers(data) if isinstance(values[0], Mapping) else None
    problems: list[RecordProblem] = []
    columns: list[Any] = []
    for field, kind, column in zip(fields, kinds, _read(fields, values), strict=True):
        if kind.plain.issuperset(map(type, column)) and (
            kind.whole is None or kind.whole([item for item in column if item is not None])
        ):
            columns.append(column)
        else:
            columns.append(_convert(kind, field, first, column, problems, exact))
    if problems:
        raise problems_found(problems)
    return columns


def _read(fields: Sequence[str], values: Sequence[Any]) -> Iterable[Sequence[Any]]:
    if isinstance(values[0], Mapping):
        for field in fields:
            try:
                yield list(map(itemgetter(field), values))
            except KeyError:
                yield [value.get(field) for value in values]
    elif hasattr(values[0], "DESCRIPTOR"):
        known = values[0].DESCRIPTOR.fields_by_name
        for field in fields:
            if field not in known:
                yield [None] * len(values)
            elif known[field].has_presence:
                yield [getattr(value, field) if value.HasField(field) else None for value in values]
            else:
                yield list(map(attrgetter(field), values))
    else:
        raise refused_records([_problem(0, ProblemKind.INVALID, None, "it has no fields for columns")], len(values))


def _convert(
    kind: ColumnKind,
    field: str,
    first: int,
    column: Sequence[object],
    problems: list[RecordProblem],
    exact: ExactNumbers | None,
) -> list[object]:
    converted: list[object] = []
    for index, value in enumerate(column):
        try:
            if exact is not None and type(value) in _MAY_BE_ROUNDED:
                value = exact.value(index, field, value)
            converted.append(None if value is None else kind.one(value))
        except ValueError as error:
            problems.append(_problem(first + index, ProblemKind.INVALID, field, str(error)))
    return converted


def _problem(index: int, kind: ProblemKind, field: str | None, problem: str) -> RecordProblem:
    return RecordProblem(index=index, kind=kind, field=field, problem=problem)


def problems_found(problems: Iterable[RecordProblem], total: int | None = None) -> BulkRefused:
    """Return the error that names some of these problems, by index; ``total`` records have one, by default these."""
    ordered = sorted(problems, key=lambda problem: problem.index)
    count = len({problem.index for problem in ordered}) if total is None else total
    return refused_records(ordered[:PROBLEMS_LISTED], count)


def whole_number(bits: int) -> ColumnKind:
    """Return the kind of signed integers."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    def one(value: Any) -> int:
        if (isinstance(value, float) and value.is_integer()) or (
            isinstance(value, Decimal) and value == value.to_integral_value()
        ):
            value = int(value)
        if type(value) is not int:
            raise ValueError(f"{_named(value)} is no whole number")
        if not low <= value <= high:
            raise ValueError(f"it is not within {low} and {high}")
        return value

    return ColumnKind([int], one, lambda values: not values or (low <= min(values) and max(values) <= high))


def real_number(*, single: bool = False) -> ColumnKind:
    """Return the kind of floating-point numbers."""

    def one(value: Any) -> float:
        if type(value) not in (int, float, Decimal):
            raise ValueError(f"{_named(value)} is no number")
        try:
            number = float(value)
            if single:
                struct.pack("<f", number)
        except OverflowError:
            raise ValueError("it is too large") from None
        return number

    return ColumnKind([] if single else [float], one)


def _one_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_named(value)} is no text")
    if "\0" in value:
        raise ValueError("the database takes no text with the character U+0000")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair") from None
    return value


def _all_text(values: Sequence[str]) -> bool:
    joined = "".join(values)
    return (joined.isascii() and "\0" not in joined) or _is_text(joined)


def _is_text(joined: str) -> bool:
    try:
        return b"\0" not in joined.encode()
    except UnicodeEncodeError:
        return False


TEXT = ColumnKind([str], _one_text, _all_text)
"""Text without U+0000."""


def _one_truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_named(value)} is no truth value")
    return value


TRUTH = ColumnKind([bool], _one_truth)
"""Truth values."""


def _one_blob(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{_named(value)} is no text in base64")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise ValueError("it is no base64") from None


BLOB = ColumnKind([bytes], _one_blob)
"""Bytes; in JSON as base64."""


def _one_json(value: object) -> str:
    try:
        return orjson.dumps(value, default=as_written).decode()
    except TypeError as error:
        raise ValueError(str(error)) from None


JSON_TEXT = ColumnKind([], _one_json)
"""Any value of JSON, as its text."""


def _one_decimal(value: object) -> Decimal:
    if type(value) not in (int, float, str, Decimal):
        raise ValueError(f"{_named(value)} is no number")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise ValueError("it is no number") from None
    if not number.is_finite():
        raise ValueError("it is no finite number")
    return number


DECIMAL = ColumnKind([], _one_decimal)
"""Decimal numbers, exactly; in JSON as a number or as text."""


def _moment(of: type[date] | type[time], *, zoned: bool | None = None) -> ColumnKind:
    what = {datetime: "time and date", date: "date", time: "time"}[of]

    def one(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"{_named(value)} is no {what}")
        try:
            moment: Any = of.fromisoformat(value)
        except ValueError:
            raise ValueError(f"it is no {what} as ISO 8601 has it") from None
        if zoned is not None and (moment.tzinfo is not None) is not zoned:
            raise ValueError(f"it must have {'an' if zoned else 'no'} offset from UTC")
        return moment

    return ColumnKind([], one)


DATE = _moment(date)
TIMESTAMP = _moment(datetime, zoned=False)
ZONED_TIMESTAMP = _moment(datetime, zoned=True)
TIME = _moment(time, zoned=False)


def _one_uuid(value: object) -> uuid.UUID:
    if not isinstance(value, str):
        raise ValueError(f"{_named(value)} is no UUID")
    try:
        return uuid.UUID(value)
    except ValueError:
        raise ValueError("it is no UUID") from None


UUID = ColumnKind([], _one_uuid)
"""UUIDs; in JSON as text."""


def _one_anything(value: Any) -> object:
    if isinstance(value, int):
        return whole_number(64).one(int(value))
    if isinstance(value, Decimal):
        if value.as_tuple().exponent == 0:
            # SQLite would take the nearest double for it.
            raise ValueError("it is a whole number of more than 64 bits")
        value = float(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("it is no number")
        return value
    if isinstance(value, bytes):
        return value
    return _one_sqlite_text(value if isinstance(value, str) else _one_json(value))


def _one_sqlite_text(value: object) -> str:
    if isinstance(value, list | dict):
        return _one_json(value)
    if not isinstance(value, str):
        raise ValueError(f"{_named(value)} is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair") from None
    return value


def _one_sqlite_integer(value: object) -> object:
    return value if isinstance(value, bool) else whole_number(64).one(value)


SQLITE_INTEGER = ColumnKind([int], _one_sqlite_integer, whole_number(64).whole)
"""Integers as SQLite has them, truth values included."""
SQLITE_TEXT = ColumnKind([str], _one_sqlite_text, _all_text)
"""Text as SQLite has it; lists and objects as JSON."""


def _named(value: object) -> str:
    names = {str: "text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    names[Decimal] = "a number"
    return names.get(type(value), f"a {type(value).__name__}")


ANYTHING = ColumnKind([], _one_anything)
"""Whatever SQLite can keep; lists and objects as JSON."""
