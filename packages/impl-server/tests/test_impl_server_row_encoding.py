"""Rows of a database as records."""

import base64
import json
import math
import sqlite3

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace_impl_server._row_encoding import RowEncoder

# What a file of SQLite holds. Text with what separates values and records, as it is and as JSON has it.
TEXT = st.text(max_size=20) | st.text(alphabet='\n\r,:{}[]"\\n\x00\u2028', max_size=10)
VALUES = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT | st.binary(max_size=10)
NAMES = st.lists(TEXT, min_size=1, max_size=4, unique=True)


def alone(names: list[str], row: tuple[object, ...]) -> bytes:
    """Return a row as the library writes it by itself."""
    written = [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in row]
    return orjson.dumps(dict(zip(names, written, strict=True)))


@given(NAMES, st.data())
def test_many_rows_are_what_each_is_alone(names: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*(VALUES for _ in names)), max_size=5))
    assert RowEncoder(names).encode(rows) == [alone(names, row) for row in rows]


@given(NAMES, st.data())
def test_columns_of_one_type_are_what_each_row_is_alone(names: list[str], data: st.DataObject) -> None:
    of_one_type = st.sampled_from([st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), TEXT, st.none()])
    kinds = [data.draw(of_one_type) for _ in names]
    rows = data.draw(st.lists(st.tuples(*kinds), min_size=1, max_size=5))
    encoder = RowEncoder(names)
    assert encoder.encode(rows) == [alone(names, row) for row in rows]
    # It encodes more than once.
    assert encoder.encode(rows[:1]) == [alone(names, rows[0])]


def test_rows_of_a_file_are_read_as_they_were_written() -> None:
    with sqlite3.connect(":memory:") as file:
        rows = file.execute(
            "SELECT 9223372036854775807, 0.1 + 0.2, 1e999, 'a,' || char(10) || '{\"', x'00ff', NULL UNION ALL"
            " SELECT -9223372036854775808, -0.0, 1e308, '', x'', 'text' ORDER BY 1 DESC"
        ).fetchall()
    first, second = map(json.loads, RowEncoder(list("abcdef")).encode(rows))
    assert first == {"a": 2**63 - 1, "b": 0.1 + 0.2, "c": None, "d": 'a,\n{"', "e": "AP8=", "f": None}
    assert second == {"a": -(2**63), "b": 0.0, "c": 1e308, "d": "", "e": "", "f": "text"}
    assert math.copysign(1, second["b"]) == -1


def test_what_no_database_holds_is_refused() -> None:
    with pytest.raises(TypeError):
        RowEncoder(["a"]).encode([(object(),)])
