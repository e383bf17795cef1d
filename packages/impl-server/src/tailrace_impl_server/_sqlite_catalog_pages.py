"""Pages of listings of the SQLite catalog. All of it blocks and raises ``sqlite3.Error``.

A page walks one index from where the last page ended: that of a label, of the context, of the state, or of all ids, and
looks at nothing else but the entries that it meets there. So it has to be the index in which fewest are met.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from tailrace_common_api import ListFilter
from tailrace_impl_server._sqlite_catalog_statements import COLUMNS, COMPLETED, NUMBERS, entry_of
from tailrace_server_api import CatalogEntry

_FEW = 1000
"""Entries up to which indexes are compared: looking through fewer than that costs no more than a page."""
_ID_LENGTH = 32
_ID_DIGITS = "0123456789abcdefghijklmnopqrstuv"

_Values = list[str | int | float]


@dataclass(frozen=True, slots=True)
class Range:
    """Ids among which a listing is to be found."""

    first: str | None = None
    """Least id; ``None`` for no bound."""
    below: str | None = None
    """Id below which they are; ``None`` for no bound."""


@dataclass(frozen=True, slots=True)
class _Index:
    """What is selected by an index that ends with the id."""

    source: str
    """Tables of a statement that walks it."""
    order: str
    """Its column of the id."""
    condition: str
    values: tuple[str | int, ...]


_ALL = _Index("resource", "resource.id", "", ())


def page(connection: sqlite3.Connection, filter: ListFilter, after: str | None, limit: int) -> tuple[CatalogEntry, ...]:
    """Return a page of a listing."""
    among = range_of(connection, filter)
    if among is None:
        return ()
    index = best_index(connection, filter, after)
    query, values = page_query(filter, after, limit, among=among, index=index)
    return tuple(entry_of(row) for row in connection.execute(query, values))


def indexes(filter: ListFilter) -> Sequence[_Index]:
    """Return the indexes that a listing can walk, at least one."""
    # CROSS JOIN makes SQLite read its left side first.
    found = [
        _Index(
            "label CROSS JOIN resource ON resource.id = label.id", "label.id", "label.key = ? AND label.value = ?", item
        )
        for item in sorted(filter.labels.items())
    ]
    if filter.context is not None:
        walked = "resource INDEXED BY resource_by_context"
        found.append(_Index(walked, "resource.id", "resource.context = ?", (filter.context,)))
    if filter.state is not None:
        walked = "resource INDEXED BY resource_by_state"
        found.append(_Index(walked, "resource.id", "resource.state = ?", (NUMBERS[filter.state],)))
    return found or [_ALL]


def best_index(connection: sqlite3.Connection, filter: ListFilter, after: str | None) -> int:
    """Return which of :func:`indexes` has the fewest entries behind ``after``, as far as that makes a difference."""
    candidates = indexes(filter)
    if len(candidates) == 1:
        return 0
    counts = []
    for candidate in candidates:
        behind = "" if after is None else f" AND {candidate.order} > ?"
        table = candidate.source.partition(" CROSS")[0]
        query = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {candidate.condition}{behind} LIMIT {_FEW})"
        values = candidate.values if after is None else (*candidate.values, after)
        counts.append(connection.execute(query, values).fetchone()[0])
    return counts.index(min(counts))


def page_query(
    filter: ListFilter, after: str | None, limit: int, *, among: Range | None = None, index: int = 0
) -> tuple[str, _Values]:
    """Return the statement for a page of a listing, and its values.

    Args:
        filter: What is listed.
        after: Id behind which to start; ``None`` for the first page.
        limit: Most entries.
        among: Ids among which everything is that was created when the filter says.
        index: Which of :func:`indexes` to walk.
    """
    walked = indexes(filter)[index]
    values: _Values = [*walked.values]
    conditions = [walked.condition] if walked.condition else []
    for key, value in sorted(filter.labels.items()):
        if (key, value) != walked.values:
            conditions.append(
                "EXISTS (SELECT 1 FROM label AS l WHERE l.key = ? AND l.value = ? AND l.id = resource.id)"
            )
            values += (key, value)
    bounds = among or Range()
    for condition, selected in (
        (f"{walked.order} > ?", after),
        (f"{walked.order} >= ?", bounds.first),
        (f"{walked.order} < ?", bounds.below),
        ("resource.context = ?", filter.context),
        ("resource.state = ?", None if filter.state is None else NUMBERS[filter.state]),
        ("resource.created_at >= ?", filter.created_from),
        ("resource.created_at < ?", filter.created_before),
    ):
        if selected is not None and condition != walked.condition:
            conditions.append(condition)
            values.append(selected)
    conditions.append(f"(NOT resource.hidden OR resource.state = {COMPLETED})")
    values.append(limit)
    query = f"SELECT {COLUMNS} FROM {walked.source} WHERE {' AND '.join(conditions)} ORDER BY {walked.order} LIMIT ?"
    return query, values


def range_of(connection: sqlite3.Connection, filter: ListFilter) -> Range | None:
    """Return the ids of what was created when the filter says; ``None`` if there is nothing.

    Ids are in order of creation, so that the time is searched by halving what lies between two of them.
    """
    first = below = None
    if filter.created_from is not None:
        first = _first_created(connection, filter.created_from)
        if first is None:
            return None
    if filter.created_before is not None:
        below = _first_created(connection, filter.created_before)
    return Range(first, below)


def _first_created(connection: sqlite3.Connection, moment: float) -> str | None:
    """Return the first id that was created at ``moment`` or later; ``None`` if there is none."""

    def first_from(value: int) -> tuple[str, float] | None:
        found: tuple[str, float] | None = connection.execute(
            "SELECT id, created_at FROM resource WHERE id >= ? ORDER BY id LIMIT 1", (_id_of(value),)
        ).fetchone()
        return found

    (last,) = connection.execute("SELECT max(id) FROM resource").fetchone()
    low, high = 0, 0 if last is None else int(last, 32) + 1
    # Below `low` all is older, and from `high` on nothing is.
    while (found := first_from(low)) is not None and found[1] < moment:
        low = int(found[0], 32) + 1
        middle = (low + high) // 2
        found = first_from(middle)
        if found is None or found[1] >= moment:
            high = middle
        else:
            low = int(found[0], 32) + 1
    return None if found is None else found[0]


def _id_of(value: int) -> str:
    """Return the id of 160 bits."""
    digits = []
    for _ in range(_ID_LENGTH):
        value, digit = divmod(value, 32)
        digits.append(_ID_DIGITS[digit])
    return "".join(reversed(digits))
