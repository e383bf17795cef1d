"""What a storage must do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tailrace_common_api import (
    AlreadyTerminal,
    DamagedBlock,
    IntegrityError,
    Metadata,
    NotFound,
    ResourceState,
    Visibility,
)
from tailrace_server_api import (
    BLOCK_SIZE,
    Committed,
    Descriptor,
    Durability,
    Ended,
    FencedOff,
    Outcome,
    ResourceWriter,
    Snapshot,
    Storage,
)

_EMPTY_HEAD = bytes.fromhex("10e45c7ce2292320743df94ee4c78a2a")
_UNKNOWN = "v" * 32


def _descriptor(number: int = 1, *, lines: bool = True) -> Descriptor:
    return Descriptor(
        id=f"{number:032d}",
        metadata=Metadata(name="log ✓.txt", content_type="text/plain", lines=lines, labels={"a": "b"}, context="c"),
        visibility=Visibility.ATOMIC,
        created_at=1234.5,
        token_hash=bytes(range(32)),
        principal="somebody",
        idempotency_key="key",
        length=7,
        sha256=bytes(32),
    )


def _text(size: int, seed: int = 1) -> bytes:
    """Return bytes of which about one in sixteen is a newline."""
    return random.Random(seed).randbytes(size).translate(bytes(10 if byte % 16 == 0 else byte for byte in range(256)))


def _committed(outcome: Outcome) -> Snapshot:
    assert isinstance(outcome, Committed)
    return outcome.snapshot


@pytest.mark.asyncio
class StorageContract:
    """Subclass it, name the subclass ``Test…`` and implement the hooks, which bypass the code under test."""

    def new_storage(self, folder: Path) -> AbstractAsyncContextManager[Storage]:
        """Return a context in which a started, empty storage exists; it is closed at the end.

        Args:
            folder: A folder for this storage alone, which need not exist.
        """
        raise NotImplementedError

    def after_kill(self, storage: Storage, folder: Path) -> AbstractAsyncContextManager[Storage]:
        """Return a context in which a started storage exists on what would be left if the server died now.

        ``storage`` goes on living beside it. Skip the test where nothing outlives the server.

        Args:
            storage: The storage whose server dies.
            folder: A folder for the new storage alone, which need not exist.
        """
        raise NotImplementedError

    def head(self, data: bytes) -> bytes:
        """Return the head of ``data``, computed from its definition; 16 bytes."""
        raise NotImplementedError

    def spine(self, data: bytes) -> bytes:
        """Return the spine over ``data``, which is a whole number of blocks; 16 bytes."""
        raise NotImplementedError

    def chunk_hash(self, data: bytes) -> bytes:
        """Return XXH3-64 of ``data``; 8 bytes."""
        raise NotImplementedError

    async def stored_bytes(self, storage: Storage, id: str) -> bytes:
        """Return the bytes that are stored of a resource, announced or not."""
        raise NotImplementedError

    async def remnants(self, storage: Storage, id: str) -> Collection[str]:
        """Return the names of all that is left of a resource anywhere."""
        raise NotImplementedError

    async def cut_bytes(self, storage: Storage, id: str, size: int) -> None:
        """Damage a resource: lose its stored bytes from ``size`` on, without telling the storage."""
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def storage(self, tmp_path: Path) -> AsyncGenerator[Storage, None]:
        folder = tmp_path / "storage"
        async with self.new_storage(folder) as storage:
            yield storage

    @pytest_asyncio.fixture
    async def id(self, storage: Storage) -> str:
        """Return the id of a new resource with line access."""
        descriptor = _descriptor()
        await storage.create(descriptor)
        return descriptor.id

    def _check(self, snapshot: Snapshot, data: bytes, state: ResourceState, *, lines: bool = True) -> None:
        assert snapshot.state is state
        assert snapshot.size == len(data)
        assert snapshot.head == self.head(data)
        assert snapshot.newlines == (data.count(b"\n") if lines else 0)
        assert snapshot.open_line is (lines and bool(data) and not data.endswith(b"\n"))

    # Creating and describing.

    async def test_a_new_resource_is_empty_and_initiated(self, storage: Storage) -> None:
        snapshot = await storage.create(_descriptor())
        assert snapshot == await storage.load(_descriptor().id)
        assert snapshot.epoch == 0
        assert snapshot.reason is None
        self._check(snapshot, b"", ResourceState.INITIATED)
        assert snapshot.head == _EMPTY_HEAD

    async def test_a_description_comes_back_as_it_was_given(self, storage: Storage) -> None:
        bare = Descriptor(
            id="7" * 32,
            metadata=Metadata(name="x"),
            visibility=Visibility.LIVE,
            created_at=0.0,
            token_hash=bytes(32),
            principal="",
        )
        for descriptor in (_descriptor(), bare):
            await storage.create(descriptor)
            assert await storage.describe(descriptor.id) == descriptor

    async def test_a_token_is_replaced_and_nothing_else(self, storage: Storage, id: str) -> None:
        before = await storage.load(id)
        await storage.replace_token(id, b"x" * 32)
        assert await storage.describe(id) == replace(_descriptor(), token_hash=b"x" * 32)
        assert await storage.load(id) == before

    async def test_an_unknown_id_is_not_found(self, storage: Storage) -> None:
        calls = (
            storage.describe(_UNKNOWN),
            storage.replace_token(_UNKNOWN, bytes(32)),
            storage.load(_UNKNOWN),
            storage.open(_UNKNOWN),
            storage.read(_UNKNOWN, 0, 1),
            storage.boundary(_UNKNOWN, 0),
            storage.boundary_of_newline(_UNKNOWN, 1, 0),
            storage.delete(_UNKNOWN),
        )
        for call in calls:
            with pytest.raises(NotFound):
                await call
        assert storage.read_cached(_UNKNOWN, 0, 1) is None

    async def test_all_ids_are_listed(self, storage: Storage) -> None:
        descriptors = [_descriptor(number) for number in range(20)]
        for descriptor in descriptors:
            await storage.create(descriptor)
        listed = [listed async for listed in storage.ids()]
        assert sorted(listed) == [descriptor.id for descriptor in descriptors]

    async def test_listing_leaves_creations_that_are_under_way_alone(self, storage: Storage) -> None:
        async def list_all() -> None:
            async for _ in storage.ids():
                pass

        await asyncio.gather(*(storage.create(_descriptor(number)) for number in range(20)), list_all(), list_all())
        assert len([listed async for listed in storage.ids()]) == 20

    # Writing.

    async def test_opening_raises_epoch_and_version(self, storage: Storage, id: str) -> None:
        before = await storage.load(id)
        for epoch in (1, 2, 3):
            writer = await storage.open(id)
            assert writer.epoch == writer.snapshot.epoch == epoch
            assert writer.snapshot.version > before.version
            assert writer.snapshot == await storage.load(id)
            before = writer.snapshot
            await writer.close()
        self._check(before, b"", ResourceState.INITIATED)

    @pytest.mark.parametrize("lines", [True, False])
    async def test_announced_is_what_was_appended_however_it_was_cut(self, storage: Storage, lines: bool) -> None:
        descriptor = _descriptor(lines=lines)
        await storage.create(descriptor)
        writer = await storage.open(descriptor.id)
        sizes = (1, 10, BLOCK_SIZE - 11, 1, BLOCK_SIZE - 1, 2 * BLOCK_SIZE, 5, 3 * BLOCK_SIZE + 7, 1_000_000, 99)
        data = b""
        version = writer.snapshot.version
        for number, size in enumerate(sizes):
            chunk = _text(size, number)
            data += chunk
            writer.append(chunk, hash=self.chunk_hash(chunk) if number % 2 else None)
            snapshot = _committed(await writer.checkpoint())
            self._check(snapshot, data, ResourceState.IN_PROGRESS, lines=lines)
            assert snapshot == writer.snapshot == await storage.load(descriptor.id)
            assert snapshot.version > version
            version = snapshot.version
        assert bytes(await storage.read(descriptor.id, 0, len(data))) == data
        assert await self.stored_bytes(storage, descriptor.id) == data

    async def test_one_checkpoint_announces_many_chunks_of_every_kind_of_buffer(
        self, storage: Storage, id: str
    ) -> None:
        writer = await storage.open(id)
        data = b""
        for number in range(600):
            chunk = _text(1 + 37 * number % 5000, number)
            data += chunk
            writer.append((chunk, bytearray(chunk), memoryview(chunk))[number % 3], hash=self.chunk_hash(chunk))
        self._check(_committed(await writer.checkpoint()), data, ResourceState.IN_PROGRESS)
        assert await self.stored_bytes(storage, id) == data

    async def test_what_is_appended_during_a_checkpoint_waits_for_the_next(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        first, second = _text(300_000, 1), _text(300_000, 2)
        writer.append(first)
        checkpoint = asyncio.ensure_future(writer.checkpoint())
        await asyncio.sleep(0)
        writer.append(second)
        self._check(_committed(await checkpoint), first, ResourceState.IN_PROGRESS)
        self._check(_committed(await writer.checkpoint()), first + second, ResourceState.IN_PROGRESS)

    async def test_stored_is_not_announced(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        before = writer.snapshot
        writer.append(_text(500_000))
        assert await writer.flush() == writer.stored == 500_000
        assert writer.snapshot == await storage.load(id) == before

    async def test_a_checkpoint_with_nothing_new_changes_nothing(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        assert _committed(await writer.checkpoint()) == writer.snapshot
        assert writer.snapshot.state is ResourceState.INITIATED
        writer.append(b"x")
        announced = _committed(await writer.checkpoint())
        assert _committed(await writer.checkpoint()) == announced
        assert await writer.flush() == 1

    async def test_a_cancelled_checkpoint_leaves_the_writer_usable(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        data = b""
        for number in range(10):
            chunk = _text(200_000, number)
            data += chunk
            writer.append(chunk)
            checkpoint = asyncio.ensure_future(writer.checkpoint())
            await asyncio.sleep(0)
            checkpoint.cancel()
            await asyncio.gather(checkpoint, return_exceptions=True)
        self._check(_committed(await writer.checkpoint()), data, ResourceState.IN_PROGRESS)

    @pytest.mark.parametrize("good", [0, 10, 300_000])
    @pytest.mark.parametrize("bad", [10, 300_000])
    async def test_a_chunk_without_its_hash_is_neither_stored_nor_shown(
        self, storage: Storage, id: str, good: int, bad: int
    ) -> None:
        writer = await storage.open(id)
        data = _text(good)
        if good:
            writer.append(data, hash=self.chunk_hash(data))
        writer.append(b"?" * bad, hash=bytes(8))
        writer.append(b"!" * bad, hash=self.chunk_hash(b"!" * bad))
        with pytest.raises(IntegrityError) as raised:
            await writer.checkpoint()
        assert raised.value.offset == good
        state = ResourceState.IN_PROGRESS if good else ResourceState.INITIATED
        self._check(_committed(await writer.checkpoint()), data, state)
        assert await self.stored_bytes(storage, id) == data
        with pytest.raises(IntegrityError):
            await writer.flush()
        with pytest.raises(IntegrityError):
            await writer.complete()
        self._check(await storage.load(id), data, state)
        self._check(_committed(await writer.fail("bad chunk")), data, ResourceState.FAILED)

    async def test_a_flush_tells_of_a_bad_chunk_too(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        writer.append(b"good")
        writer.append(b"bad", hash=bytes(8))
        with pytest.raises(IntegrityError):
            await writer.flush()
        self._check(_committed(await writer.checkpoint()), b"good", ResourceState.IN_PROGRESS)

    # Ending.

    @pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, 3 * BLOCK_SIZE + 1])
    async def test_complete_commits_everything_and_is_final(self, storage: Storage, id: str, size: int) -> None:
        writer = await storage.open(id)
        data = _text(size)
        if size:
            writer.append(data)
        final = _committed(await writer.complete())
        self._check(final, data, ResourceState.COMPLETED)
        assert final.reason is None
        writer.append(b"more")
        assert await writer.checkpoint() == Ended(final)
        assert await writer.complete() == Ended(final)
        assert await writer.fail("too late") == Ended(final)
        with pytest.raises(AlreadyTerminal):
            await storage.open(id)
        await writer.close()
        assert await writer.checkpoint() == Ended(final)
        assert await storage.load(id) == final
        assert await self.stored_bytes(storage, id) == data
        with pytest.raises(AlreadyTerminal):
            await storage.open(id)

    async def test_fail_commits_what_is_stored(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        data = _text(400_000)
        writer.append(data)
        await writer.flush()
        final = _committed(await writer.fail("no more"))
        self._check(final, data, ResourceState.FAILED)
        assert final.reason == "no more"
        assert await writer.complete() == Ended(final)
        await writer.close()
        assert await storage.load(id) == final
        assert bytes(await storage.read(id, 0, len(data))) == data

    async def test_what_a_failure_drops_is_a_tail(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        data = _text(3_000_000)
        for start in range(0, len(data), 100_000):
            writer.append(data[start : start + 100_000])
        final = _committed(await writer.fail("interrupted"))
        self._check(final, data[: final.size], ResourceState.FAILED)
        assert await self.stored_bytes(storage, id) == data[: final.size]

    async def test_a_resource_may_fail_before_its_first_byte(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        self._check(_committed(await writer.fail("gave up")), b"", ResourceState.FAILED)

    @pytest.mark.parametrize(
        ("reason", "kept"), [("", ""), ("a" * 300, "a" * 256), ("é" * 200, "é" * 128), ("xé" * 200, "xé" * 85 + "x")]
    )
    async def test_a_reason_is_cut_to_256_bytes(self, storage: Storage, id: str, reason: str, kept: str) -> None:
        writer = await storage.open(id)
        await writer.fail(reason)
        await writer.close()
        assert (await storage.load(id)).reason == kept

    # Sessions.

    async def test_a_newer_writer_fences_the_older_one(self, storage: Storage, id: str) -> None:
        older = await storage.open(id)
        older.append(b"announced\n")
        await older.checkpoint()
        older.append(b"stored")
        await older.flush()
        older.append(b"handed over")
        newer = await storage.open(id)
        self._check(newer.snapshot, b"announced\n", ResourceState.IN_PROGRESS)
        older.append(b"too late")
        assert await older.checkpoint() == FencedOff(newer.epoch)
        assert await older.complete() == FencedOff(newer.epoch)
        assert await older.fail("fenced") == FencedOff(newer.epoch)
        assert await storage.load(id) == newer.snapshot
        newer.append(b"continued")
        self._check(_committed(await newer.checkpoint()), b"announced\ncontinued", ResourceState.IN_PROGRESS)
        assert await older.checkpoint() == FencedOff(newer.epoch)
        await older.close()
        self._check(_committed(await newer.complete()), b"announced\ncontinued", ResourceState.COMPLETED)
        assert await self.stored_bytes(storage, id) == b"announced\ncontinued"

    async def test_taking_over_in_the_middle_of_an_upload_leaves_a_prefix(self, storage: Storage, id: str) -> None:
        data = _text(2_000_000)
        size = 0
        waiting: list[asyncio.Future[Outcome]] = []
        for epoch in range(1, 6):
            writer = await storage.open(id)
            assert writer.epoch == epoch
            self._check(
                writer.snapshot,
                data[: writer.snapshot.size],
                ResourceState.IN_PROGRESS if writer.snapshot.size else ResourceState.INITIATED,
            )
            assert writer.snapshot.size >= size
            for start in range(writer.snapshot.size, writer.snapshot.size + 300_000, 60_000):
                writer.append(data[start : start + 60_000])
                waiting.append(asyncio.ensure_future(writer.checkpoint()))
                await asyncio.sleep(0)
            size = writer.snapshot.size
        for outcome in await asyncio.gather(*waiting):
            assert isinstance(outcome, Committed | FencedOff)
        last = await storage.open(id)
        last.append(data[last.snapshot.size :])
        self._check(_committed(await last.complete()), data, ResourceState.COMPLETED)
        assert bytes(await storage.read(id, 0, len(data))) == data

    async def test_opens_at_the_same_time_each_get_their_own_epoch(self, storage: Storage, id: str) -> None:
        writers = await asyncio.gather(*(storage.open(id) for _ in range(5)))
        assert sorted(writer.epoch for writer in writers) == [1, 2, 3, 4, 5]
        for writer in writers:
            outcome = await writer.complete()
            assert isinstance(outcome, Committed if writer.epoch == 5 else FencedOff)

    async def test_a_cancelled_open_leaves_the_resource_usable(self, storage: Storage, id: str) -> None:
        opening = asyncio.ensure_future(storage.open(id))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        writer = await storage.open(id)
        writer.append(b"x")
        self._check(_committed(await writer.complete()), b"x", ResourceState.COMPLETED)

    async def test_closing_announces_nothing(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        writer.append(b"announced")
        announced = _committed(await writer.checkpoint())
        writer.append(_text(100_000))
        await writer.close()
        await writer.close()
        assert await storage.load(id) == announced
        following = await storage.open(id)
        assert await self.stored_bytes(storage, id) == b"announced"
        following.append(b"!")
        self._check(_committed(await following.complete()), b"announced!", ResourceState.COMPLETED)

    async def test_many_uploads_run_at_once(self, storage: Storage) -> None:
        async def upload(number: int) -> None:
            descriptor = _descriptor(number)
            await storage.create(descriptor)
            writer = await storage.open(descriptor.id)
            data = b""
            for step in range(20):
                chunk = _text(1 + (number * 7919 + step * 104_729) % 90_000, number * 100 + step)
                data += chunk
                writer.append(chunk, hash=self.chunk_hash(chunk))
                if step % 3 == 0:
                    await writer.checkpoint()
            self._check(_committed(await writer.complete()), data, ResourceState.COMPLETED)
            await writer.close()
            assert bytes(await storage.read(descriptor.id, 0, len(data))) == data

        await asyncio.gather(*(upload(number) for number in range(30)))

    # Reading.

    async def _with_bytes(self, storage: Storage, id: str, data: bytes) -> ResourceWriter:
        writer = await storage.open(id)
        writer.append(data)
        await writer.checkpoint()
        return writer

    async def test_any_range_is_read_exactly(self, storage: Storage, id: str) -> None:
        data = _text(3 * BLOCK_SIZE + 100)
        writer = await self._with_bytes(storage, id, data)
        for closed in (False, True):
            if closed:
                await writer.close()
            for start, end in (
                (0, 1),
                (0, len(data)),
                (BLOCK_SIZE - 1, BLOCK_SIZE + 1),
                (17, 2 * BLOCK_SIZE + 17),
                (len(data) - 1, len(data)),
            ):
                assert bytes(await storage.read(id, start, end)) == data[start:end]
                cached = storage.read_cached(id, start, end)
                if cached is not None:
                    assert len(cached) >= 1
                    assert bytes(cached) == data[start : start + len(cached)]

    async def test_what_was_read_does_not_change_afterwards(self, storage: Storage, id: str) -> None:
        writer = await self._with_bytes(storage, id, b"first")
        read = await storage.read(id, 0, 5)
        cached = storage.read_cached(id, 0, 5)
        writer.append(b"second" * 1000)
        await writer.checkpoint()
        await storage.delete(id)
        assert bytes(read) == b"first"
        assert cached is None or bytes(cached) == b"first"[: len(cached)]

    async def test_what_was_appended_may_be_reused_once_it_is_stored(self, storage: Storage, id: str) -> None:
        buffer = bytearray(b"first")
        writer = await self._with_bytes(storage, id, buffer)  # type: ignore[arg-type]
        buffer[:] = b"XXXXX"
        self._check(_committed(await writer.complete()), b"first", ResourceState.COMPLETED)
        assert bytes(await storage.read(id, 0, 5)) == b"first"

    async def test_lost_bytes_are_told(self, storage: Storage, id: str) -> None:
        data = _text(2 * BLOCK_SIZE + 100)
        writer = await self._with_bytes(storage, id, data)
        await writer.complete()
        await writer.close()
        await self.cut_bytes(storage, id, BLOCK_SIZE + 50)
        with pytest.raises(DamagedBlock) as raised:
            await storage.read(id, 0, len(data))
        assert raised.value.offset == BLOCK_SIZE
        assert bytes(await storage.read(id, 0, BLOCK_SIZE)) == data[:BLOCK_SIZE]

    async def test_boundaries_know_what_is_below_them(self, storage: Storage, id: str) -> None:
        data = _text(4 * BLOCK_SIZE + 100)
        writer = await self._with_bytes(storage, id, data)
        for closed in (False, True):
            if closed:
                await writer.close()
            for offset in (0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE, len(data)):
                boundary = await storage.boundary(id, offset)
                below = data[: offset // BLOCK_SIZE * BLOCK_SIZE]
                assert boundary.offset == len(below)
                assert boundary.newlines == below.count(b"\n")
                assert boundary.spine == self.spine(below)

    async def test_boundaries_are_found_by_newline(self, storage: Storage, id: str) -> None:
        # One newline early, a block without any, many, one that is the last byte of its block.
        blocks = [b"\n".ljust(BLOCK_SIZE, b"a"), b"b" * BLOCK_SIZE, _text(BLOCK_SIZE), b"c" * (BLOCK_SIZE - 1) + b"\n"]
        data = b"".join(blocks) + b"d\nd"
        await self._with_bytes(storage, id, data)
        below = [data.count(b"\n", 0, number * BLOCK_SIZE) for number in range(len(blocks) + 1)]
        total = data.count(b"\n")
        for size in (len(data), 3 * BLOCK_SIZE, 3 * BLOCK_SIZE - 1, BLOCK_SIZE, 1):
            for newlines in {1, 2, 3, below[3] - 1, below[3], below[3] + 1, total - 1, total}:
                candidates = [n for n in range(size // BLOCK_SIZE + 1) if below[n] < newlines]
                boundary = await storage.boundary_of_newline(id, newlines, size)
                assert boundary.offset == candidates[-1] * BLOCK_SIZE
                assert boundary.newlines == below[candidates[-1]]
                assert boundary.spine == self.spine(data[: boundary.offset])

    async def test_reading_goes_on_beside_writing(self, storage: Storage, id: str) -> None:
        data = _text(1_500_000)
        writer = await storage.open(id)
        ended = False

        async def read_all() -> bytes:
            got = b""
            while not ended or len(got) < writer.snapshot.size:
                size = writer.snapshot.size
                if size > len(got):
                    piece = storage.read_cached(id, len(got), size) or await storage.read(id, len(got), size)
                    got += bytes(piece)
                await asyncio.sleep(0)
            return got

        readers = [asyncio.ensure_future(read_all()) for _ in range(3)]
        for start in range(0, len(data), 70_000):
            writer.append(data[start : start + 70_000])
            await writer.checkpoint()
            await asyncio.sleep(0)
        ended = True
        for got in await asyncio.gather(*readers):
            assert got == data

    # Deleting.

    async def test_nothing_is_left_of_a_deleted_resource(self, storage: Storage, id: str) -> None:
        writer = await self._with_bytes(storage, id, _text(300_000))
        await storage.read(id, 0, 10)
        await writer.close()
        await storage.delete(id)
        assert not await self.remnants(storage, id)
        for call in (storage.load(id), storage.describe(id), storage.open(id), storage.read(id, 0, 1)):
            with pytest.raises(NotFound):
                await call
        with pytest.raises(NotFound):
            await storage.delete(id)
        assert storage.read_cached(id, 0, 1) is None
        assert [listed async for listed in storage.ids()] == []

    async def test_deleting_fences_the_open_writer(self, storage: Storage, id: str) -> None:
        writer = await self._with_bytes(storage, id, b"x")
        writer.append(b"y" * 500_000)
        waiting = asyncio.ensure_future(writer.checkpoint())
        await asyncio.sleep(0)
        await storage.delete(id)
        assert isinstance(await waiting, Committed | FencedOff)
        writer.append(b"z")
        assert isinstance(await writer.checkpoint(), FencedOff)
        assert isinstance(await writer.complete(), FencedOff)
        await writer.close()
        assert not await self.remnants(storage, id)

    async def test_deleting_beside_reading_leaves_nothing(self, storage: Storage, id: str) -> None:
        data = _text(300_000)
        await self._with_bytes(storage, id, data)
        reads = [asyncio.ensure_future(storage.read(id, 0, len(data))) for _ in range(10)]
        await asyncio.sleep(0)
        await storage.delete(id)
        for result in await asyncio.gather(*reads, return_exceptions=True):
            if isinstance(result, BaseException):
                assert isinstance(result, NotFound)
            else:
                assert bytes(result) == data
        assert not await self.remnants(storage, id)
        assert storage.read_cached(id, 0, 1) is None

    # What a killed server leaves.

    async def test_an_announced_size_survives_a_kill(self, storage: Storage, id: str, tmp_path: Path) -> None:
        writer = await storage.open(id)
        data = b""
        for number, size in enumerate((5, BLOCK_SIZE, 300_000, 17)):
            chunk = _text(size, number)
            data += chunk
            writer.append(chunk)
            announced = _committed(await writer.checkpoint())
            writer.append(b"stored only" * 20_000)
            await writer.flush()
            folder = tmp_path / f"killed-{number}"
            async with self.after_kill(storage, folder) as survivor:
                assert await survivor.load(id) == announced
                assert await survivor.describe(id) == _descriptor()
                continued = await survivor.open(id)
                assert continued.epoch == announced.epoch + 1
                assert await self.stored_bytes(survivor, id) == data
                continued.append(b"\nend")
                self._check(_committed(await continued.complete()), data + b"\nend", ResourceState.COMPLETED)
                assert bytes(await survivor.read(id, 0, len(data) + 4)) == data + b"\nend"
            writer = await storage.open(id)

    async def test_an_end_survives_a_kill(self, storage: Storage, tmp_path: Path) -> None:
        finals: dict[str, Snapshot] = {}
        for number, failing in ((1, False), (2, True)):
            await storage.create(_descriptor(number))
            writer = await self._with_bytes(storage, _descriptor(number).id, b"some\nbytes")
            outcome = await (writer.fail("why") if failing else writer.complete())
            finals[_descriptor(number).id] = _committed(outcome)
        folder = tmp_path / "killed"
        async with self.after_kill(storage, folder) as survivor:
            for id, final in finals.items():  # noqa: A001 - what it is.
                assert await survivor.load(id) == final
                assert bytes(await survivor.read(id, 0, 10)) == b"some\nbytes"
                with pytest.raises(AlreadyTerminal):
                    await survivor.open(id)

    async def test_a_deletion_survives_a_kill(self, storage: Storage, id: str, tmp_path: Path) -> None:
        await storage.create(_descriptor(2))
        await storage.delete(id)
        folder = tmp_path / "killed"
        async with self.after_kill(storage, folder) as survivor:
            assert [listed async for listed in survivor.ids()] == [_descriptor(2).id]
            assert not await self.remnants(survivor, id)

    # The storage as a whole.

    async def test_it_says_what_it_survives(self, storage: Storage) -> None:
        assert isinstance(storage.durability, Durability)

    async def test_closing_closes_open_writers(self, storage: Storage, id: str) -> None:
        writer = await self._with_bytes(storage, id, b"x")
        writer.append(b"y")
        await storage.close()
        await writer.close()
        await storage.close()
        assert writer.snapshot.size == 1
