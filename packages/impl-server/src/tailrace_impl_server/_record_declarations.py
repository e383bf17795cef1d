"""Ends of record streams as the settings of a server declare them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tailrace_common_api import JSON, Argument, ConfigurationError, InvalidArgument, check_end_name
from tailrace_impl_server._declared_databases import (
    Columns,
    DeclaredDatabase,
    EmbeddedDatabase,
    SqliteFiles,
    Statement,
    Target,
    declared_database,
)
from tailrace_impl_server._function_source import FunctionSource
from tailrace_impl_server._loading import find_named
from tailrace_impl_server._query_arguments import read_value
from tailrace_impl_server._queue_rules import DEAD_SUFFIX, DEFAULT_LEASE
from tailrace_impl_server._record_validation import (
    PROTOBUF,
    FileValidator,
    JsonSchemaValidator,
    ProtobufValidator,
    is_json,
)
from tailrace_impl_server._settings import ServerSettings
from tailrace_server_api import Collection, Queue, RecordEnds, RecordSource, Source, Validator

TABLES = ("databases", "collections", "sources", "queues")
"""Tables of settings that declare ends of record streams, and the databases behind them."""

_TYPES: Mapping[str, type] = {"text": str, "integer": int, "number": float, "boolean": bool}
"""Types of parameters by the names that they have in settings."""
_PARAMETER = re.compile(r"\s*(?P<type>\w+)\s*(?:=\s?(?P<default>.*))?\Z", re.DOTALL)
_LARGEST_FILE = 16 * 1024 * 1024
_LONGEST_LEASE = 7 * 86400.0
_MOST_CONNECTIONS = 1000

_T = TypeVar("_T")


def declared_ends(tables: Mapping[str, object], data: Path | None, settings: ServerSettings) -> RecordEnds:
    """Return the ends that tables of settings declare; nothing is opened yet.

    Relative paths are relative to the working directory.

    Args:
        tables: By name of the table, then by name of the end or database.
        data: Folder of the server, for embedded databases; ``None`` for none: then every end needs a database.
        settings: Settings of the server.

    Raises:
        ConfigurationError: A table is unknown, or a declaration cannot work; the field is ``TABLE.NAME.KEY``.
    """
    unknown = sorted(tables.keys() - set(TABLES))
    if unknown:
        raise ConfigurationError(field=unknown[0], problem=f"unknown; known are {', '.join(TABLES)}")
    files = SqliteFiles(settings)
    databases = _Databases(EmbeddedDatabase(files, data))
    for entry in _entries(tables, "databases"):
        url = entry.needed_text("url")
        connections = entry.whole_number("max_connections", 10, most=_MOST_CONNECTIONS)
        entry.end()
        databases.named[entry.name] = declared_database(entry.name, url, files, max_connections=connections)
    queues: dict[str, Queue] = {}
    for entry in _entries(tables, "queues"):
        queues.update(_queue(entry, databases))
    return RecordEnds(
        collections={entry.name: _collection(entry, databases) for entry in _entries(tables, "collections")},
        sources={entry.name: _source(entry, databases) for entry in _entries(tables, "sources")},
        queues=queues,
    )


class _Entry:
    """One table of settings, of which every key must be known."""

    def __init__(self, table: str, name: str, values: Mapping[str, object]) -> None:
        self.name = name
        self.field = f"{table}.{name}"
        self._values = values
        self._known: list[str] = []

    def get(self, key: str) -> object:
        """Return a value of any kind; ``None`` if it is not there."""
        self._known.append(key)
        return self._values.get(key)

    def text(self, key: str) -> str | None:
        """Return a text that is not empty; ``None`` if it is not there."""
        value = self.get(key)
        if value is not None and not (isinstance(value, str) and value):
            raise self.error(key, f"{_shown(value)} is not text")
        return value

    def needed_text(self, key: str) -> str:
        """Return a text that must be there."""
        value = self.text(key)
        if value is None:
            raise self.error(key, "missing")
        return value

    def whole_number(self, key: str, default: int, *, least: int = 1, most: int) -> int:
        """Return a number within bounds."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise self.error(key, f"{_shown(value)} is no number within {least} and {most}")
        return value

    def seconds(self, key: str, default: float, *, most: float) -> float:
        """Return a time."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0.01 <= value <= most:
            raise self.error(key, f"{_shown(value)} is no number of seconds within 0.01 and {most:g}")
        return float(value)

    def mapping(self, key: str) -> Mapping[str, object]:
        """Return a table; empty if it is not there."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(key, f"{_shown(value)} is not a table")
        return value

    def content(self, key: str, path: str) -> bytes:
        """Return what is in the file that ``key`` names. Blocks."""
        try:
            with open(path, "rb") as file:
                content = file.read(_LARGEST_FILE + 1)
        except OSError as error:
            raise self.error(key, f"{path!a}: {error.strerror}") from None
        if len(content) > _LARGEST_FILE:
            raise self.error(key, f"{path!a} has more than {_LARGEST_FILE} bytes")
        return content

    def end(self) -> None:
        """Refuse every key that nobody has asked for."""
        unknown = sorted(self._values.keys() - set(self._known))
        if unknown:
            raise self.error(unknown[0], f"unknown; known are {', '.join(dict.fromkeys(self._known))}")

    def error(self, key: str, problem: str) -> ConfigurationError:
        """Return the error that says what is wrong with a key."""
        return ConfigurationError(field=f"{self.field}.{key}", problem=problem)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Let errors that name a key name this table, too."""
        try:
            yield
        except ConfigurationError as error:
            if error.field.startswith((f"{self.field}.", "databases")):
                raise
            raise self.error(error.field, error.problem) from None


class _Databases:
    """The databases that are declared, and the embedded one."""

    def __init__(self, embedded: DeclaredDatabase) -> None:
        self.named: dict[str, DeclaredDatabase] = {}
        self._embedded = embedded

    def of(self, entry: _Entry) -> DeclaredDatabase:
        """Return the database that an end names."""
        name = entry.text("database")
        if name is None:
            return self._embedded
        if name not in self.named:
            known = f"declared are {', '.join(sorted(self.named))}" if self.named else "none is declared"
            raise entry.error("database", f"no database {name!a}; {known}")
        return self.named[name]


def _entries(tables: Mapping[str, object], table: str) -> Iterator[_Entry]:
    named = tables.get(table)
    if named is None:
        return
    if not isinstance(named, Mapping):
        raise ConfigurationError(field=table, problem="not a table of tables")
    for name, values in named.items():
        field = f"{table}.{name}"
        try:
            check_end_name(name)
        except InvalidArgument as error:
            raise ConfigurationError(field=field, problem=error.problem) from None
        if not isinstance(values, Mapping):
            raise ConfigurationError(field=field, problem="not a table")
        yield _Entry(table, name, values)


def _collection(entry: _Entry, databases: _Databases) -> Collection:
    database = databases.of(entry)
    table, columns = entry.text("table"), _columns(entry)
    if columns is not None and table is None:
        raise entry.error("columns", "only with a table of one's own")
    validator, content_type = _validation(entry)
    entry.end()
    with entry.errors():
        sink = database.sink(entry.name, Target(table=table, columns=columns, content_type=content_type))
    return Collection(sink=sink, validator=validator, content_type=content_type)


def _columns(entry: _Entry) -> Columns | None:
    value = entry.get("columns")
    if value is None:
        return None
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) and item for item in value):
        return list(value)
    if isinstance(value, Mapping) and value and all(isinstance(item, str) and item for item in value.values()):
        return dict(value)
    raise entry.error("columns", "neither a list of fields nor a table of columns by field")


def _queue(entry: _Entry, databases: _Databases) -> dict[str, Queue]:
    if entry.name.endswith(DEAD_SUFFIX):
        problem = f"a name that ends with {DEAD_SUFFIX} is that of a queue of dead letters, which is not declared"
        raise ConfigurationError(field=entry.field, problem=problem)
    database = databases.of(entry)
    lease = entry.seconds("lease", DEFAULT_LEASE, most=_LONGEST_LEASE)
    attempts = entry.whole_number("max_attempts", 0, least=0, most=1_000_000)
    validator, content_type = _validation(entry)
    entry.end()
    with entry.errors():
        queue, dead = database.queue(entry.name, lease=lease, max_attempts=attempts)
    return {
        entry.name: Queue(queue=queue, validator=validator, content_type=content_type),
        f"{entry.name}{DEAD_SUFFIX}": Queue(queue=dead, content_type=content_type),
    }


def _validation(entry: _Entry) -> tuple[Validator | None, str]:
    """Return what checks the records of an end, if it is more than their content type, and that."""
    content_type, message = entry.text("content_type"), entry.text("message")
    schema, descriptors = entry.get("schema"), entry.text("descriptors")
    if message is None:
        if descriptors is not None:
            raise entry.error("message", "missing: which message of the descriptors the records are")
        if schema is None:
            return None, content_type or JSON
        if content_type is not None and not is_json(content_type):
            raise entry.error("schema", f"records of type {content_type!a} have no JSON Schema")
        if not isinstance(schema, Mapping):
            file = entry.needed_text("schema")
            return FileValidator(lambda: _schema_validator(entry, _read_schema(entry, file))), content_type or JSON
        return _schema_validator(entry, schema), content_type or JSON
    if schema is not None:
        raise entry.error("schema", "not together with a message")
    if descriptors is None:
        raise entry.error("descriptors", "missing: a file with the set of file descriptors that has the message")
    return FileValidator(lambda: _message_validator(entry, descriptors, message)), content_type or PROTOBUF


def _schema_validator(entry: _Entry, schema: Mapping[str, object]) -> Validator:
    with entry.errors():
        return JsonSchemaValidator(schema)


def _message_validator(entry: _Entry, descriptors: str, message: str) -> Validator:
    with entry.errors():
        return ProtobufValidator(entry.content("descriptors", descriptors), message)


def _read_schema(entry: _Entry, path: str) -> Mapping[str, object]:
    content = entry.content("schema", path)
    try:
        schema = json.loads(content)
    except ValueError as error:
        raise entry.error("schema", f"{path!a} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise entry.error("schema", f"{path!a} is not a JSON object")
    return schema


def _source(entry: _Entry, databases: _Databases) -> Source:
    content_type, function = entry.text("content_type"), entry.text("function")
    source: RecordSource
    if function is not None:
        for key in ("sql", "database", "parameters"):
            if entry.get(key) is not None:
                raise entry.error(key, "not together with a function")
        entry.end()
        with entry.errors():
            source = FunctionSource(find_named(function, field="function"))  # type: ignore[arg-type]  # it checks
        return Source(source=source, content_type=content_type or JSON)
    sql = entry.text("sql")
    if sql is None:
        raise entry.error("sql", "missing: a source is a statement of SQL or a function")
    database = databases.of(entry)
    parameters, defaults = _parameters(entry)
    entry.end()
    with entry.errors():
        source = database.source(entry.name, Statement(sql=sql, parameters=parameters, defaults=defaults))
    return Source(source=source, content_type=content_type or JSON)


def _parameters(entry: _Entry) -> tuple[dict[str, type], dict[str, Argument]]:
    """Return the types of the parameters, and the values of those that need not be given.

    Each is ``TYPE``, ``TYPE = DEFAULT`` or a table with ``type`` and ``default``.
    """
    types: dict[str, type] = {}
    defaults: dict[str, Argument] = {}
    for name, declared in entry.mapping("parameters").items():
        key = f"parameters.{name}"
        default: object = None
        kind: object = declared
        if isinstance(declared, Mapping):
            kind, default = declared.get("type"), declared.get("default")
            if unknown := sorted(declared.keys() - {"type", "default"}):
                raise entry.error(f"{key}.{unknown[0]}", "unknown; known are type, default")
        elif isinstance(declared, str) and (match := _PARAMETER.match(declared)):
            kind, default = match["type"], match["default"]
        if not name.isidentifier() or not isinstance(kind, str) or kind not in _TYPES:
            raise entry.error(key, f"{_shown(declared)} is none of {', '.join(_TYPES)}")
        types[name] = _TYPES[kind]
        if default is not None:
            if not isinstance(default, str | int | float):
                raise entry.error(key, f"{_shown(default)} is no value")
            try:
                defaults[name] = read_value(name, default, types[name])
            except InvalidArgument as error:
                raise entry.error(key, error.problem) from None
    return types, defaults


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
