"""What sinks on PostgreSQL do when the database or the connection to it dies; each has a server of its own."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from impl_server_sink_places import PostgresPlace
from postgres_server import PostgresServer

from tailrace_common_api import BulkResult, Fenced, StagingLost, StorageFailure
from tailrace_impl_server import _postgres_sink
from tailrace_impl_server._postgres import PostgresDatabase
from tailrace_impl_server._postgres_sink import PostgresSink
from tailrace_server_api.contracts.sink import begin, commit, contact, deliver, stage, staged_batch, until


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


class Crashing:
    """A sink on a server that can be crashed."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.url = server.create_database()
        self.database = PostgresDatabase("shop", self.url)
        self.sink = PostgresSink("contacts", self.database, table="contacts")

    async def crash(self) -> None:
        await asyncio.to_thread(self.server.crash)

    async def start(self) -> None:
        """Start the server again and wait until the sink is connected."""
        await asyncio.to_thread(self.server.start)
        await until(self.alive, 1)

    async def fetch(self, query: str) -> list[Any]:
        connection = await asyncpg.connect(self.url)
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    async def alive(self) -> int:
        return len(await self.fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"))

    async def visible(self) -> int:
        return len(await self.fetch("SELECT 1 FROM contacts"))


@pytest.fixture
async def crashing(server: PostgresServer) -> AsyncGenerator[Crashing, None]:
    crashing = Crashing(server)
    async with PostgresPlace(crashing.url):
        pass
    await crashing.sink.start()
    yield crashing
    await crashing.sink.close()


@pytest.mark.parametrize("written", [True, False])
async def test_records_that_a_crash_of_the_database_takes_are_noticed(crashing: Crashing, written: bool) -> None:
    sink = crashing.sink
    await begin(sink, "bulk")
    rows = [contact(number) for number in range(2000)]
    await sink.stage("bulk", staged_batch(0, rows[:1000]))
    if written:
        # The count is on disk then, and survives; the records do not.
        await crashing.fetch("SELECT pg_switch_wal()")
        await deliver(sink, "other", [contact(5000)])
    await crashing.crash()
    await crashing.start()
    visible = await crashing.visible()
    assert visible == written
    if written:
        assert (await crashing.fetch("SELECT count(*) FROM tailrace_bulks WHERE staged = 1000"))[0][0] == 1
        await sink.stage("bulk", staged_batch(1000, rows[1000:]))
        with pytest.raises(StagingLost) as raised:
            await commit(sink, "bulk", 2000)
        assert (raised.value.staged, raised.value.found) == (2000, 1000)
    else:
        # The count may have been on its way to the disk: whatever is left of it, nothing is committed.
        with pytest.raises((StagingLost, Fenced)):
            await _finish(sink, rows)
    await sink.rollback("bulk")
    assert await crashing.visible() == visible
    await deliver(sink, "again", rows)
    assert await crashing.visible() == visible + 2000


async def _finish(sink: PostgresSink, rows: list[dict[str, object]]) -> None:
    await sink.stage("bulk", staged_batch(1000, rows[1000:]))
    await commit(sink, "bulk", 2000)


async def test_what_was_committed_survives_a_crash_of_the_database(crashing: Crashing) -> None:
    first = await deliver(crashing.sink, "first", [contact(number) for number in range(1500)], key="once")
    await crashing.crash()
    await crashing.start()
    assert await crashing.visible() == 1500
    found = await begin(crashing.sink, "second", key="once")
    assert found is not None
    assert (found.id, found.records, found.digest) == (first.id, 1500, first.digest)


async def test_a_crash_of_the_database_in_the_final_transaction_leaves_nothing(crashing: Crashing) -> None:
    sink = crashing.sink
    await begin(sink, "bulk", key="once")
    await stage(sink, "bulk", [contact(number) for number in range(1500)])
    async with PostgresPlace(crashing.url, tables=()) as place:
        await place.raw.execute("BEGIN; LOCK TABLE contacts IN SHARE ROW EXCLUSIVE MODE")
        committing = asyncio.create_task(commit(sink, "bulk", 1500))
        await place.until_waiting()
        await crashing.crash()
        with pytest.raises(StorageFailure):
            await committing
        place.raw.terminate()
    with pytest.raises(StorageFailure):
        await sink.rollback("bulk")
    await crashing.start()
    await sink.rollback("bulk")
    assert await crashing.visible() == 0
    assert await begin(sink, "second", key="once") is None


# A connection that is lost in the commit.


class CommitProxy:
    """Passes connections on to a server, and does something when a commit comes by."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.on_commit: Callable[[asyncio.StreamWriter, bytes], Any] | None = None
        self.port = 0
        self.muted = False
        """Whether the answers of the server go nowhere."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["CommitProxy", None]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.refuse()
            # What is accepted, or connects on, while this waits adds tasks, and writers to cut.
            while self._tasks:
                self.cut()
                await asyncio.wait(self._tasks)
            self.cut()
            await self._server.wait_closed()

    def refuse(self) -> None:
        """Take no more connections."""
        self._server.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._spawn(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(their_writer)
        self._spawn(self._pass(reader, their_writer, commits=True))
        self._spawn(self._pass(their_reader, writer, commits=False))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, commits: bool) -> None:
        try:
            while data := await source.read(1 << 16):
                if commits and self.on_commit is not None and b"COMMIT;\0" in data:
                    await self.on_commit(target, data)
                    return
                if commits or not self.muted:
                    target.write(data)
                    await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()


@pytest.fixture
async def proxied(postgres_url: str) -> AsyncGenerator[tuple[CommitProxy, PostgresSink, PostgresPlace], None]:
    port = int(postgres_url.rpartition(":")[2].partition("/")[0])
    async with CommitProxy(port).running() as proxy, PostgresPlace(postgres_url) as place:
        url = postgres_url.replace(f":{port}/", f":{proxy.port}/")
        sink = PostgresSink("contacts", PostgresDatabase("shop", url), table="contacts")
        await sink.start()
        await begin(sink, "bulk", key="once")
        await stage(sink, "bulk", [contact(number) for number in range(1500)])
        yield proxy, sink, place
        await sink.close()


async def test_a_commit_whose_answer_was_lost_is_found(
    proxied: tuple[CommitProxy, PostgresSink, PostgresPlace],
) -> None:
    proxy, sink, place = proxied

    async def deliver_and_cut(target: asyncio.StreamWriter, data: bytes) -> None:
        proxy.muted = True
        target.write(data)
        await target.drain()
        await until(_count(place), 1500)
        proxy.on_commit = None
        proxy.cut()
        proxy.muted = False

    proxy.on_commit = deliver_and_cut
    result = await commit(sink, "bulk", 1500)
    assert (result.id, result.records, result.repeated) == ("bulk", 1500, False)
    await until(place.staged, 0)
    again = await begin(sink, "second", key="once")
    assert isinstance(again, BulkResult)
    assert again.committed_at == result.committed_at


async def test_a_commit_that_never_arrived_is_told_as_such(
    proxied: tuple[CommitProxy, PostgresSink, PostgresPlace],
) -> None:
    proxy, sink, place = proxied

    async def cut(target: asyncio.StreamWriter, data: bytes) -> None:
        proxy.on_commit = None
        proxy.cut()

    proxy.on_commit = cut
    with pytest.raises(StorageFailure, match="nothing was committed"):
        await commit(sink, "bulk", 1500)
    await sink.rollback("bulk")
    assert await place.rows() == []
    assert await place.staged() == 0
    assert await begin(sink, "second", key="once") is None


async def test_an_outcome_that_cannot_be_found_out_is_told_as_such(
    proxied: tuple[CommitProxy, PostgresSink, PostgresPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, sink, place = proxied
    monkeypatch.setattr(_postgres_sink, "_OUTCOME_SECONDS", 0.5)

    async def deliver_and_go(target: asyncio.StreamWriter, data: bytes) -> None:
        proxy.muted = True
        target.write(data)
        await target.drain()
        await until(_count(place), 1500)
        proxy.on_commit = None
        proxy.refuse()
        proxy.cut()

    proxy.on_commit = deliver_and_go
    with pytest.raises(StorageFailure, match="not known whether it succeeded"):
        await commit(sink, "bulk", 1500)
    # The key tells, once there is a connection.
    async with _other(place) as other:
        found = await begin(other, "second", key="once")
        assert found is not None
        assert found.id == "bulk"


@asynccontextmanager
async def _other(place: PostgresPlace) -> AsyncGenerator[PostgresSink, None]:
    sink = PostgresSink("contacts", place.new_database(), table="contacts")
    await sink.start()
    yield sink
    await sink.close()


def _count(place: PostgresPlace) -> Callable[[], Any]:
    async def count() -> int:
        return len(await place.rows())

    return count
