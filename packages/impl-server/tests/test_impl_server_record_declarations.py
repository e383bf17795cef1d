"""Ends of record streams as settings declare them."""

from __future__ import annotations

import asyncio
import json
import socket
import sqlite3
import sys
import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from impl_server_recording_sink import Sender

from tailrace_common_api import BulkRefused, BulkResult, ConfigurationError, StorageFailure
from tailrace_impl_server import ServerSettings, create_manager
from tailrace_impl_server._manager import Manager
from tailrace_impl_server._record_declarations import declared_ends
from tailrace_impl_server._server import ManagedServer
from tailrace_server_api import RecordEnds

Tables = Mapping[str, Any]
COUNTED = {"function": "impl_server_declared_sources:counted"}


def declared(tables: Tables, data: Path | None = None) -> RecordEnds:
    return declared_ends(tables, data, ServerSettings())


def descriptors() -> bytes:
    """Return a set of file descriptors with the message ``shop.Contact``."""
    found = descriptor_pb2.FileDescriptorSet()
    file = found.file.add(name="shop.proto", package="shop", syntax="proto3")
    contact = file.message_type.add(name="Contact")
    contact.field.add(name="name", number=1, type=9, label=1)
    return found.SerializeToString()


def manager_of(server: ManagedServer) -> Manager:
    assert isinstance(server.manager, Manager)
    return server.manager


async def deliver(manager: Manager, collection: str, *records: bytes, key: str | None = None) -> BulkResult:
    bulk = await manager.records.begin_bulk(collection, key=key)
    if bulk.result is not None:
        return bulk.result
    sender = Sender(bulk)
    try:
        await sender.send(*records)
        return await sender.commit()
    except BaseException:
        await bulk.rollback()
        raise


async def ask(manager: Manager, source: str, **arguments: Any) -> list[Any]:
    results = await manager.records.query(source, arguments)
    return [json.loads(data) async for batch in results.batches for data in batch.data]


@pytest.mark.parametrize(
    ("tables", "field", "words"),
    [
        ({"tables": {}}, "tables", "unknown"),
        ({"sources": 5}, "sources", "table"),
        ({"sources": {"a": 5}}, "sources.a", "table"),
        ({"sources": {"a b": COUNTED}}, "sources.a b", "no name"),
        ({"sources": {"a": {}}}, "sources.a.sql", "missing"),
        ({"sources": {"a": {**COUNTED, "sql": "SELECT 1"}}}, "sources.a.sql", "not together"),
        ({"sources": {"a": {**COUNTED, "more": 1}}}, "sources.a.more", "unknown"),
        ({"sources": {"a": {"function": "nowhere"}}}, "sources.a.function", "MODULE:NAME"),
        ({"sources": {"a": {"function": "impl_server_declared_sources:none"}}}, "sources.a.function", "has no"),
        ({"sources": {"a": {"function": "os:getcwd"}}}, "sources.a.function", "generator function"),
        ({"sources": {"a": {"function": "impl_server_declared_sources:unannotated"}}}, "sources.a.function", "count"),
        ({"sources": {"a": {"sql": "SELECT 1"}}}, "sources.a.database", "missing"),
        ({"sources": {"a": {"sql": "SELECT 1", "database": "x"}}}, "sources.a.database", "no database 'x'"),
        ({"databases": {"x": {}}}, "databases.x.url", "missing"),
        ({"databases": {"x": {"url": 5}}}, "databases.x.url", "not text"),
        ({"databases": {"x": {"url": "mysql://h/d"}}}, "databases.x.url", "postgresql"),
        ({"databases": {"x": {"url": "sqlite:"}}}, "databases.x.url", "path"),
        ({"databases": {"x": {"url": "sqlite::memory:"}}}, "databases.x.url", "path"),
        ({"databases": {"x": {"url": "sqlite:f", "more": 1}}}, "databases.x.more", "unknown"),
        ({"databases": {"x": {"url": "sqlite:f", "max_connections": 0}}}, "databases.x.max_connections", "within"),
        ({"collections": {"a": {}}}, "collections.a.database", "in memory"),
        ({"queues": {"a": {}}}, "queues.a.database", "in memory"),
        ({"queues": {"a.dead": {}}}, "queues.a.dead", "dead letters"),
        ({"collections": {"a": {"columns": ["x"]}}}, "collections.a.columns", "table of one's own"),
        ({"collections": {"a": {"table": "t", "columns": []}}}, "collections.a.columns", "list"),
        ({"collections": {"a": {"table": "t", "columns": {"x": 5}}}}, "collections.a.columns", "list"),
        ({"collections": {"a": {"table": 5}}}, "collections.a.table", "not text"),
        ({"collections": {"a": {"schema": {"type": "odd"}}}}, "collections.a.schema", "not a JSON Schema"),
        ({"collections": {"a": {"schema": 5}}}, "collections.a.schema", "not text"),
        ({"collections": {"a": {"schema": {}, "content_type": "text/plain"}}}, "collections.a.schema", "text/plain"),
        ({"collections": {"a": {"schema": {}, "message": "p.M"}}}, "collections.a.schema", "not together"),
        ({"collections": {"a": {"message": "p.M"}}}, "collections.a.descriptors", "missing"),
        ({"collections": {"a": {"descriptors": __file__}}}, "collections.a.message", "missing"),
        ({"queues": {"a": {"lease": 0}}}, "queues.a.lease", "seconds"),
        ({"queues": {"a": {"lease": True}}}, "queues.a.lease", "seconds"),
        ({"queues": {"a": {"lease": float("nan")}}}, "queues.a.lease", "seconds"),
        ({"queues": {"a": {"max_attempts": -1}}}, "queues.a.max_attempts", "within"),
        ({"queues": {"a": {"more": 1}}}, "queues.a.more", "unknown"),
    ],
)
def test_what_cannot_work_is_told_by_its_name(tables: Tables, field: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declared(tables)
    assert caught.value.field == field
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("declaration", "key", "words"),
    [
        ({"schema": "/nowhere.json"}, "schema", "No such file"),
        ({"schema": __file__}, "schema", "not JSON"),
        ({"schema": "list.json"}, "schema", "not a JSON object"),
        ({"schema": "odd.json"}, "schema", "not a JSON Schema"),
        ({"descriptors": "/nowhere", "message": "shop.Contact"}, "descriptors", "No such file"),
        ({"descriptors": __file__, "message": "shop.Contact"}, "descriptors", "not a set"),
        ({"descriptors": "shop.binpb", "message": "shop.Nothing"}, "message", "no message"),
    ],
)
async def test_files_that_cannot_be_used_are_told_at_the_start(
    declaration: Tables, key: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    Path("odd.json").write_text('{"type": "odd"}')
    Path("shop.binpb").write_bytes(descriptors())
    server = create_manager(tmp_path / "data", {}, records={"collections": {"a": declaration}})
    with pytest.raises(ConfigurationError) as caught:
        await server.start()
    assert caught.value.field == f"collections.a.{key}"
    assert words in caught.value.problem


@pytest.mark.parametrize(
    ("parameter", "field", "words"),
    [
        ("odd", "parameters.n", "none of"),
        (5, "parameters.n", "none of"),
        ({}, "parameters.n", "none of"),
        ({"type": "integer", "least": 1}, "parameters.n.least", "unknown"),
        ("integer = many", "parameters.n", "whole number"),
        ({"type": "integer", "default": 1.5}, "parameters.n", "whole number"),
        ({"type": "integer", "default": []}, "parameters.n", "no value"),
        ({"type": "boolean", "default": 1}, "parameters.n", "true or false"),
    ],
)
def test_parameters_that_cannot_be_are_told(parameter: object, field: str, words: str) -> None:
    tables = {
        "databases": {"x": {"url": "sqlite:unused"}},
        "sources": {"a": {"database": "x", "sql": "SELECT :n AS n", "parameters": {"n": parameter}}},
    }
    with pytest.raises(ConfigurationError) as caught:
        declared(tables)
    assert caught.value.field == f"sources.a.{field}"
    assert words in caught.value.problem


def test_parameters_have_types_and_defaults(tmp_path: Path) -> None:
    sql = "SELECT :a AS a, :b AS b, :c AS c, :d AS d, :e AS e"
    parameters = {
        "a": "integer",
        "b": "text = some = text",
        "c": {"type": "number", "default": 5},
        "d": "boolean=true",
        "e": {"type": "text"},
    }
    ends = declared(
        {
            "databases": {"x": {"url": f"sqlite:{tmp_path / 'x.sqlite'}"}},
            "sources": {"s": {"database": "x", "sql": sql, "parameters": parameters}},
        }
    )
    source = ends.sources["s"].source
    assert source.parameters == {"a": int, "b": str, "c": float, "d": bool, "e": str}
    assert source.required == {"a", "e"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:sec/ret@host/database",
        "postgresql://user:sec@ret@ho st/database",
        "postgresql://user:sec?ret@host/database",
        "postgresql://user:sec#ret@host/database",
        "postgresql://user:pass@[secret/database",
        "postgresql://user:pass@host:secret/database",
        "mysql://user:secret@host/database",
        "secret",
        "postgres:secret@x",
    ],
)
def test_no_error_shows_what_may_be_a_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declared({"databases": {"x": {"url": url}}})
    assert caught.value.field == "databases.x.url"
    text = str(caught.value)
    assert "sec" not in text
    assert "ret" not in text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:se%2Fcret@host:5432/database?sslmode=require",
        "postgres:///database?host=/run/postgresql",
        "postgresql://first:5432,second:5433/database",
        "postgresql://[::1]:5432/database",
    ],
)
def test_urls_of_postgresql_are_taken(url: str) -> None:
    assert declared({"databases": {"x": {"url": url}}}) == RecordEnds()


def test_content_types_follow_from_what_records_are(tmp_path: Path) -> None:
    described = tmp_path / "shop.binpb"
    described.write_bytes(descriptors())
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object"}))
    ends = declared(
        {
            "collections": {
                "plain": {},
                "texts": {"content_type": "text/plain"},
                "messages": {"message": "shop.Contact", "descriptors": str(described)},
                "checked": {"schema": str(schema)},
            },
            "queues": {"tasks": {"content_type": "text/plain"}},
        },
        tmp_path,
    )
    types = {name: collection.content_type for name, collection in ends.collections.items()}
    assert types == {
        "plain": "application/json",
        "texts": "text/plain",
        "messages": "application/protobuf",
        "checked": "application/json",
    }
    assert {name: queue.content_type for name, queue in ends.queues.items()} == {
        "tasks": "text/plain",
        "tasks.dead": "text/plain",
    }


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tailrace_impl_server._postgres", raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigurationError) as caught:
        declared({"databases": {"x": {"url": "postgresql://host/database"}}})
    assert caught.value.field == "databases.x.url"
    assert "tailrace-impl-server[postgresql]" in caught.value.problem


async def test_protocol_buffers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described = tmp_path / "shop.binpb"
    described.write_bytes(descriptors())
    tables = {"collections": {"a": {"message": "shop.Contact", "descriptors": str(described)}}}
    server = create_manager(tmp_path / "data", {}, records=tables)
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(ConfigurationError) as caught:
        await server.start()
    assert caught.value.field == "collections.a.message"
    assert "tailrace-impl-server[protobuf]" in caught.value.problem


@pytest.mark.parametrize("name", ["queue", "other.staging"])
def test_embedded_files_do_not_take_the_names_of_others(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declared({"collections": {name: {}}}, tmp_path)
    assert caught.value.field == f"collections.{name}.database"


def test_declaring_touches_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    create_manager(
        data,
        {},
        records={
            "databases": {"x": {"url": f"sqlite:{tmp_path / 'x.sqlite'}"}, "y": {"url": "postgresql://nowhere/x"}},
            "collections": {"a": {}, "b": {"database": "x"}, "c": {"database": "y"}},
            "queues": {"d": {}, "e": {"database": "x"}, "f": {"database": "y"}},
        },
    )
    assert list(tmp_path.iterdir()) == []


async def test_everything_is_embedded_where_nothing_else_is_said(tmp_path: Path) -> None:
    tables = {"collections": {"notes": {}, "others": {"schema": {"required": ["n"]}}}, "queues": {"tasks": {}}}
    data = tmp_path / "data"
    async with create_manager(data, {"group_seconds": 0}, records=tables) as server:
        manager = manager_of(server)
        first = await deliver(manager, "notes", b'{"n":1}', b'{"n":2}', key="once")
        assert (first.records, first.collection, first.repeated) == (2, "notes", False)
        assert (await deliver(manager, "notes", key="once")).repeated
        with pytest.raises(BulkRefused):
            await deliver(manager, "others", b"{}")
    files = {path.name for path in (data / "records").iterdir()}
    assert {"notes.sqlite", "others.sqlite", "queue.sqlite"} <= files

    def rows() -> list[Any]:
        with closing(sqlite3.connect(data / "records" / "notes.sqlite")) as connection:
            return connection.execute("SELECT record FROM notes ORDER BY position").fetchall()

    stored = await asyncio.to_thread(rows)
    assert [json.loads(record) for (record,) in stored] == [{"n": 1}, {"n": 2}]


async def test_ends_of_one_file_work_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shop.sqlite"

    def prepare() -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE contacts (name TEXT NOT NULL, mail TEXT UNIQUE)")

    await asyncio.to_thread(prepare)
    # Relative to the working directory, as other files in settings are.
    monkeypatch.chdir(tmp_path)
    tables = {
        "databases": {"shop": {"url": "sqlite:shop.sqlite"}},
        "collections": {
            "contacts": {"database": "shop", "table": "contacts", "columns": {"name": "name", "email": "mail"}}
        },
        "sources": {
            "by_name": {
                "database": "shop",
                "sql": "SELECT name, mail FROM contacts WHERE name = :name LIMIT :max_results",
                "parameters": {"name": "text = Ann"},
            },
            "counted": COUNTED,
        },
        "queues": {"tasks": {"database": "shop"}},
    }
    async with create_manager(None, {"group_seconds": 0}, records=tables) as server:
        manager = manager_of(server)
        await deliver(manager, "contacts", b'{"name":"Ann","email":"a"}', b'{"name":"Bob","email":"b"}')
        with pytest.raises(BulkRefused):
            await deliver(manager, "contacts", b'{"name":"Cid","email":"c"}', b'{"name":"Ann","email":"a"}')
        assert await ask(manager, "by_name") == [{"name": "Ann", "mail": "a"}]
        assert await ask(manager, "by_name", name="Bob") == [{"name": "Bob", "mail": "b"}]
        assert await ask(manager, "by_name", name="Cid") == []
        assert await ask(manager, "counted", count="2", text="x") == [
            {"number": 0, "text": "x"},
            {"number": 1, "text": "x"},
        ]


async def test_ends_of_postgresql_work(postgres_url: str, tmp_path: Path) -> None:
    tables = {
        "databases": {"shop": {"url": postgres_url, "max_connections": 3}},
        "collections": {"notes": {"database": "shop"}},
        "sources": {
            "notes": {"database": "shop", "sql": "SELECT position, record FROM notes ORDER BY position"},
            "numbers": {
                "database": "shop",
                "sql": "SELECT n FROM generate_series(1, :count) AS n",
                "parameters": {"count": "integer = 3"},
            },
        },
        "queues": {"tasks": {"database": "shop"}},
    }
    async with create_manager(tmp_path, {"group_seconds": 0}, records=tables) as server:
        manager = manager_of(server)
        await deliver(manager, "notes", b'{"n":1}', b'{"n":2}')
        assert [row["record"] for row in await ask(manager, "notes")] == [{"n": 1}, {"n": 2}]
        assert await ask(manager, "numbers", max_results=2) == [{"n": 1}, {"n": 2}]


async def test_a_database_that_cannot_be_reached_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with socket.socket() as held:
        # Bound and not listening: connections are refused, and nobody else gets the port.
        held.bind(("127.0.0.1", 0))
        url = f"postgresql://somebody:topsecret@127.0.0.1:{held.getsockname()[1]}/shop"
        tables = {
            "databases": {"shop": {"url": url}},
            "collections": {"embedded": {}, "notes": {"database": "shop"}},
        }
        server = create_manager(tmp_path, {}, records=tables)
        with pytest.raises((StorageFailure, ConfigurationError)) as caught:
            await server.start()
    assert "shop" in str(caught.value)
    assert "topsecret" not in str(caught.value)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("tailrace")] == []
    # The folder is free again.
    async with create_manager(tmp_path, {}):
        pass


async def test_verifying_touches_no_end(tmp_path: Path) -> None:
    async with create_manager(tmp_path, {}):
        pass
    tables = {
        "databases": {"shop": {"url": "postgresql://127.0.0.1:1/shop"}},
        "collections": {"embedded": {}, "notes": {"database": "shop"}},
    }
    server = create_manager(tmp_path, {}, records=tables)
    assert [found async for found in server.verify()] == []
    assert not (tmp_path / "records").exists()
