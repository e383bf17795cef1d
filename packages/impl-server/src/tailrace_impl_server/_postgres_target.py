"""The table of PostgreSQL that a sink fills: what the catalog says of it, and the statements that are made of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailrace_common_api import JSON, ConfigurationError
from tailrace_impl_server import _sql_tables as kinds
from tailrace_impl_server._postgres import Connection
from tailrace_impl_server._sql_tables import ColumnKind, RecordTable, layout_name, quoted

_KINDS: Mapping[str, ColumnKind] = {
    "bool": kinds.TRUTH,
    "int2": kinds.whole_number(16),
    "int4": kinds.whole_number(32),
    "int8": kinds.whole_number(64),
    "float4": kinds.real_number(single=True),
    "float8": kinds.real_number(),
    "numeric": kinds.DECIMAL,
    "text": kinds.TEXT,
    "varchar": kinds.TEXT,
    "bpchar": kinds.TEXT,
    "name": kinds.TEXT,
    "citext": kinds.TEXT,
    "bytea": kinds.BLOB,
    "json": kinds.JSON_TEXT,
    "jsonb": kinds.JSON_TEXT,
    "date": kinds.DATE,
    "time": kinds.TIME,
    "timestamp": kinds.TIMESTAMP,
    "timestamptz": kinds.ZONED_TIMESTAMP,
    "uuid": kinds.UUID,
}

_RELATION = """
SELECT c.oid, c.relkind::text AS kind, has_table_privilege(c.oid, 'INSERT') AS may_insert
FROM pg_class c WHERE c.oid = to_regclass($1)
"""

_COLUMNS = """
WITH RECURSIVE base (attnum, type) AS (
    SELECT attnum, atttypid FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT base.attnum, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.type WHERE t.typtype = 'd'
)
SELECT a.attnum, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, t.typname AS base,
    t.typtype::text AS category, a.attnotnull AS not_null, a.attidentity::text AS identity,
    a.attgenerated::text AS generated, pg_get_expr(d.adbin, d.adrelid) AS default
FROM pg_attribute a
JOIN base ON base.attnum = a.attnum
JOIN pg_type t ON t.oid = base.type AND t.typtype <> 'd'
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1
ORDER BY a.attnum
"""

_STAGING = """
CREATE UNLOGGED TABLE IF NOT EXISTS {staging} (
    bulk bigint NOT NULL,
    position bigint NOT NULL,
    staged_at timestamptz NOT NULL DEFAULT now(),
    {columns}
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100000, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX IF NOT EXISTS {index} ON {staging} (bulk);
"""


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of a table that takes fields."""

    number: int
    """Its number in the table."""
    name: str
    """Its name."""
    field: str
    """The field that goes there."""
    staged: str
    """Its name in the table for staging."""
    value: str
    """Its value as an expression over ``staged``."""
    not_null: bool
    """Whether it must have a value."""


@dataclass(frozen=True, slots=True)
class Target:
    """A table with the place for staging before it."""

    relation: int
    """The table's number in the catalog."""
    table: str
    """The table, quoted."""
    staging: str
    """The table for staging, not quoted."""
    columns: Sequence[TargetColumn]
    """Columns that take fields; none where whole records are taken."""
    kinds: Sequence[ColumnKind]
    """What these columns take."""
    staged: Sequence[str]
    """Columns for staging after ``bulk`` and ``position``."""
    values: Mapping[str, str]
    """Value of each column of the table that gets one, as an expression over ``staged`` and ``bulk``."""

    @property
    def move(self) -> str:
        """Statement that moves what is staged of bulk ``$1``, in order."""
        names, values = ", ".join(map(quoted, self.values)), ", ".join(self.values.values())
        return (
            f"INSERT INTO {self.table} ({names}) SELECT {values} FROM {quoted(self.staging)} AS staged "
            "JOIN tailrace_bulks AS bulk ON bulk.number = staged.bulk WHERE staged.bulk = $1 ORDER BY staged.position"
        )

    @property
    def move_part(self) -> str:
        """The same of the first ``$2`` records."""
        return self.move.replace("WHERE staged.bulk = $1", "WHERE staged.bulk = $1 AND staged.position < $2")


def quoted_table(name: str) -> str:
    """Return the name of a table, perhaps with that of its schema and a dot before it, as an identifier."""
    return ".".join(map(quoted, name.split(".")))


async def prepare_fields(
    connection: Connection, collection: str, table: str, fields: Mapping[str, str] | None
) -> Target:
    """Return the target whose columns take the fields of records, with its place for staging made.

    Raises:
        ConfigurationError: The table or a column is not there, or cannot be inserted into.
    """
    place = f"collections.{collection}"
    relation = await _relation(connection, table, place)
    found = {row["name"]: row for row in await connection.fetch(_COLUMNS, relation)}
    if fields is None:
        fields = {name: name for name, row in found.items() if not row["generated"] and row["identity"] != "a"}
    columns: list[TargetColumn] = []
    column_kinds: list[ColumnKind] = []
    types: list[str] = []
    for position, (field, name) in enumerate(fields.items()):
        if name not in found:
            raise ConfigurationError(field=f"{place}.columns", problem=f"the table {table} has no column {name!a}")
        row = found[name]
        if row["generated"] or row["identity"] == "a":
            raise ConfigurationError(field=f"{place}.columns", problem=f"the database makes the values of {name!a}")
        kind = kinds.TEXT if row["category"] == "e" else _KINDS.get(row["base"])
        if kind is None:
            raise ConfigurationError(field=f"{place}.columns", problem=f"{name!a} is of the type {row['type']}")
        staged = f"c{position}"
        value = f"staged.{staged}"
        if row["default"] is not None and row["not_null"]:
            # Null would be refused: a field that is not there gets what the table has for that.
            value = f"COALESCE({value}, {row['default']})"
        columns.append(TargetColumn(row["attnum"], name, field, staged, value, row["not_null"]))
        column_kinds.append(kind)
        types.append(row["type"])
    for name, row in found.items():
        made = row["generated"] or row["identity"] or row["default"] is not None
        if row["not_null"] and not made and name not in fields.values():
            raise ConfigurationError(
                field=f"{place}.columns", problem=f"nothing goes to {name!a}, which must have a value"
            )
    definitions = [f"{column.staged} {kept}" for column, kept in zip(columns, types, strict=True)]
    staging = await _make_staging(connection, collection, definitions)
    return Target(
        relation,
        quoted_table(table),
        staging,
        columns,
        column_kinds,
        [column.staged for column in columns],
        {column.name: column.value for column in columns},
    )


async def prepare_records(connection: Connection, collection: str, table: RecordTable | None, content: str) -> Target:
    """Return the target that takes whole records; without ``table`` one with the collection's name is made.

    Raises:
        ConfigurationError: The table is not there, or cannot be inserted into.
    """
    place = f"collections.{collection}"
    if table is None:
        kind, value = ("json", "convert_from(staged.record, 'UTF8')::json")
        if content != JSON:
            kind, value = "bytea", "staged.record"
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {quoted(collection)} ("
            f"position bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, key text, record {kind} NOT NULL)"
        )
        identifier, columns = quoted(collection), {"key": "staged.key", "record": value}
    else:
        identifier, columns = quoted_table(table.name), dict(table.columns)
    relation = await _relation(connection, collection if table is None else table.name, place, whole=table is None)
    staging = await _make_staging(connection, collection, ["key text", "record bytea NOT NULL"])
    return Target(relation, identifier, staging, [], [kinds.TEXT, kinds.BLOB], ["key", "record"], columns)


async def _relation(connection: Connection, table: str, place: str, *, whole: bool = False) -> int:
    row: Any = await connection.fetchrow(_RELATION, quoted(table) if whole else quoted_table(table))
    if row is None:
        raise ConfigurationError(field=f"{place}.table", problem=f"there is no table {table}")
    if row["kind"] not in ("r", "p"):
        raise ConfigurationError(field=f"{place}.table", problem=f"{table} is no table")
    if not row["may_insert"]:
        raise ConfigurationError(field=f"{place}.table", problem=f"the user may not insert into {table}")
    relation: int = row["oid"]
    return relation


async def _make_staging(connection: Connection, collection: str, definitions: Sequence[str]) -> str:
    columns = ", ".join(definitions)
    staging = layout_name("tailrace_staging", collection, columns)
    index = quoted(f"{staging}_b")
    await connection.execute(_STAGING.format(staging=quoted(staging), index=index, columns=columns))
    return staging
