"""What the memory storage does beside the contract: it is bounded."""

import pytest

from tailrace_common_api import Metadata, ResourceState, StorageFull, Visibility
from tailrace_impl_common import head_of
from tailrace_impl_server._memory_storage import MemoryStorage
from tailrace_server_api import BLOCK_SIZE, Committed, Descriptor


def descriptor(number: int) -> Descriptor:
    return Descriptor(
        id=f"{number:032d}",
        metadata=Metadata(name="x"),
        visibility=Visibility.LIVE,
        created_at=1.0,
        token_hash=bytes(32),
        principal="",
    )


async def test_a_full_memory_refuses_and_keeps_what_was_announced() -> None:
    storage = MemoryStorage(max_bytes=BLOCK_SIZE + 10)
    await storage.start()
    await storage.create(descriptor(1))
    writer = await storage.open(descriptor(1).id)
    writer.append(b"x" * BLOCK_SIZE)
    await writer.checkpoint()
    writer.append(b"y" * 11)
    writer.append(b"z")
    for _ in range(2):
        with pytest.raises(StorageFull):
            await writer.checkpoint()
    assert (await storage.load(descriptor(1).id)).size == BLOCK_SIZE
    continued = await storage.open(descriptor(1).id)
    continued.append(b"y" * 10)
    outcome = await continued.complete()
    assert isinstance(outcome, Committed)
    assert outcome.snapshot.head == head_of(b"x" * BLOCK_SIZE + b"y" * 10)
    await storage.close()


async def test_a_resource_can_fail_in_a_full_memory() -> None:
    storage = MemoryStorage(max_bytes=10)
    await storage.start()
    await storage.create(descriptor(1))
    writer = await storage.open(descriptor(1).id)
    writer.append(b"x" * 10)
    writer.append(b"y")
    with pytest.raises(StorageFull):
        await writer.flush()
    outcome = await writer.fail("full")
    assert isinstance(outcome, Committed)
    assert (outcome.snapshot.state, outcome.snapshot.size) == (ResourceState.FAILED, 10)
    await storage.close()


async def test_room_comes_back_with_deletions_and_takeovers() -> None:
    storage = MemoryStorage(max_bytes=10)
    await storage.start()
    for number in range(5):
        await storage.create(descriptor(number))
        for _ in range(3):
            writer = await storage.open(descriptor(number).id)
            writer.append(b"x" * 10)
            assert await writer.flush() == 10
        await storage.delete(descriptor(number).id)
    await storage.close()
