"""Records over real connections: bulks into a real table, and results, with clients that do what they should not."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from impl_websocket_ends import source
from impl_websocket_server import Raw, Running, raw, running_server

from tailrace_client_download_api import Delivery, RecordConsumer
from tailrace_common_api import Argument, BulkRefused, ClientSettings, ProtocolError, RecordBatch, error_from_wire
from tailrace_impl_common import RecordDigest
from tailrace_impl_common.record_messages import Query, QueryStarted
from tailrace_impl_server import create_manager
from tailrace_impl_websocket import WebSocketConnection, WebSocketServer, connect
from tailrace_impl_websocket._record_frame import frame_records
from tailrace_server_api import TransportServerSettings


class Shop:
    """A server with a collection that is a table in SQLite."""

    def __init__(self, folder: Path, server: Running) -> None:
        self.server = server
        self._folder = folder

    def visible(self) -> list[str]:
        """Return what everyone sees in the table."""
        with closing(sqlite3.connect(self._folder / "shop.sqlite")) as connection:
            return [row[0] for row in connection.execute("SELECT name FROM contacts ORDER BY rowid")]


@pytest.fixture
async def shop(tmp_path: Path, no_task_is_left: None) -> AsyncIterator[Shop]:
    async with running_shop(tmp_path) as shop:
        yield shop


@asynccontextmanager
async def running_shop(folder: Path) -> AsyncIterator[Shop]:
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        connection.execute("CREATE TABLE contacts (name TEXT NOT NULL UNIQUE)")
        connection.commit()
    records: Mapping[str, object] = {
        "databases": {"shop": {"url": f"sqlite:{folder / 'shop.sqlite'}"}},
        "collections": {"contacts": {"database": "shop", "table": "contacts", "columns": ["name"]}},
        "queues": {"letters": {"database": "shop"}},
        "sources": {"contacts": {"database": "shop", "sql": "SELECT name FROM contacts ORDER BY name"}},
    }
    async with create_manager(
        folder / "data", {"bulk_window": 100_000, "max_record_size": 50_000}, records=records
    ) as managed:
        transport = WebSocketServer()
        await transport.start(managed.manager, TransportServerSettings())
        try:
            urls = transport.urls
            yield Shop(folder, Running(transport, managed.manager, urls["ws"], urls["http"]))
        finally:
            await transport.close(0.5)


def batch(*names: str) -> RecordBatch:
    return RecordBatch([b'{"name":"%s"}' % name.encode() for name in names])


async def open_bulk(client: Raw, request: int) -> int:
    """Begin a bulk; return its window."""
    await client.say("open_bulk", request, collection="contacts")
    until = (await client.until("bulk_opened"))["until"]
    assert isinstance(until, int)
    return until


async def commit(client: Raw, request: int, records: RecordBatch) -> None:
    digest = RecordDigest()
    digest.update(records)
    await client.say("commit_bulk", request, records=len(records.data), digest=digest.digest().hex())


async def test_bulk_and_its_results(shop: Shop) -> None:
    async with connect(shop.server.ws) as client:
        async with client.bulk("contacts") as bulk:
            for number in range(5000):
                await bulk.send({"name": f"{number:04}"})
            assert shop.visible() == []
        assert bulk.result is not None
        assert bulk.result.records == 5000
        assert len(shop.visible()) == 5000
        found = [record.json()["name"] async for record in client.query("contacts")]
        assert found == [f"{number:04}" for number in range(5000)]
        again = client.bulk("contacts")
        await again.open()
        await again.send({"name": "new"})
        await again.send({"name": "0007"})
        with pytest.raises(BulkRefused, match="record 1"):
            await again.commit()
    assert len(shop.visible()) == 5000


async def test_simple_client_sends_everything_and_reads_to_the_end(shop: Shop) -> None:
    """Nothing but the document is needed for a small bulk: no windows, no more than one message of records."""
    records = batch("a", "b")
    async with raw(shop.server.endpoint) as client:
        assert await open_bulk(client, 1) > records.size
        await client.send(frame_records(1, records))
        await commit(client, 1, records)
        assert (await client.until("bulk_committed"))["result"]["records"] == 2
    assert shop.visible() == ["a", "b"]


async def test_bulk_beyond_its_window_leaves_nothing(shop: Shop) -> None:
    async with raw(shop.server.endpoint) as client:
        until = await open_bulk(client, 1)
        await client.send(frame_records(1, batch("first")))
        await client.send(frame_records(1, batch("x" * until)))
        await commit(client, 1, batch("first"))
        assert isinstance(await client.error(1), ProtocolError)
        # The next one, on the same connection, is not concerned.
        await open_bulk(client, 2)
        await client.send(frame_records(2, batch("second")))
        await commit(client, 2, batch("second"))
        await client.until("bulk_committed")
    assert shop.visible() == ["second"]


async def test_hostile_frames_leave_nothing_and_no_defect(shop: Shop) -> None:
    """Whatever is sent in a bulk: it is refused with a typed error, or it is records, and none of it is visible."""
    chance = random.Random(7)
    sound = frame_records(1, RecordBatch([b'{"name":"a"}', b'{"name":"b"}'], ["k", None]))
    codes = set()
    async with raw(shop.server.endpoint) as client:
        for request in range(1, 400):
            await open_bulk(client, request)
            frame = bytearray(sound)
            frame[4:8] = request.to_bytes(4, "big")
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(8, len(frame))
                frame[at : at + chance.randrange(2)] = chance.randbytes(chance.randrange(3))
            await client.send(bytes(frame))
            # Never what was sent, so that what is left intact is refused here.
            await client.say("commit_bulk", request, records=1, digest="0" * 32)
            message = await client.next(request)
            while message["type"] == "window":
                message = await client.next(request)
            assert message["type"] == "error", message
            codes.add(error_from_wire(message["code"], message["message"], message["details"]).code)
    assert codes <= {"protocol", "unsupported", "bulk_refused", "integrity", "message_too_large"}
    assert {"protocol", "bulk_refused", "integrity"} <= codes
    assert shop.visible() == []


async def test_connection_that_ends_takes_its_bulk_along(shop: Shop) -> None:
    async with raw(shop.server.endpoint) as client:
        await open_bulk(client, 1)
        await client.send(frame_records(1, batch("a")))
        client.websocket.transport.abort()
    # The name is free: what was staged of the other one is nobody's.
    async with connect(shop.server.ws) as other, other.bulk("contacts") as bulk:
        await bulk.send({"name": "a"})
    assert shop.visible() == ["a"]


async def test_reader_that_takes_nothing_holds_nobody_up() -> None:
    large = b"x" * 100_000
    produced = 0

    async def endless(arguments: Mapping[str, Argument]) -> AsyncGenerator[RecordBatch, None]:
        nonlocal produced
        while True:
            produced += 1
            yield RecordBatch([large])

    async with (
        running_server(
            records=source(endless, "text/plain"), manager_options={"max_download_window": 1_000_000}
        ) as server,
        connect(server.ws, ClientSettings(download_window=1_000_000)) as client,
    ):
        assert isinstance(client._connection, WebSocketConnection)
        # No window of the application, so that the connection's own is all that stops the server.
        idle = [await client._connection.open(Query(source="numbers")) for _ in range(3)]
        for stream in idle:
            assert isinstance(await stream.receive(), QueryStarted)
        for _ in range(20):
            reading = client.query("numbers", max_results=5)
            assert len([record async for record in reading]) == 5
        for stream in idle:
            await stream.close()
        # What the window held, one message beyond, and what waited at the server.
        assert produced < 3 * 20 + 20 * 20


async def test_many_bulks_share_a_connection(shop: Shop) -> None:
    async def send(client_number: int) -> None:
        async with client.bulk("contacts") as bulk:
            for number in range(200):
                await bulk.send({"name": f"{client_number}-{number}"})

    async with connect(shop.server.ws) as client:
        await asyncio.gather(*(send(number) for number in range(10)))
    assert len(shop.visible()) == 2000


async def test_work_is_handed_out_under_credit_and_answered(shop: Shop) -> None:
    async with connect(shop.server.ws) as client:
        async with client.bulk("letters") as bulk:
            for number in range(50):
                await bulk.send({"number": number})
        done = []
        async with client.work("letters", credit=4) as consumer:
            async for delivery in consumer:
                assert consumer.outstanding <= 4
                done.append(delivery.json()["number"])
                await delivery.ack()
                if len(done) == 50:
                    break
        assert done == list(range(50))
        figures = await client.queue_figures("letters")
        assert (figures.ready, figures.in_flight, figures.dead) == (0, 0, 0)


async def test_long_reasons_for_many_rejections_fit_into_messages(shop: Shop) -> None:
    """Each may take six times its length in JSON; what is answered together is what fits together."""
    reason = "\x01" * 1024
    async with connect(shop.server.ws) as client:
        async with client.bulk("letters") as bulk:
            for number in range(2000):
                await bulk.send({"number": number})
        async with client.work("letters", credit=2000) as consumer:
            deliveries = [delivery async for _, delivery in azip(range(2000), consumer)]
            await asyncio.gather(*(delivery.reject(reason, dead_letter=True) for delivery in deliveries))
        assert (await client.queue_figures("letters")).dead == 2000


async def azip(numbers: range, consumer: RecordConsumer) -> AsyncGenerator[tuple[int, Delivery], None]:
    """Yield a delivery for each number, and ask for no more than that."""
    deliveries = aiter(consumer)
    for number in numbers:
        yield number, await anext(deliveries)
