"""Which records of a bulk a table of SQLite refuses; found in the transaction that was to move them, which then ends.

The writers of the file wait meanwhile, and nobody can change what is looked at. Each part of the bulk is inserted once
more, without what is refused; where something is missing then, its records are tried one by one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from tailrace_common_api import BulkRefused, ProblemKind, RecordProblem
from tailrace_impl_server._sql_tables import PROBLEMS_LISTED, problems_found, quoted
from tailrace_impl_server._sqlite_target import Target, places

_PART = 1000


def find_problems(connection: sqlite3.Connection, target: Target, bulk: int, records: int) -> BulkRefused | None:
    """Return what is wrong with the records that are staged of a bulk; ``None`` if nothing is.

    The transaction is to be undone afterwards.
    """
    problems: dict[int, RecordProblem] = {}
    dangling = _dangling(connection, target, bulk, records, problems)
    # References are known by now, and a record may refer to one behind it.
    connection.execute("PRAGMA defer_foreign_keys = ON")
    refused = 0
    for first in range(0, records, _PART):
        refused += _refused(connection, target, bulk, (first, min(first + _PART, records)), problems, dangling)
    total = refused + len(dangling)
    return problems_found(problems.values(), total) if total else None


def _refused(
    connection: sqlite3.Connection,
    target: Target,
    bulk: int,
    part: tuple[int, int],
    problems: dict[int, RecordProblem],
    dangling: set[int],
) -> int:
    """Insert the records of a part that can be, note down the others, and return how many these are."""
    first, end = part
    connection.execute("SAVEPOINT part")
    try:
        missing = end - first - connection.execute(target.move("IGNORE"), places(bulk, first, end)).rowcount
        if not missing or (len(problems) >= PROBLEMS_LISTED and not dangling):
            connection.execute("RELEASE part")
            return missing
    except sqlite3.IntegrityError:
        # Not every rule can leave a record out.
        pass
    connection.execute("ROLLBACK TO part")
    connection.execute("RELEASE part")
    refused = 0
    for index in range(first, end):
        try:
            connection.execute(target.move(), places(bulk, index, index + 1))
        except sqlite3.IntegrityError as error:
            if index not in dangling:
                refused += 1
            if len(problems) < PROBLEMS_LISTED:
                problems.setdefault(index, _problem(target, index, error))
    return refused


def _problem(target: Target, index: int, error: sqlite3.IntegrityError) -> RecordProblem:
    told = str(error).removeprefix("UNIQUE constraint failed: ").removeprefix("NOT NULL constraint failed: ")
    names = [name.rpartition(".")[2] for name in told.split(", ")]
    field = ", ".join(target.fields.get(name, name) for name in names)
    if error.sqlite_errorcode in (
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
    ):
        if told.startswith("index "):
            problem = f"there is another record with the same value for the {told}"
            return RecordProblem(index=index, kind=ProblemKind.DUPLICATE, field=None, problem=problem)
        problem = f"there is another record with the same {field}"
        return RecordProblem(index=index, kind=ProblemKind.DUPLICATE, field=field, problem=problem)
    if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_NOTNULL:
        problem = "it must have a value"
        return RecordProblem(index=index, kind=ProblemKind.CONSTRAINT, field=field, problem=problem)
    return RecordProblem(index=index, kind=ProblemKind.CONSTRAINT, field=None, problem=str(error))


def _dangling(
    connection: sqlite3.Connection, target: Target, bulk: int, records: int, problems: dict[int, RecordProblem]
) -> set[int]:
    """Note down the records that refer to what is not there, and return which these are."""
    found: set[int] = set()
    for other, pairs in _references(connection, target.table):
        if not all(column in target.values for column, _ in pairs):
            continue
        own = [target.values[column] for column, _ in pairs]
        given = " AND ".join(f"{value} IS NOT NULL" for value in own)
        same = " AND ".join(f"other.{quoted(key)} = {value}" for value, (_, key) in zip(own, pairs, strict=True))
        query = (
            f"SELECT staged.position FROM {target.origin} AND {given} "
            f"AND NOT EXISTS (SELECT 1 FROM main.{quoted(other)} AS other WHERE {same})"
        )
        if quoted(other).lower() == target.table.lower():
            # A record may refer to another one of the bulk.
            inner = {key: target.values[key].replace("staged.", "near.") for _, key in pairs if key in target.values}
            near = " AND ".join(
                f"{inner.get(key, 'NULL')} = {value}" for value, (_, key) in zip(own, pairs, strict=True)
            )
            query += (
                f" AND NOT EXISTS (SELECT 1 FROM attached.{quoted(target.staging)} AS near "
                f"WHERE near.place >= ?2 AND near.place < ?3 AND {near})"
            )
        field = ", ".join(target.fields.get(column, column) for column, _ in pairs)
        for (index,) in connection.execute(query, places(bulk, 0, records)):
            found.add(index)
            problems.setdefault(
                index,
                RecordProblem(
                    index=index, kind=ProblemKind.REFERENCE, field=field, problem=f"there is no such row in {other}"
                ),
            )
    return found


def _references(connection: sqlite3.Connection, table: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the tables that a table refers to, with the columns of both."""
    rows = connection.execute(f"PRAGMA main.foreign_key_list({table})").fetchall()
    for number in sorted({row[0] for row in rows}):
        parts = sorted(row for row in rows if row[0] == number)
        other = parts[0][2]
        keys = [row[4] for row in parts]
        if None in keys:
            columns = connection.execute(f"PRAGMA main.table_info({quoted(other)})").fetchall()
            keys = [row[1] for row in sorted((row for row in columns if row[5]), key=lambda row: row[5])]
        yield other, [(row[3], key) for row, key in zip(parts, keys, strict=True)]


def dangling_problems(connection: sqlite3.Connection, target: Target, bulk: int, records: int) -> BulkRefused | None:
    """Return which records refer to what is not there, where that is looked for at the commit; ``None``: none do."""
    problems: dict[int, RecordProblem] = {}
    found = _dangling(connection, target, bulk, records, problems)
    return problems_found(problems.values(), len(found)) if found else None
