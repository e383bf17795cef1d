"""Contract tests of the download interfaces; subclass them in the tests of an implementation.

Needs the extra ``contracts`` (pytest, pytest-asyncio in auto mode). A subclass overrides the fixtures::

    class TestMyDownloads(DownloadClientContract):
        @pytest.fixture
        async def download_client(self): ...

        @pytest.fixture
        async def producer(self): ...
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest

from tailrace_client_download_api._client import DownloadClient, RemoteResource, ResourceClient
from tailrace_common_api import (
    ContextClosed,
    ContextEvent,
    ContextEventKind,
    ContextNotFound,
    ContextState,
    Deleted,
    FromOffset,
    IntegrityError,
    InvalidArgument,
    InvalidReference,
    LastBytes,
    LastLines,
    LineAccessDisabled,
    LineRangeNotSatisfiable,
    ListFilter,
    NotFound,
    RangeNotSatisfiable,
    Reference,
    ResourceFailed,
    ResourceState,
    Start,
)

T = TypeVar("T")
TEXT = b"zero\none\r\n\nthree\nlast"
"""Five lines; the last is unterminated."""


class ReadingClient(DownloadClient, ResourceClient):
    """What is tested: a client that reads resources and asks for them."""


class Producer(ABC):
    """Makes resources by other means than the client under test."""

    @abstractmethod
    async def create(
        self, name: str, *, lines: bool = True, labels: dict[str, str] | None = None, context: str | None = None
    ) -> str:
        """Create a live resource without bytes and return its reference."""

    @abstractmethod
    async def append(self, reference: str, data: bytes) -> None:
        """Append bytes and return when they are announced."""

    @abstractmethod
    async def complete(self, reference: str) -> None:
        """Complete the resource."""

    @abstractmethod
    async def fail(self, reference: str, reason: str) -> None:
        """Fail the resource."""

    async def completed(self, data: bytes, *, lines: bool = True) -> str:
        """Create a complete resource of these bytes."""
        reference = await self.create("complete", lines=lines)
        if data:
            await self.append(reference, data)
        await self.complete(reference)
        return reference


class DownloadClientContract:
    """What every :class:`DownloadClient` that is a :class:`ResourceClient` too does."""

    @pytest.fixture
    def download_client(self) -> ReadingClient:
        """Give the client under test."""
        raise NotImplementedError("the fixture `download_client` gives the client under test")

    @pytest.fixture
    def producer(self) -> Producer:
        """Give something that makes resources which the client can open."""
        raise NotImplementedError("the fixture `producer` gives something that makes resources")

    async def test_a_resource_is_there_before_its_first_byte(
        self, download_client: ReadingClient, producer: Producer
    ) -> None:
        reference = await producer.create("new.txt", labels={"k": "v"})
        async with download_client.open(reference) as resource:
            status = await resource.status()
            assert status.state is ResourceState.INITIATED
            assert (status.size, status.lines) == (0, 0)
            assert status.metadata.name == "new.txt"
            assert status.metadata.labels == {"k": "v"}
            assert resource.id == status.id
            assert await resource.read() == b""
            assert (await download_client.status(reference)) == status
            assert (await download_client.status(resource.id)) == status

    @pytest.mark.parametrize("state", [ResourceState.IN_PROGRESS, ResourceState.COMPLETED, ResourceState.FAILED])
    async def test_any_range_in_any_state(
        self, download_client: ReadingClient, producer: Producer, state: ResourceState
    ) -> None:
        data = bytes(range(256)) * 10
        reference = await producer.create("x", lines=False)
        await producer.append(reference, data)
        if state is ResourceState.COMPLETED:
            await producer.complete(reference)
        elif state is ResourceState.FAILED:
            await producer.fail(reference, "why")
        async with download_client.open(reference) as resource:
            for start, end in ((0, None), (0, 0), (0, 2560), (1, 2), (255, 300), (2560, 2560), (2560, None)):
                assert await resource.read(start, end) == data[start:end]
            for start, end in ((0, 2561), (2561, None), (5, 4), (-1, 3)):
                with pytest.raises(RangeNotSatisfiable) as refused:
                    await resource.read(start, end)
                assert refused.value.size == 2560
            for count in (0, 1, 2560, 10_000):
                assert await resource.read_last(count) == (data[-count:] if count else b"")
            with pytest.raises(InvalidArgument):
                await resource.read_last(-1)
            status = await resource.status()
            assert (status.state, status.reason) == (state, "why" if state is ResourceState.FAILED else None)

    async def test_chunks_tell_their_offset(self, download_client: ReadingClient, producer: Producer) -> None:
        data = bytes(3_000_000)
        reference = await producer.completed(data, lines=False)
        async with download_client.open(reference) as resource:
            offset = 100
            async with aclosing(resource.chunks(100)) as chunks:
                async for chunk in chunks:
                    assert chunk.offset == offset
                    offset += len(chunk.data)
            assert offset == len(data)
            assert chunk.checkpoint is not None
            assert chunk.checkpoint.size == len(data)
            assert chunk.checkpoint.head == (await resource.status()).head

    async def test_follow_has_no_hole_and_no_repeat(self, download_client: ReadingClient, producer: Producer) -> None:
        reference = await producer.create("x")
        async with download_client.open(reference) as resource:
            received = bytearray()
            async with aclosing(resource.follow()) as pieces:
                following = asyncio.create_task(_collect(pieces, received))
                for number in range(20):
                    await producer.append(reference, b"line %d\n" % number)
                await producer.complete(reference)
                await following
            assert received == b"".join(b"line %d\n" % number for number in range(20))

    @pytest.mark.parametrize(
        ("start", "expected"),
        [
            (FromOffset(0), TEXT),
            (FromOffset(7), TEXT[7:]),
            (FromOffset(len(TEXT)), b""),
            (LastBytes(6), TEXT[-6:]),
            (LastBytes(1000), TEXT),
            (LastLines(1), b"three\nlast"),
            (LastLines(3), b"one\r\n\nthree\nlast"),
            (LastLines(0), b"last"),
            (LastLines(1000), TEXT),
        ],
    )
    async def test_a_live_resource_is_followed_from_anywhere(
        self, download_client: ReadingClient, producer: Producer, start: Start, expected: bytes
    ) -> None:
        reference = await producer.create("x")
        await producer.append(reference, TEXT)
        async with download_client.open(reference) as resource:
            received = bytearray()
            async with aclosing(resource.follow_chunks(start)) as chunks:
                first = asyncio.ensure_future(anext(chunks))
                if expected:
                    received += (await first).data
                while received != expected:
                    received += (await anext(chunks)).data
                await producer.append(reference, b"+more")
                if not expected:
                    received += (await first).data
                await producer.complete(reference)
                async for chunk in chunks:
                    received += chunk.data
            assert received.endswith(b"+more")
            assert received == expected + b"+more"

    async def test_an_ended_resource_counts_its_unterminated_line(
        self, download_client: ReadingClient, producer: Producer
    ) -> None:
        reference = await producer.completed(TEXT)
        async with download_client.open(reference) as resource:
            for count, expected in ((0, b""), (1, b"last"), (2, b"three\nlast")):
                received = bytearray()
                async with aclosing(resource.follow(last_lines=count)) as pieces:
                    await _collect(pieces, received)
                assert received == expected
                received.clear()
                async with aclosing(resource.follow(last_bytes=count)) as pieces:
                    await _collect(pieces, received)
                assert received == TEXT[len(TEXT) - count :]

    async def test_a_failure_comes_behind_the_last_byte(
        self, download_client: ReadingClient, producer: Producer
    ) -> None:
        reference = await producer.create("x")
        await producer.append(reference, b"some")
        await producer.fail(reference, "the disk broke")
        async with download_client.open(reference) as resource:
            received = bytearray()
            async with aclosing(resource.follow()) as pieces:
                with pytest.raises(ResourceFailed) as failed:
                    await _collect(pieces, received)
            assert received == b"some"
            assert (failed.value.reason, failed.value.size) == ("the disk broke", 4)
            received.clear()
            async with aclosing(resource.follow(raise_on_failure=False)) as pieces:
                await _collect(pieces, received)
            assert received == b"some"

    async def test_statuses_rise_and_end_terminal(self, download_client: ReadingClient, producer: Producer) -> None:
        reference = await producer.create("x")
        async with download_client.open(reference) as resource:
            async with aclosing(resource.statuses()) as statuses:
                seen = [await anext(statuses)]
                assert seen[0].state is ResourceState.INITIATED
                for number in range(5):
                    await producer.append(reference, b"x\n")
                    seen.append(await anext(statuses))
                    assert seen[-1].size <= 2 * (number + 1)
                await producer.complete(reference)
                seen += [status async for status in statuses]
            versions = [status.version for status in seen]
            assert versions == sorted(set(versions))
            assert [status.state for status in seen if status.state.terminal] == [ResourceState.COMPLETED]
            assert (seen[-1].state, seen[-1].size, seen[-1].lines) == (ResourceState.COMPLETED, 10, 5)
            assert await resource.wait() == seen[-1]

    async def test_lines(self, download_client: ReadingClient, producer: Producer) -> None:
        reference = await producer.completed(TEXT)
        lines = TEXT.splitlines(keepends=True)
        async with download_client.open(reference) as resource:
            assert (await resource.status()).lines == 5
            assert await resource.read_lines() == lines
            for first in range(6):
                assert await resource.read_lines(first) == lines[first:]
                for count in range(7):
                    assert await resource.read_lines(first, count) == lines[first : first + count]
            for last in range(7):
                assert await resource.read_lines(last=last) == (lines[-last:] if last else [])
            for first, count in ((6, 1), (-1, 1), (0, -1)):
                with pytest.raises(LineRangeNotSatisfiable) as refused:
                    await resource.read_lines(first, count)
                assert refused.value.lines == 5
            with pytest.raises(InvalidArgument):
                await resource.read_lines(0, last=1)
            with pytest.raises(InvalidArgument):
                await resource.read_lines(last=-1)

    async def test_an_unterminated_line_is_none_before_the_end(
        self, download_client: ReadingClient, producer: Producer
    ) -> None:
        reference = await producer.create("x")
        await producer.append(reference, TEXT)
        async with download_client.open(reference) as resource:
            assert (await resource.status()).lines == 4
            assert await resource.read_lines() == TEXT.splitlines(keepends=True)[:4]
            assert await resource.read_lines(last=1) == [b"three\n"]
            assert await resource.read_lines(4) == []
            with pytest.raises(LineRangeNotSatisfiable):
                await resource.read_lines(5)

    async def test_lines_and_offsets_relate(self, download_client: ReadingClient, producer: Producer) -> None:
        reference = await producer.completed(TEXT)
        lines = TEXT.splitlines(keepends=True)
        async with download_client.open(reference) as resource:
            offset = 0
            for number, line in enumerate(lines):
                position = await resource.locate_line(number)
                assert (position.line, position.offset) == (number, offset)
                for inside in (offset, offset + len(line) - 1):
                    position = await resource.locate_offset(inside)
                    assert (position.line, position.offset) == (number, offset)
                offset += len(line)
            assert (await resource.locate_line(5)).offset == len(TEXT)
            with pytest.raises(LineRangeNotSatisfiable):
                await resource.locate_line(6)
            with pytest.raises(RangeNotSatisfiable):
                await resource.locate_offset(len(TEXT) + 1)

    async def test_without_line_access_lines_are_refused(
        self, download_client: ReadingClient, producer: Producer
    ) -> None:
        reference = await producer.completed(TEXT, lines=False)
        async with download_client.open(reference) as resource:
            assert (await resource.status()).lines is None
            with pytest.raises(LineAccessDisabled):
                await resource.read_lines()
            with pytest.raises(LineAccessDisabled):
                await resource.locate_line(0)
            async with aclosing(resource.follow(last_lines=1)) as pieces:
                with pytest.raises(LineAccessDisabled):
                    await anext(pieces)
            assert await resource.read() == TEXT

    async def test_heads_at_any_size(self, download_client: ReadingClient, producer: Producer) -> None:
        reference = await producer.completed(bytes(300_000), lines=False)
        async with download_client.open(reference) as resource:
            status = await resource.status()
            empty, last, again = await resource.heads([0, 300_000, 300_000])
            assert empty.hex() == "10e45c7ce2292320743df94ee4c78a2a"
            assert last == again == status.head
            assert await resource.heads([]) == ()
            with pytest.raises(RangeNotSatisfiable):
                await resource.heads([300_001])

    async def test_saving_continues_what_is_a_prefix_and_nothing_else(
        self, download_client: ReadingClient, producer: Producer, tmp_path: Path
    ) -> None:
        data = bytes(range(256)) * 2000
        reference = await producer.create("x", lines=False)
        await producer.append(reference, data[:300_000])
        path = tmp_path / "saved"
        async with download_client.open(reference) as resource:
            status = await resource.save(path)
            assert (status.size, await asyncio.to_thread(path.read_bytes)) == (300_000, data[:300_000])
            await producer.append(reference, data[300_000:])
            await producer.complete(reference)
            progress: list[int] = []
            status = await resource.save(path, progress=progress.append)
            assert (status.size, await asyncio.to_thread(path.read_bytes)) == (len(data), data)
            assert progress == sorted(progress)
            assert progress[0] >= 300_000
            assert progress[-1] == len(data)
            assert await resource.save(path) == status
            for other in (b"other", data + b"longer"):
                await asyncio.to_thread(path.write_bytes, other)
                with pytest.raises(IntegrityError):
                    await resource.save(path)
                assert await asyncio.to_thread(path.read_bytes) == other

    async def test_requests_are_independent(self, download_client: ReadingClient, producer: Producer) -> None:
        data = b"".join(b"%07d\n" % number for number in range(200_000))
        reference = await producer.create("x")
        await producer.append(reference, data)
        async with download_client.open(reference) as resource, aclosing(resource.follow_chunks()) as stopped:
            await anext(stopped)
            whole, part, last = await asyncio.gather(resource.read(), resource.read(8, 16), resource.read_lines(last=1))
            assert (whole, part, last) == (data, b"0000001\n", [b"0199999\n"])
            with pytest.raises(RangeNotSatisfiable):
                await resource.read(0, len(data) + 1)
            reading = asyncio.create_task(resource.wait())
            await resource.status()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            received = bytearray(data[: (await anext(stopped)).offset])
            await stopped.aclose()
            assert data.startswith(received)
            await producer.complete(reference)
            assert (await resource.wait()).state is ResourceState.COMPLETED

    async def test_unknown_and_malformed_references(self, download_client: ReadingClient, producer: Producer) -> None:
        for malformed in ("", "x", "../../etc/passwd", "ws://host/q/" + "0" * 32, "0" * 31 + "\n"):
            with pytest.raises(InvalidReference):
                download_client.open(malformed)
            with pytest.raises(InvalidReference):
                await download_client.status(malformed)
        unknown = "0" * 32
        async with download_client.open(unknown) as resource:
            for operation in _every_operation(resource):
                with pytest.raises(NotFound):
                    await operation
        with pytest.raises(NotFound):
            await download_client.status(unknown)
        with pytest.raises(NotFound):
            await download_client.delete(unknown)

    async def test_deleting_tells_everyone(self, download_client: ReadingClient, producer: Producer) -> None:
        reference = await producer.create("x")
        await producer.append(reference, b"some")
        async with download_client.open(reference) as resource:
            async with aclosing(resource.follow()) as pieces, aclosing(resource.statuses()) as statuses:
                assert await anext(pieces) == b"some"
                await anext(statuses)
                await resource.delete()
                with pytest.raises(Deleted):
                    await anext(pieces)
                with pytest.raises(Deleted):
                    await _last(statuses)
            with pytest.raises(NotFound):
                await resource.status()

    async def test_a_context_is_created_and_closed(self, download_client: ReadingClient, producer: Producer) -> None:
        created = await download_client.create_context({"run": "7", "branch": "main"})
        assert created.attributes == {"run": "7", "branch": "main"}
        assert (created.state, created.closed_at) == (ContextState.OPEN, None)
        assert (created.resources, created.bytes) == (0, 0)
        assert await download_client.get_context(created.id) == created
        other = await download_client.create_context()
        assert other.id != created.id
        assert other.attributes == {}
        reference = await producer.create("x", context=created.id)
        await producer.append(reference, b"some")
        async with download_client.open(reference) as resource:
            assert (await resource.status()).metadata.context == created.id
            counted = await download_client.get_context(created.id)
            assert (counted.resources, counted.bytes) == (1, 4)
            page = await download_client.list_page(ListFilter(context=created.id))
            assert [status.id for status in page.statuses] == [resource.id]
            closed = await download_client.close_context(created.id)
            assert closed.state is ContextState.CLOSED
            assert closed.closed_at is not None
            status = await resource.status()
            assert status.state is ResourceState.FAILED
            assert await resource.read() == b"some"
        assert await download_client.close_context(created.id) == closed
        assert (await download_client.get_context(other.id)).state is ContextState.OPEN
        with pytest.raises(ContextClosed):
            await producer.create("late", context=created.id)

    async def test_unknown_and_malformed_contexts(self, download_client: ReadingClient, producer: Producer) -> None:
        unknown = "0" * 32
        with pytest.raises(ContextNotFound):
            await producer.create("x", context=unknown)
        for given, error in ((unknown, ContextNotFound), ("x", InvalidReference), ("../" + "0" * 29, InvalidReference)):
            with pytest.raises(error):
                await download_client.get_context(given)
            with pytest.raises(error):
                await download_client.close_context(given)
            async with aclosing(download_client.context_events(given)) as events:
                with pytest.raises(error):
                    await anext(events)
        with pytest.raises(InvalidArgument):
            await download_client.create_context({"": "no key"})
        context = await download_client.create_context()
        async with aclosing(download_client.context_events(context.id, after=-1)) as events:
            with pytest.raises(InvalidArgument):
                await anext(events)

    async def test_events_of_a_context_come_in_order_up_to_its_end(
        self, download_client: ReadingClient, producer: Producer
    ) -> None:
        context = await download_client.create_context()
        other = await download_client.create_context()
        events: list[ContextEvent] = []
        async with aclosing(download_client.context_events(context.id)) as coming:
            reference = await producer.create("x", context=context.id)
            events.append(await anext(coming))
            await producer.complete(await producer.create("elsewhere", context=other.id))
            await producer.append(reference, b"some")
            await producer.complete(reference)
            while events[-1].state is not ResourceState.COMPLETED:
                events.append(await anext(coming))
            await download_client.delete(reference)
            events.append(await anext(coming))
            await download_client.close_context(context.id)
            events += [event async for event in coming]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        kinds = [event.kind for event in events]
        changes = [ContextEventKind.STATUS_CHANGED] * (len(events) - 3)
        assert kinds == [ContextEventKind.CREATED, *changes, ContextEventKind.DELETED, ContextEventKind.CLOSED]
        made = Reference.parse(reference).id
        assert [(event.id, event.size) for event in events[-2:]] == [(made, 4), (None, None)]
        assert [event.id for event in events[:-1]] == [made] * (len(events) - 1)
        assert (await download_client.get_context(context.id)).last_event == len(events)
        for after in (0, 1, len(events) - 1):
            again = [event async for event in download_client.context_events(context.id, after=after)]
            assert again == events[after:]

    async def test_listing_selects_and_pages(self, download_client: ReadingClient, producer: Producer) -> None:
        references = [
            await producer.create(f"r{number}", labels={"parity": "odd" if number % 2 else "even"})
            for number in range(5)
        ]
        await producer.complete(references[1])
        page = await download_client.list_page(ListFilter(labels={"parity": "odd"}))
        assert [status.metadata.name for status in page.statuses] == ["r1", "r3"]
        assert page.next_token is None
        page = await download_client.list_page(ListFilter(labels={"parity": "odd"}, state=ResourceState.COMPLETED))
        assert [status.metadata.name for status in page.statuses] == ["r1"]
        names: list[str] = []
        token: str | None = None
        while True:
            page = await download_client.list_page(limit=2, page_token=token)
            assert len(page.statuses) <= 2
            names += [status.metadata.name for status in page.statuses]
            token = page.next_token
            if token is None:
                break
        assert names == [f"r{number}" for number in range(5)]
        assert [status.metadata.name async for status in download_client.list()] == names
        with pytest.raises(InvalidArgument):
            await download_client.list_page(limit=0)
        with pytest.raises(InvalidArgument):
            await download_client.list_page(page_token="not a token")


def _every_operation(resource: RemoteResource) -> list[asyncio.Future[object]]:
    """Start every operation of a resource."""

    async def first(items: AsyncGenerator[T, None]) -> T:
        async with aclosing(items):
            return await anext(items)

    return [
        asyncio.ensure_future(operation)
        for operation in (
            resource.status(),
            first(resource.statuses()),
            resource.read(),
            resource.read_last(1),
            first(resource.follow()),
            resource.read_lines(),
            resource.read_lines(last=1),
            resource.locate_line(0),
            resource.locate_offset(0),
            resource.heads([0]),
            resource.delete(),
        )
    ]


async def _collect(pieces: AsyncGenerator[bytes, None], received: bytearray) -> None:
    async for piece in pieces:
        received += piece


async def _last(items: AsyncGenerator[T, None]) -> T:
    last: T | None = None
    async for item in items:
        last = item
    assert last is not None
    return last
