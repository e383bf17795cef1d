"""Contract tests of bulks.

A subclass overrides the fixture and the hook::

    class TestMyBulks(BulkClientContract):
        @pytest.fixture
        async def bulk_client(self): ...

        async def visible_records(self): ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from tailrace_client_upload_api._bulk import BulkClient
from tailrace_client_upload_api._record_encoding import RecordContent
from tailrace_common_api import (
    BulkConflict,
    BulkRefused,
    InvalidArgument,
    Record,
    RecordEndNotFound,
    TailraceError,
    record_problems,
)


class BulkClientContract:
    """What every :class:`BulkClient` does, at a server whose collection takes any JSON object, and keys."""

    collection = "notes"
    """Name of that collection."""
    missing = "nothing.of.this.name"
    """Name under which the server has neither a collection nor a queue."""

    @pytest.fixture
    def bulk_client(self) -> BulkClient:
        """Give the client under test, at a server whose collection is empty."""
        raise NotImplementedError("the fixture `bulk_client` gives the client under test")

    async def visible_records(self) -> Sequence[Record]:
        """Return what everyone sees of the collection, in order, without the client under test."""
        raise NotImplementedError("the hook `visible_records` looks at the collection")

    async def test_records_become_visible_as_a_whole(self, bulk_client: BulkClient) -> None:
        async with bulk_client.bulk(self.collection) as bulk:
            assert bulk.id
            assert bulk.limits.record_bytes > 0
            for number in range(2000):
                await bulk.send({"n": number})
            assert bulk.count == 2000
            assert await self.visible_records() == []
        assert bulk.result is not None
        assert (bulk.result.records, bulk.result.collection, bulk.result.repeated) == (2000, self.collection, False)
        assert [record.json() for record in await self.visible_records()] == [{"n": number} for number in range(2000)]

    async def test_records_of_every_kind_arrive_in_order(self, bulk_client: BulkClient) -> None:
        changing = bytearray(b'{"n":3}')
        async with bulk_client.bulk(self.collection) as bulk:
            await bulk.send({"n": 1})
            await bulk.send('{"n":"zwölf"}')
            await bulk.send(changing)
            changing[:] = b"changed"
            await bulk.send(memoryview(b'{"n":4}'), key="four")
            await bulk.send(Record(b'{"n":5}', "fünf"))
        assert bulk.result is not None
        assert bulk.result.size == 7 + 14 + 7 + 11 + 12
        assert [(record.json(), record.key) for record in await self.visible_records()] == [
            ({"n": 1}, None),
            ({"n": "zwölf"}, None),
            ({"n": 3}, None),
            ({"n": 4}, "four"),
            ({"n": 5}, "fünf"),
        ]

    async def test_everything_that_comes_is_sent(self, bulk_client: BulkClient) -> None:
        async def produce() -> AsyncGenerator[RecordContent, None]:
            for number in range(3):
                await asyncio.sleep(0)
                yield {"n": number}

        async with bulk_client.bulk(self.collection) as bulk:
            assert await bulk.send_all(produce()) == 3
            assert await bulk.send_all([b"{}"] * 4) == 4
        assert len(await self.visible_records()) == 7

    async def test_leaving_with_an_exception_leaves_nothing(self, bulk_client: BulkClient) -> None:
        bulk = bulk_client.bulk(self.collection)

        async def use() -> None:
            async with bulk:
                await bulk.send_all([{"n": number} for number in range(1500)])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await use()
        assert bulk.result is None
        assert await self.visible_records() == []
        with pytest.raises(TailraceError):
            await bulk.commit()
        with pytest.raises(TailraceError):
            await bulk.send({})

    async def test_a_cancelled_task_leaves_nothing(self, bulk_client: BulkClient) -> None:
        sent = asyncio.Event()

        async def use() -> None:
            async with bulk_client.bulk(self.collection) as bulk:
                await bulk.send({})
                sent.set()
                await asyncio.Event().wait()

        using = asyncio.create_task(use())
        await sent.wait()
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using
        assert await self.visible_records() == []

    async def test_a_commit_is_repeated_without_being_done_again(self, bulk_client: BulkClient) -> None:
        async with bulk_client.bulk(self.collection) as bulk:
            await bulk.send({})
            result = await bulk.commit()
            await bulk.cancel()
            assert await bulk.commit() == result
            with pytest.raises(TailraceError):
                await bulk.send({})
        assert bulk.result == result
        assert len(await self.visible_records()) == 1

    async def test_what_cannot_be_a_record_is_refused_and_leaves_the_bulk_as_it_was(
        self, bulk_client: BulkClient
    ) -> None:
        async with bulk_client.bulk(self.collection) as bulk:
            await bulk.send({"n": 1})
            for record, key in (
                ({"n": float("inf")}, None),
                ({"n": object()}, None),
                (b" " * (bulk.limits.record_bytes + 1), None),
                (b"{}", ""),
                (b"{}", "k" * 256),
            ):
                with pytest.raises(InvalidArgument):
                    await bulk.send(record, key=key)
            await bulk.send({"n": 2})
        assert [record.json() for record in await self.visible_records()] == [{"n": 1}, {"n": 2}]

    async def test_a_record_that_is_refused_ends_the_bulk_while_more_are_sent(self, bulk_client: BulkClient) -> None:
        async def produce() -> AsyncGenerator[RecordContent, None]:
            yield b"no JSON"
            while True:
                yield {"n": 1}
                await asyncio.sleep(0)

        bulk = bulk_client.bulk(self.collection)
        await bulk.open()
        with pytest.raises(BulkRefused) as caught:
            await bulk.send_all(produce())
        assert [problem.index for problem in record_problems(caught.value)] == [0]
        with pytest.raises(BulkRefused):
            await bulk.commit()
        await bulk.cancel()
        assert await self.visible_records() == []

    async def test_a_bulk_without_records_is_refused(self, bulk_client: BulkClient) -> None:
        bulk = bulk_client.bulk(self.collection)
        await bulk.open()
        with pytest.raises(BulkRefused) as caught:
            await bulk.commit()
        assert (record_problems(caught.value), caught.value.total) == ((), 0)
        await bulk.cancel()

    async def test_a_repeated_key_gives_the_first_result(self, bulk_client: BulkClient) -> None:
        records = [{"n": number} for number in range(10)]
        async with bulk_client.bulk(self.collection, idempotency_key="once") as first:
            await first.send_all(records)
        async with bulk_client.bulk(self.collection, idempotency_key="once") as again:
            known = again.result
            await again.send_all(records)
        assert known is not None
        assert first.result is not None
        assert known.repeated
        assert again.result == known
        assert (known.id, known.records, known.digest) == (first.result.id, 10, first.result.digest)
        assert len(await self.visible_records()) == 10

    async def test_other_content_under_a_key_is_an_error(self, bulk_client: BulkClient) -> None:
        async with bulk_client.bulk(self.collection, idempotency_key="once") as bulk:
            await bulk.send({"n": 1})
        again = bulk_client.bulk(self.collection, idempotency_key="once")
        await again.open()
        await again.send({"n": 2})
        with pytest.raises(BulkConflict):
            await again.commit()
        await again.cancel()
        assert len(await self.visible_records()) == 1

    async def test_an_unknown_collection_is_told(self, bulk_client: BulkClient) -> None:
        with pytest.raises(RecordEndNotFound):
            await bulk_client.bulk(self.missing).open()

    async def test_values_that_cannot_be_are_refused_at_once(self, bulk_client: BulkClient) -> None:
        with pytest.raises(InvalidArgument):
            bulk_client.bulk("no name")
        with pytest.raises(InvalidArgument):
            bulk_client.bulk(self.collection, priority=1_000_000)
        with pytest.raises(InvalidArgument):
            bulk_client.bulk(self.collection, idempotency_key="")

    async def test_a_bulk_that_is_not_open_takes_nothing(self, bulk_client: BulkClient) -> None:
        bulk = bulk_client.bulk(self.collection)
        with pytest.raises(RuntimeError):
            await bulk.send({})
        with pytest.raises(RuntimeError):
            await bulk.commit()
        await bulk.cancel()

    async def test_bulks_run_side_by_side(self, bulk_client: BulkClient) -> None:
        async def send(name: str) -> None:
            async with bulk_client.bulk(self.collection) as bulk:
                for number in range(300):
                    await bulk.send({name: number})

        await asyncio.gather(*(send(name) for name in "abc"))
        visible = [record.json() for record in await self.visible_records()]
        for name in "abc":
            assert [value[name] for value in visible if name in value] == list(range(300))
