"""Contract tests of queries.

A subclass overrides the fixture and the hook::

    class TestMyQueries(QueryClientContract):
        @pytest.fixture
        async def query_client(self): ...

        async def source_has_ended(self): ...
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest

from tailrace_client_download_api._records import RecordClient
from tailrace_common_api import InvalidArgument, RecordEndNotFound

_ENDLESS = 1_000_000_000


class QueryClientContract:
    """What every client that reads results does, at a server with one source.

    It yields ``count`` JSON objects, one at a time, without an end of its own for a large count; the first has 0 as
    :attr:`field`, and each next one a number that is higher by one. It counts those that it has yielded.
    """

    source = "numbers"
    """Name of the source."""
    field = "n"
    """Field of its records."""
    missing = "nothing.of.this.name"
    """Name of no source."""

    @pytest.fixture
    def query_client(self) -> RecordClient:
        """Give the client under test."""
        raise NotImplementedError("the fixture `query_client` gives the client under test")

    async def source_has_ended(self) -> int:
        """Wait until every query of the source has ended, and return how many records it has yielded in all."""
        raise NotImplementedError("the hook `source_has_ended` looks at the source")

    async def test_records_come_in_order_and_whole(self, query_client: RecordClient) -> None:
        async with query_client.query(self.source, count=3000) as stream:
            assert stream.content_type == "application/json"
            numbers = [record.json()[self.field] async for record in stream]
        assert numbers == list(range(3000))
        assert await self.source_has_ended() == 3000

    async def test_no_records_are_no_records(self, query_client: RecordClient) -> None:
        assert [record async for record in query_client.query(self.source, count=0)] == []

    async def test_batches_are_what_arrives_together(self, query_client: RecordClient) -> None:
        numbers: list[int] = []
        async with aclosing(query_client.query(self.source, count=500).batches()) as batches:
            async for batch in batches:
                assert batch
                numbers.extend(json.loads(record.data)[self.field] for record in batch)
        assert numbers == list(range(500))

    async def test_a_reader_that_leaves_ends_the_source(self, query_client: RecordClient) -> None:
        async for record in query_client.query(self.source, count=_ENDLESS):
            if record.json()[self.field] == 10:
                break
        async with query_client.query(self.source, count=_ENDLESS) as stream:
            async for _ in stream:
                break
        stream = query_client.query(self.source, count=_ENDLESS)
        await stream.open()
        await stream.close()
        await stream.close()
        assert await self.source_has_ended() < _ENDLESS

    async def test_a_reader_that_is_cancelled_ends_the_source(self, query_client: RecordClient) -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in query_client.query(self.source, count=_ENDLESS):
                begun.set()

        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await self.source_has_ended() < _ENDLESS

    async def test_at_most_max_results_come(self, query_client: RecordClient) -> None:
        numbers = [
            record.json()[self.field] async for record in query_client.query(self.source, count=50, max_results=7)
        ]
        assert numbers == list(range(7))

    async def test_an_unknown_source_is_told(self, query_client: RecordClient) -> None:
        with pytest.raises(RecordEndNotFound):
            await query_client.query(self.missing).open()

    async def test_arguments_are_checked(self, query_client: RecordClient) -> None:
        with pytest.raises(InvalidArgument):
            query_client.query(self.source, count=[1])  # type: ignore[arg-type]  # the wrong value is the test
        with pytest.raises(InvalidArgument):
            query_client.query("no name")
        with pytest.raises(InvalidArgument):
            await query_client.query(self.source, count="many").open()
        with pytest.raises(InvalidArgument):
            await query_client.query(self.source, unknown=1).open()

    async def test_records_are_read_once(self, query_client: RecordClient) -> None:
        stream = query_client.query(self.source, count=3)
        assert len([record async for record in stream]) == 3
        with pytest.raises(RuntimeError):
            await anext(stream.batches())

    async def test_a_query_that_has_not_begun_says_nothing(self, query_client: RecordClient) -> None:
        stream = query_client.query(self.source, count=3)
        with pytest.raises(RuntimeError):
            _ = stream.content_type
        await stream.close()

    async def test_queries_run_side_by_side(self, query_client: RecordClient) -> None:
        async def read(count: int) -> int:
            return len([record async for record in query_client.query(self.source, count=count)])

        assert await asyncio.gather(*(read(count) for count in (10, 1000, 100))) == [10, 1000, 100]
