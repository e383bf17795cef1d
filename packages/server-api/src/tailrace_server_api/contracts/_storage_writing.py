"""What the writers of a storage must do."""

from __future__ import annotations

import asyncio

import pytest

from tailrace_common_api import (
    AlreadyTerminal,
    IntegrityError,
    ResourceState,
)
from tailrace_server_api import (
    BLOCK_SIZE,
    Committed,
    Ended,
    FencedOff,
    Outcome,
    Storage,
)
from tailrace_server_api.contracts._storage_hooks import StorageHooks, committed, make_descriptor, text


@pytest.mark.asyncio
class StorageWritingContract(StorageHooks):
    """Appending, announcing, ending, and who may do it."""

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
        self.check(before, b"", ResourceState.INITIATED)

    @pytest.mark.parametrize("lines", [True, False])
    async def test_announced_is_what_was_appended_however_it_was_cut(self, storage: Storage, lines: bool) -> None:
        descriptor = make_descriptor(lines=lines)
        await storage.create(descriptor)
        writer = await storage.open(descriptor.id)
        sizes = (1, 10, BLOCK_SIZE - 11, 1, BLOCK_SIZE - 1, 2 * BLOCK_SIZE, 5, 3 * BLOCK_SIZE + 7, 1_000_000, 99)
        data = b""
        version = writer.snapshot.version
        for number, size in enumerate(sizes):
            chunk = text(size, number)
            data += chunk
            writer.append(chunk, hash=self.chunk_hash(chunk) if number % 2 else None)
            snapshot = committed(await writer.checkpoint())
            self.check(snapshot, data, ResourceState.IN_PROGRESS, lines=lines)
            assert snapshot == writer.snapshot == await storage.load(descriptor.id)
            assert snapshot.version > version
            version = snapshot.version
        assert self.bytes_of(await storage.read(descriptor.id, 0, len(data))) == data
        assert await self.stored_bytes(storage, descriptor.id) == data

    async def test_one_checkpoint_announces_many_chunks_of_every_kind_of_buffer(
        self, storage: Storage, id: str
    ) -> None:
        writer = await storage.open(id)
        data = b""
        for number in range(600):
            chunk = text(1 + 37 * number % 5000, number)
            data += chunk
            writer.append((chunk, bytearray(chunk), memoryview(chunk))[number % 3], hash=self.chunk_hash(chunk))
        self.check(committed(await writer.checkpoint()), data, ResourceState.IN_PROGRESS)
        assert await self.stored_bytes(storage, id) == data

    async def test_what_is_appended_during_a_checkpoint_waits_for_the_next(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        first, second = text(300_000, 1), text(300_000, 2)
        writer.append(first)
        checkpoint = asyncio.ensure_future(writer.checkpoint())
        await asyncio.sleep(0)
        writer.append(second)
        self.check(committed(await checkpoint), first, ResourceState.IN_PROGRESS)
        self.check(committed(await writer.checkpoint()), first + second, ResourceState.IN_PROGRESS)

    async def test_stored_is_not_announced(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        before = writer.snapshot
        writer.append(text(500_000))
        assert await writer.flush() == writer.stored == 500_000
        assert writer.snapshot == await storage.load(id) == before

    async def test_a_checkpoint_with_nothing_new_changes_nothing(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        assert committed(await writer.checkpoint()) == writer.snapshot
        assert writer.snapshot.state is ResourceState.INITIATED
        writer.append(b"x")
        announced = committed(await writer.checkpoint())
        assert committed(await writer.checkpoint()) == announced
        assert await writer.flush() == 1

    async def test_a_cancelled_checkpoint_leaves_the_writer_usable(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        data = b""
        for number in range(10):
            chunk = text(200_000, number)
            data += chunk
            writer.append(chunk)
            checkpoint = asyncio.ensure_future(writer.checkpoint())
            await asyncio.sleep(0)
            checkpoint.cancel()
            await asyncio.gather(checkpoint, return_exceptions=True)
        self.check(committed(await writer.checkpoint()), data, ResourceState.IN_PROGRESS)

    @pytest.mark.parametrize("good", [0, 10, 300_000])
    @pytest.mark.parametrize("bad", [10, 300_000])
    async def test_a_chunk_without_its_hash_is_neither_stored_nor_shown(
        self, storage: Storage, id: str, good: int, bad: int
    ) -> None:
        writer = await storage.open(id)
        data = text(good)
        if good:
            writer.append(data, hash=self.chunk_hash(data))
        writer.append(b"?" * bad, hash=bytes(8))
        writer.append(b"!" * bad, hash=self.chunk_hash(b"!" * bad))
        with pytest.raises(IntegrityError) as raised:
            await writer.checkpoint()
        assert raised.value.offset == good
        state = ResourceState.IN_PROGRESS if good else ResourceState.INITIATED
        self.check(committed(await writer.checkpoint()), data, state)
        assert await self.stored_bytes(storage, id) == data
        with pytest.raises(IntegrityError):
            await writer.flush()
        with pytest.raises(IntegrityError):
            await writer.complete()
        self.check(await storage.load(id), data, state)
        self.check(committed(await writer.fail("bad chunk")), data, ResourceState.FAILED)

    async def test_a_flush_tells_of_a_bad_chunk_too(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        writer.append(b"good")
        writer.append(b"bad", hash=bytes(8))
        with pytest.raises(IntegrityError):
            await writer.flush()
        self.check(committed(await writer.checkpoint()), b"good", ResourceState.IN_PROGRESS)

    # Ending.

    @pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, 3 * BLOCK_SIZE + 1])
    async def test_complete_commits_everything_and_is_final(self, storage: Storage, id: str, size: int) -> None:
        writer = await storage.open(id)
        data = text(size)
        if size:
            writer.append(data)
        final = committed(await writer.complete())
        self.check(final, data, ResourceState.COMPLETED)
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
        data = text(400_000)
        writer.append(data)
        await writer.flush()
        final = committed(await writer.fail("no more"))
        self.check(final, data, ResourceState.FAILED)
        assert final.reason == "no more"
        assert await writer.complete() == Ended(final)
        await writer.close()
        assert await storage.load(id) == final
        assert self.bytes_of(await storage.read(id, 0, len(data))) == data

    async def test_what_a_failure_drops_is_a_tail(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        data = text(3_000_000)
        for start in range(0, len(data), 100_000):
            writer.append(data[start : start + 100_000])
        final = committed(await writer.fail("interrupted"))
        self.check(final, data[: final.size], ResourceState.FAILED)
        assert await self.stored_bytes(storage, id) == data[: final.size]

    async def test_a_resource_may_fail_before_its_first_byte(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        self.check(committed(await writer.fail("gave up")), b"", ResourceState.FAILED)

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
        self.check(newer.snapshot, b"announced\n", ResourceState.IN_PROGRESS)
        older.append(b"too late")
        assert await older.checkpoint() == FencedOff(newer.epoch)
        assert await older.complete() == FencedOff(newer.epoch)
        assert await older.fail("fenced") == FencedOff(newer.epoch)
        assert await storage.load(id) == newer.snapshot
        newer.append(b"continued")
        self.check(committed(await newer.checkpoint()), b"announced\ncontinued", ResourceState.IN_PROGRESS)
        assert await older.checkpoint() == FencedOff(newer.epoch)
        await older.close()
        self.check(committed(await newer.complete()), b"announced\ncontinued", ResourceState.COMPLETED)
        assert await self.stored_bytes(storage, id) == b"announced\ncontinued"

    async def test_taking_over_in_the_middle_of_an_upload_leaves_a_prefix(self, storage: Storage, id: str) -> None:
        data = text(2_000_000)
        size = 0
        waiting: list[asyncio.Future[Outcome]] = []
        for epoch in range(1, 6):
            writer = await storage.open(id)
            assert writer.epoch == epoch
            self.check(
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
        self.check(committed(await last.complete()), data, ResourceState.COMPLETED)
        assert self.bytes_of(await storage.read(id, 0, len(data))) == data

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
        self.check(committed(await writer.complete()), b"x", ResourceState.COMPLETED)

    async def test_closing_announces_nothing(self, storage: Storage, id: str) -> None:
        writer = await storage.open(id)
        writer.append(b"announced")
        announced = committed(await writer.checkpoint())
        writer.append(text(100_000))
        await writer.close()
        await writer.close()
        assert await storage.load(id) == announced
        following = await storage.open(id)
        assert await self.stored_bytes(storage, id) == b"announced"
        following.append(b"!")
        self.check(committed(await following.complete()), b"announced!", ResourceState.COMPLETED)

    async def test_many_uploads_run_at_once(self, storage: Storage) -> None:
        async def upload(number: int) -> None:
            descriptor = make_descriptor(number)
            await storage.create(descriptor)
            writer = await storage.open(descriptor.id)
            data = b""
            for step in range(20):
                chunk = text(1 + (number * 7919 + step * 104_729) % 90_000, number * 100 + step)
                data += chunk
                writer.append(chunk, hash=self.chunk_hash(chunk))
                if step % 3 == 0:
                    await writer.checkpoint()
            self.check(committed(await writer.complete()), data, ResourceState.COMPLETED)
            await writer.close()
            assert self.bytes_of(await storage.read(descriptor.id, 0, len(data))) == data

        await asyncio.gather(*(upload(number) for number in range(30)))
