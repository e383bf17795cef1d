"""What a source of records must do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tailrace_common_api import Argument, RecordBatch
from tailrace_server_api import RecordSource

_LARGEST_BATCH = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSources:
    """Started sources of one kind."""

    numbers: RecordSource
    """Gives ``count`` records ``{"n": number}``, from ``first`` on, which is 1 unless it is given."""
    endless: RecordSource
    """Gives records ``{"n": number}`` from 1 on, as fast as it can, for ever."""
    stuck: RecordSource
    """Is busy for ever without giving a record."""
    running: Callable[[], Awaitable[int]]
    """Counts the queries that are at work, wherever that is: in a database, in a thread; or tells whether any is."""


async def read(source: RecordSource, **arguments: Argument) -> list[int]:
    """Return the numbers that a query gives."""
    numbers: list[int] = []
    async with aclosing(source.query(arguments)) as batches:
        async for batch in batches:
            assert batch.data, "an empty batch"
            assert not batch.keys
            assert batch.size <= _LARGEST_BATCH
            for record in batch.data:
                assert b"\n" not in record
                document = json.loads(record)
                assert document.keys() == {"n"}
                numbers.append(document["n"])
    return numbers


async def nothing_runs(sources: OpenSources) -> None:
    """Wait until no query is at work."""
    async with asyncio.timeout(20):
        # Another process may be where it ends; it tells nobody.
        while await sources.running():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def something_runs(sources: OpenSources) -> None:
    """Wait until a query is at work."""
    async with asyncio.timeout(20):
        while not await sources.running():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
class RecordSourceContract:
    """Subclass it, name the subclass ``Test…`` and implement the hook."""

    def open_sources(self, folder: Path) -> AbstractAsyncContextManager[OpenSources]:
        """Return a context in which sources are open."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def sources(self, tmp_path: Path) -> AsyncGenerator[OpenSources, None]:
        async with self.open_sources(tmp_path) as sources:
            yield sources

    async def test_it_tells_its_parameters(self, sources: OpenSources) -> None:
        assert dict(sources.numbers.parameters) == {"count": int, "first": int}
        assert sources.numbers.required == {"count"}
        assert dict(sources.endless.parameters) == {}
        assert sources.endless.required == frozenset()

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 20_000])
    async def test_it_gives_what_was_asked_for_in_order(self, sources: OpenSources, count: int) -> None:
        assert await read(sources.numbers, count=count) == list(range(1, count + 1))
        assert await read(sources.numbers, count=count, first=-5) == list(range(-5, count - 5))

    async def test_the_first_records_do_not_wait_for_others(self, sources: OpenSources) -> None:
        async with aclosing(sources.endless.query({})) as batches:
            counts = [len((await anext(batches)).data) for _ in range(4)]
        assert counts[0] == 1

    async def test_queries_run_beside_one_another(self, sources: OpenSources) -> None:
        async with aclosing(sources.numbers.query({"count": 5000, "first": 10})) as batches:
            first = await anext(batches)
            others = [read(sources.numbers, count=5000, first=number) for number in range(6)]
            assert await asyncio.gather(*others) == [list(range(number, number + 5000)) for number in range(6)]
            rest = [record async for batch in batches for record in batch.data]
        assert len(first.data) + len(rest) == 5000
        assert json.loads(rest[-1]) == {"n": 5009}

    async def test_a_reader_that_leaves_ends_the_query(self, sources: OpenSources) -> None:
        async with aclosing(sources.endless.query({})) as batches:
            for _ in range(5):
                await anext(batches)
        await nothing_runs(sources)

    async def test_a_reader_that_fails_ends_the_query(self, sources: OpenSources) -> None:
        async def fail() -> None:
            async with aclosing(sources.endless.query({})) as batches:
                async for batch in batches:
                    raise ValueError(batch.size)

        with pytest.raises(ValueError, match=r"\d+"):
            await fail()
        await nothing_runs(sources)

    async def test_a_query_that_was_never_begun_can_be_closed(self, sources: OpenSources) -> None:
        await sources.endless.query({}).aclose()
        await nothing_runs(sources)

    async def test_cancelling_ends_a_query_that_gives_nothing(self, sources: OpenSources) -> None:
        waiting = asyncio.create_task(read(sources.stuck))
        await something_runs(sources)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await nothing_runs(sources)
        # And nothing is worn out by it.
        assert await read(sources.numbers, count=3) == [1, 2, 3]

    async def test_cancelling_many_queries_ends_them_all(self, sources: OpenSources) -> None:
        async def leave(batches: AsyncGenerator[RecordBatch, None]) -> None:
            async with aclosing(batches):
                async for _ in batches:
                    pass

        waiting = [asyncio.create_task(leave(sources.endless.query({}))) for _ in range(8)]
        waiting += [asyncio.create_task(leave(sources.stuck.query({}))) for _ in range(8)]
        await something_runs(sources)
        for task in waiting:
            task.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await nothing_runs(sources)
        assert await read(sources.numbers, count=3) == [1, 2, 3]
