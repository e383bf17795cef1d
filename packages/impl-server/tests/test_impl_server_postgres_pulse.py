"""Databases of PostgreSQL that hang, connections that are lost silently, and limits that the database sets."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from urllib.parse import urlsplit

import pytest
from impl_server_sink_places import PostgresPlace
from tcp_proxy import TcpProxy

from tailrace_common_api import BulkResult, Overloaded, StorageFailure
from tailrace_impl_server import _postgres, _postgres_bulks, _postgres_hints, _postgres_pulse
from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_sink import PostgresSink
from tailrace_impl_server._postgres_source import PostgresSource
from tailrace_server_api.contracts.sink import begin, commit, contact, deliver, stage


@pytest.fixture
async def place(postgres_url: str) -> AsyncGenerator[PostgresPlace, None]:
    async with PostgresPlace(postgres_url) as place:
        yield place


@pytest.fixture
async def proxy(place: PostgresPlace) -> AsyncGenerator[TcpProxy, None]:
    async with TcpProxy(place.url) as proxy:
        yield proxy
        proxy.release()


@pytest.fixture
def database(place: PostgresPlace, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch) -> PostgresDatabase:
    """A database behind the proxy that is asked again and again."""
    monkeypatch.setattr(_postgres_pulse, "_INTERVAL", 0.05)
    # Longer than a busy machine makes an answer wait; what hangs on purpose has less.
    monkeypatch.setattr(_postgres, "_ANSWER_SECONDS", 5.0)
    monkeypatch.setattr(_postgres, "_CONNECT_SECONDS", 2.0)
    url = urlsplit(place.url)
    near = urlsplit(proxy.url)
    user = url.netloc.rpartition("@")[0]
    return PostgresDatabase("shop", url._replace(netloc=f"{user}@{near.hostname}:{near.port}").geturl())


@pytest.fixture
def stalled(proxy: TcpProxy) -> Callable[[], AbstractContextManager[None]]:
    """Let the database hang, and be given up after parts of a second."""

    @contextmanager
    def stall() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as impatient:
            impatient.setattr(_postgres, "_ANSWER_SECONDS", 0.3)
            proxy.stall()
            yield
        proxy.release()

    return stall


async def test_a_database_that_hangs_is_a_failure_and_is_used_again(
    database: PostgresDatabase, stalled: Callable[[], AbstractContextManager[None]], place: PostgresPlace
) -> None:
    sink = PostgresSink("contacts", database, table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    await begin(sink, "other")
    with stalled():
        hanging = asyncio.create_task(commit(sink, "bulk", 1))
        for waiting in (stage(sink, "other", [contact(2)]), begin(sink, "third")):
            with pytest.raises(StorageFailure, match="the database shop does not answer"):
                await waiting
        with pytest.raises(StorageFailure, match="shop"):
            await hanging
    for bulk in ("bulk", "other"):
        await sink.rollback(bulk)
    assert (await deliver(sink, "again", [contact(3)])).records == 1
    assert len(await place.rows()) == 1
    await sink.close()


async def test_a_query_whose_database_hangs_fails(
    database: PostgresDatabase, stalled: Callable[[], AbstractContextManager[None]]
) -> None:
    source = PostgresSource("numbers", database, "SELECT generate_series(1, 1000000) AS n")
    await source.start()
    async with aclosing(source.query({})) as batches:
        await anext(batches)

        async def rest() -> None:
            async for _ in batches:
                pass

        with stalled(), pytest.raises(StorageFailure, match="the database shop does not answer"):
            await rest()
    async with aclosing(source.query({})) as batches:
        assert len((await anext(batches)).data) == 1
    await source.close()


async def test_what_takes_long_is_not_cut_while_the_database_answers(
    database: PostgresDatabase, place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Semaphore(0)
    real = database._pulse._answers

    async def counted() -> bool:
        answer = await real()
        asked.release()
        return answer

    monkeypatch.setattr(database._pulse, "_answers", counted)
    sink = PostgresSink("contacts", database, table="contacts")
    await sink.start()
    await begin(sink, "bulk")
    await stage(sink, "bulk", [contact(1)])
    committing: asyncio.Task[BulkResult]
    async with place.held():
        committing = asyncio.create_task(commit(sink, "bulk", 1))
        for _ in range(5):
            await asked.acquire()
        assert not committing.done()
    assert (await committing).records == 1
    await sink.close()


async def test_lasting_connections_that_are_lost_silently_are_made_again(
    database: PostgresDatabase,
    stalled: Callable[[], AbstractContextManager[None]],
    place: PostgresPlace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_postgres_bulks, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(_postgres_hints, "_LOOK_SECONDS", 0.05)
    sink = PostgresSink("contacts", database, table="contacts")
    await sink.start()
    await database.hints.start()
    await database.hints.listening.wait()
    first = database.presence._connection
    async with asyncio.timeout(20):
        with stalled():
            while not first.is_closed() or database.hints.listening.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await database.hints.listening.wait()
        while database.presence._connection is first:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND granted"
    assert await place.raw.fetchval(held, database.presence.owner) == 1
    await database.hints.close()
    await sink.close()


async def test_what_waits_for_a_connection_does_not_wait_for_ever(
    place: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = PostgresDatabase("shop", place.url, max_connections=1, max_queries=1)
    await database.start()
    # Who has a connection may have had to wait for it to be made.
    async with database.connection(), database.reading():
        with monkeypatch.context() as impatient:
            impatient.setattr(_postgres, "_FREE_SECONDS", 0.05)
            impatient.setattr(_postgres, "_QUERY_SECONDS", 0.05)
            with pytest.raises(StorageFailure, match="all 1 connections to the database shop are in use"):
                async with database.connection():
                    pass
            with pytest.raises(Overloaded, match="queries of the database shop"):
                async with database.reading():
                    pass
    async with database.connection() as connection, database.reading() as reader:
        assert await connection.fetchval("SELECT 1") == await reader.fetchval("SELECT 1") == 1
    await database.close()


async def test_limits_of_the_database_are_for_queries_only(place: PostgresPlace) -> None:
    settings = ("statement_timeout", "idle_in_transaction_session_timeout")
    for setting in settings:
        await place.raw.execute(f"ALTER ROLE CURRENT_USER SET {setting} = '150s'")
    try:
        database = place.new_database()
        await database.start()
        async with database.connection() as writer, database.reading() as reader:
            assert [await writer.fetchval(f"SHOW {setting}") for setting in settings] == ["0", "0"]
            assert [await reader.fetchval(f"SHOW {setting}") for setting in settings] == ["150s", "0"]
        await database.close()
    finally:
        for setting in settings:
            await place.raw.execute(f"ALTER ROLE CURRENT_USER RESET {setting}")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such option")
async def test_the_system_looks_after_quiet_connections(place: PostgresPlace) -> None:
    database = PostgresDatabase("shop", place.url)
    connection = await database.connect()
    transport = connection._transport  # type: ignore[attr-defined]  # nothing else tells the options of its socket
    connected = transport.get_extra_info("socket")
    assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    await connection.close()
