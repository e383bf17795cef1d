"""Databases as settings declare them, and the ends of record streams that are in each."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tailrace_common_api import Argument, ConfigurationError
from tailrace_impl_server._settings import ServerSettings
from tailrace_impl_server._sqlite_queue import SqliteQueue
from tailrace_impl_server._sqlite_sink import SqliteSink
from tailrace_impl_server._sqlite_source import SqliteSource
from tailrace_impl_server._sqlite_thread import SqliteThread
from tailrace_server_api import Durability, RecordQueue, RecordSink, RecordSource

if TYPE_CHECKING:
    from tailrace_impl_server._postgres import PostgresDatabase

EMBEDDED_FOLDER = "records"
"""Folder of embedded databases in that of the server."""
EMBEDDED_QUEUES = "queue.sqlite"
"""File of all embedded queues."""
_STAGING = ".staging"
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]]*)(?::[0-9]{1,5})?\Z")

Columns = Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A query as it is declared."""

    sql: str
    parameters: Mapping[str, type]
    defaults: Mapping[str, Argument]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where records of a collection go, as it is declared."""

    table: str | None
    columns: Columns | None
    content_type: str


class DeclaredDatabase(ABC):
    """Makes the ends in one database; nothing is opened by it."""

    @abstractmethod
    def sink(self, name: str, target: Target) -> RecordSink:
        """Return the sink of a collection."""

    @abstractmethod
    def queue(self, name: str, *, lease: float, max_attempts: int) -> tuple[RecordQueue, RecordQueue]:
        """Return a queue, and that of its dead letters."""

    @abstractmethod
    def source(self, name: str, statement: Statement) -> RecordSource:
        """Return the source that a statement is."""


class SqliteFiles:
    """The files of SQLite of one server: ends of one file share its threads."""

    def __init__(self, settings: ServerSettings) -> None:
        self._durability = settings.durability
        self._threads: dict[str, SqliteThread] = {}

    def thread(self, path: Path, *, durability: Durability | None = None) -> SqliteThread:
        """Return the threads of a file, which is as durable as the settings say unless something else is said."""
        key = os.path.normpath(path)
        if key not in self._threads:
            self._threads[key] = SqliteThread(path, durability=durability or self._durability)
        return self._threads[key]


class SqliteDatabase(DeclaredDatabase):
    """A file of SQLite."""

    def __init__(self, files: SqliteFiles, path: Path) -> None:
        """Use the file at ``path``; relative ones are relative to the working directory."""
        self._thread = files.thread(path)
        self._files = files

    def sink(self, name: str, target: Target) -> RecordSink:
        return _sqlite_sink(name, self._thread, self._files, target)

    def queue(self, name: str, *, lease: float, max_attempts: int) -> tuple[RecordQueue, RecordQueue]:
        return _sqlite_queue(name, self._thread, self._files, lease=lease, max_attempts=max_attempts)

    def source(self, name: str, statement: Statement) -> RecordSource:
        return SqliteSource(
            name, self._thread, statement.sql, parameters=statement.parameters, defaults=statement.defaults
        )


class EmbeddedDatabase(DeclaredDatabase):
    """The files in the folder of the server: one for each collection, and one for all queues."""

    def __init__(self, files: SqliteFiles, data: Path | None) -> None:
        self._files = files
        self._data = data

    def _thread(self, end: str, file: str) -> SqliteThread:
        if self._data is None:
            problem = "missing: a server that keeps everything in memory has no database of its own"
            raise ConfigurationError(field=f"{end}.database", problem=problem)
        return self._files.thread(self._data / EMBEDDED_FOLDER / file)

    def sink(self, name: str, target: Target) -> RecordSink:
        file = f"{name}.sqlite"
        if file == EMBEDDED_QUEUES or name.endswith(_STAGING):
            problem = "missing: the file of this name in the folder of the server is another one"
            raise ConfigurationError(field=f"collections.{name}.database", problem=problem)
        return _sqlite_sink(name, self._thread(f"collections.{name}", file), self._files, target)

    def queue(self, name: str, *, lease: float, max_attempts: int) -> tuple[RecordQueue, RecordQueue]:
        thread = self._thread(f"queues.{name}", EMBEDDED_QUEUES)
        return _sqlite_queue(name, thread, self._files, lease=lease, max_attempts=max_attempts)

    def source(self, name: str, statement: Statement) -> RecordSource:
        raise ConfigurationError(field=f"sources.{name}.database", problem="missing: the statement needs one")


class PostgresEnds(DeclaredDatabase):
    """A PostgreSQL database. Needs the extra ``postgresql``, which is imported here and nowhere before."""

    def __init__(self, name: str, url: str, *, max_connections: int) -> None:
        """Describe the database of this name.

        Raises:
            ConfigurationError: The driver is not installed.
        """
        from tailrace_impl_server._postgres import PostgresDatabase

        self._database: PostgresDatabase = PostgresDatabase(name, url, max_connections=max_connections)

    def sink(self, name: str, target: Target) -> RecordSink:
        from tailrace_impl_server._postgres_sink import PostgresSink

        return PostgresSink(
            name,
            self._database,
            table=target.table,
            columns=target.columns,
            content_type=target.content_type,
        )

    def queue(self, name: str, *, lease: float, max_attempts: int) -> tuple[RecordQueue, RecordQueue]:
        from tailrace_impl_server._postgres_queue import PostgresQueue

        queue = PostgresQueue(name, self._database, lease=lease, max_attempts=max_attempts)
        return queue, queue.dead

    def source(self, name: str, statement: Statement) -> RecordSource:
        from tailrace_impl_server._postgres_source import PostgresSource

        return PostgresSource(
            name, self._database, statement.sql, parameters=statement.parameters, defaults=statement.defaults
        )


def declared_database(name: str, url: str, files: SqliteFiles, *, max_connections: int) -> DeclaredDatabase:
    """Return the database at ``url``, of which no error says anything that may be secret.

    Raises:
        ConfigurationError: The URL cannot be one; the field is ``databases.NAME.url``.
    """
    field = f"databases.{name}.url"
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "sqlite":
        if not rest or rest == ":memory:":
            raise ConfigurationError(field=field, problem="the path of a file follows sqlite:")
        return SqliteDatabase(files, Path(rest))
    if not colon or scheme not in ("postgresql", "postgres"):
        raise ConfigurationError(field=field, problem="neither sqlite:PATH nor postgresql://…")
    if problem := _url_problem(url):
        raise ConfigurationError(field=field, problem=problem)
    try:
        return PostgresEnds(name, url, max_connections=max_connections)
    except ConfigurationError as error:
        raise ConfigurationError(field=field, problem=error.problem) from None


def _url_problem(url: str) -> str | None:
    """Return what is wrong with the URL of a PostgreSQL database, in words that tell nothing of it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "not a URL"
    hosts = parts.netloc.rpartition("@")[2]
    # A password with one of these would be cut, and its rest be told as the host, the port or the database.
    if not all(_HOST.match(host) for host in hosts.split(",")) or "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return "not postgresql://USER:PASSWORD@HOST:PORT/DATABASE; other characters of the password are written %XX"
    return None


def _sqlite_sink(name: str, thread: SqliteThread, files: SqliteFiles, target: Target) -> RecordSink:
    return SqliteSink(
        name,
        thread,
        _staging(thread, files),
        table=target.table,
        columns=target.columns,
        content_type=target.content_type,
    )


def _sqlite_queue(
    name: str, thread: SqliteThread, files: SqliteFiles, *, lease: float, max_attempts: int
) -> tuple[RecordQueue, RecordQueue]:
    queue = SqliteQueue(name, thread, _staging(thread, files), lease=lease, max_attempts=max_attempts)
    return queue, queue.dead


def _staging(thread: SqliteThread, files: SqliteFiles) -> SqliteThread:
    """Return the file for staging beside another one."""
    name = f"{thread.path.name.removesuffix('.sqlite')}{_STAGING}.sqlite"
    # What a loss of power takes from there is lost anyway: the server that staged it has died.
    return files.thread(thread.path.with_name(name), durability=Durability.OS)
