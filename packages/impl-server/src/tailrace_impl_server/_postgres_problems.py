"""Which records of a bulk break the rules of a table of PostgreSQL, as the database's catalog knows them.

A violation tells one row at most, and not its place in the bulk. So the rules are asked over what is staged, each as a
query; the sink does it when a move was refused, outside of every transaction that others could wait for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from tailrace_common_api import BulkRefused, ProblemKind, RecordProblem
from tailrace_impl_server._postgres import Connection
from tailrace_impl_server._postgres_target import Target
from tailrace_impl_server._sql_tables import PROBLEMS_LISTED, problems_found, quoted

_UNMAPPED = """
SELECT a.attnum, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
    a.attidentity <> '' OR a.attgenerated <> '' AS made, pg_get_expr(d.adbin, d.adrelid) AS default
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
"""
_UNIQUE = """
SELECT pg_get_expr(i.indpred, i.indrelid) AS predicate,
    ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, true) FROM generate_series(1, i.indnkeyatts) k) AS keys,
    ARRAY(
        SELECT key FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u (key, place)
        WHERE place <= i.indnkeyatts ORDER BY place
    )::int4[] AS plain,
    ARRAY(
        SELECT d.refobjsubid FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
            AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid > 0
        ORDER BY d.refobjsubid
    )::int4[] AS depends,
    coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS equal_nulls
FROM pg_index i WHERE i.indrelid = $1 AND i.indisunique AND i.indislive ORDER BY i.indexrelid
"""
_CONSTRAINTS = """
SELECT c.contype::text AS kind, c.conname AS name, c.conkey::int4[] AS columns, c.confrelid AS other,
    c.confrelid::regclass::text AS other_name, pg_get_expr(c.conbin, c.conrelid) AS condition,
    ARRAY(
        SELECT a.attname FROM unnest(c.confkey) WITH ORDINALITY AS u (number, place)
        JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = u.number ORDER BY u.place
    )::text[] AS other_columns
FROM pg_constraint c
WHERE c.conrelid = $1 AND c.contype IN ('f', 'c') AND (c.contype <> 'f' OR c.confmatchtype = 's')
ORDER BY c.contype DESC, c.oid
"""
# The place of a record in its bulk, beside columns of any name.
_PLACE = '"tailrace place"'


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule, and the query for the places of the records that break it."""

    query: str
    kind: ProblemKind
    field: str | None
    problem: str


async def find_problems(connection: Connection, target: Target, bulk: int) -> BulkRefused | None:
    """Return what is wrong with the records that are staged of a bulk; ``None`` if they break no rule by now."""
    available, missing = await _candidates(connection, target)
    rules = [
        *missing,
        *await _unique_rules(connection, target, available),
        *await _constraint_rules(connection, target, available),
    ]
    if not rules:
        return None
    found = " UNION ALL ".join(
        f"SELECT place, {number} AS rule FROM ({rule.query}) AS q" for number, rule in enumerate(rules)
    )
    values = ", ".join(f"{value} AS {quoted(name)}" for _, name, value in available.values())
    query = f"""
        WITH candidate AS MATERIALIZED (
            SELECT staged.position AS {_PLACE}, {values} FROM {quoted(target.staging)} AS staged
            JOIN tailrace_bulks AS bulk ON bulk.number = staged.bulk WHERE staged.bulk = $1
        ), found AS MATERIALIZED (SELECT place, min(rule) AS rule FROM ({found}) AS all_found GROUP BY place)
        SELECT place, rule, (SELECT count(*) FROM found) AS total FROM found ORDER BY place LIMIT {PROBLEMS_LISTED}
    """
    rows = await connection.fetch(query, bulk)
    if not rows:
        return None
    problems = [_problem(rules[row["rule"]], row["place"]) for row in rows]
    return problems_found(problems, rows[0]["total"])


def _problem(rule: _Rule, place: int) -> RecordProblem:
    return RecordProblem(index=place, kind=rule.kind, field=rule.field, problem=rule.problem)


_Available = dict[int, tuple[str | None, str, str]]
"""By number of the column: its field, its name, and its value as an expression over what is staged."""


async def _candidates(connection: Connection, target: Target) -> tuple[_Available, list[_Rule]]:
    """Return the columns whose values can be told before a record is inserted, and the rules for missing values."""
    fields = {column.name: column.field for column in target.columns}
    available: _Available = {}
    rules: list[_Rule] = []
    for row in await connection.fetch(_UNMAPPED, target.relation):
        name, default = row["name"], row["default"]
        if name in target.values:
            available[row["attnum"]] = (fields.get(name), name, target.values[name])
        elif row["made"] or (default is not None and not re.fullmatch(r"[^()]*", default)):
            # The database makes a value for each record: nobody knows it before.
            continue
        else:
            available[row["attnum"]] = (None, name, default or f"NULL::{row['type']}")
        if row["not_null"] and name in target.values:
            query = f"SELECT {_PLACE} AS place FROM candidate WHERE {quoted(name)} IS NULL"
            rules.append(_Rule(query, ProblemKind.CONSTRAINT, fields.get(name), "it must have a value"))
    return available, rules


async def _unique_rules(connection: Connection, target: Target, available: _Available) -> list[_Rule]:
    rules: list[_Rule] = []
    for row in await connection.fetch(_UNIQUE, target.relation):
        # A key of 0 is an expression; then, or with a predicate, the index depends on columns of its own.
        plain, depends = row["plain"], dict.fromkeys(row["depends"])
        if not available.keys() >= {*plain, *depends} - {0}:
            continue
        names = [f"k{number}" for number in range(len(row["keys"]))]
        keys = ", ".join(f"{key} AS {name}" for key, name in zip(row["keys"], names, strict=True))
        where = f"WHERE {row['predicate']}" if row["predicate"] else ""
        equal = "IS NOT DISTINCT FROM" if row["equal_nulls"] else "="
        same = " AND ".join(f"present.{name} {equal} n.{name}" for name in names)
        present = "true" if row["equal_nulls"] else " AND ".join(f"n.{name} IS NOT NULL" for name in names)
        keyed = f"(SELECT {_PLACE} AS place, {keys} FROM candidate {where}) AS n"
        query = f"""
            SELECT place FROM (
                SELECT place, row_number() OVER (PARTITION BY {", ".join(names)} ORDER BY place) AS nth
                FROM {keyed} WHERE {present}
            ) AS counted WHERE nth > 1
            UNION ALL
            SELECT place FROM {keyed} WHERE {present}
                AND EXISTS (SELECT FROM (SELECT {keys} FROM {target.table} {where}) AS present WHERE {same})
        """
        field = _fields(available, [*depends] if 0 in plain else plain)
        rules.append(_Rule(query, ProblemKind.DUPLICATE, field, f"there is another record with the same {field}"))
    return rules


async def _constraint_rules(connection: Connection, target: Target, available: _Available) -> list[_Rule]:
    rules: list[_Rule] = []
    for row in await connection.fetch(_CONSTRAINTS, target.relation):
        columns: Sequence[int] = row["columns"] or ()
        if not available.keys() >= set(columns):
            continue
        if row["kind"] == "c":
            query = f"SELECT {_PLACE} AS place FROM candidate WHERE NOT ({row['condition']})"
            field = _fields(available, columns) if len(columns) == 1 else None
            rules.append(_Rule(query, ProblemKind.CONSTRAINT, field, f"it breaks the rule {row['name']} of the table"))
            continue
        own = [quoted(available[number][1]) for number in columns]
        pairs = list(zip(own, map(quoted, row["other_columns"]), strict=True))
        same = " AND ".join(f"other.{theirs} = c.{ours}" for ours, theirs in pairs)
        missing = " AND ".join(f"c.{ours} IS NOT NULL" for ours in own)
        query = f"""
            SELECT c.{_PLACE} AS place FROM candidate AS c
            WHERE {missing} AND NOT EXISTS (SELECT FROM {row["other_name"]} AS other WHERE {same})
        """
        if row["other"] == target.relation:
            query += f" AND NOT EXISTS (SELECT FROM candidate AS other WHERE {same})"
        problem = f"there is no such row in {row['other_name']}"
        rules.append(_Rule(query, ProblemKind.REFERENCE, _fields(available, columns), problem))
    return rules


def _fields(available: _Available, columns: Sequence[int]) -> str:
    return ", ".join(available[number][0] or available[number][1] for number in columns)


async def first_refused(connection: Connection, target: Target, bulk: int, records: int) -> BulkRefused | None:
    """Return the first record that the table refuses, found by trying; ``None`` if it refuses none by now.

    For rules that no query tells: triggers, exclusions, types of one's own. Nothing of it stays.
    """
    below, refused, problem = 0, records + 1, ""
    transaction = connection.transaction(isolation="read_committed")
    await transaction.start()
    try:
        await connection.execute("SET LOCAL statement_timeout = 0; SET CONSTRAINTS ALL IMMEDIATE")
        while refused - below > 1:
            # The whole first: it may be good by now.
            upto = records if refused > records else (below + refused) // 2
            attempt = connection.transaction()
            await attempt.start()
            try:
                await connection.execute(f"{target.move_part}", bulk, upto)
                below = upto
            except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, asyncpg.RaiseError) as error:
                refused, problem = upto, _told(error)
            finally:
                await attempt.rollback()
    finally:
        await transaction.rollback()
    if refused > records:
        return None
    return problems_found(
        [RecordProblem(index=refused - 1, kind=ProblemKind.CONSTRAINT, field=None, problem=problem)],
    )


def _told(error: Any) -> str:
    return str(error.message if getattr(error, "message", None) else error)
