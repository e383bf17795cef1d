"""What the tests of a storage need, and what an implementation gives to them."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest_asyncio

from tailrace_common_api import (
    Metadata,
    ResourceState,
    Visibility,
)
from tailrace_server_api import (
    Buffer,
    Committed,
    Descriptor,
    Outcome,
    Piece,
    ResourceWriter,
    Snapshot,
    Storage,
)

EMPTY_HEAD = bytes.fromhex("10e45c7ce2292320743df94ee4c78a2a")
UNKNOWN = "v" * 32


def make_descriptor(number: int = 1, *, lines: bool = True) -> Descriptor:
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


def text(size: int, seed: int = 1) -> bytes:
    """Return bytes of which about one in sixteen is a newline."""
    return random.Random(seed).randbytes(size).translate(bytes(10 if byte % 16 == 0 else byte for byte in range(256)))


def committed(outcome: Outcome) -> Snapshot:
    assert isinstance(outcome, Committed)
    return outcome.snapshot


class StorageHooks:
    """What an implementation gives to its tests; the hooks bypass the code under test."""

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
        """Return the hash of ``data`` as a chunk, computed from its definition; 8 bytes."""
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

    async def damage_byte(self, storage: Storage, id: str, offset: int) -> None:
        """Damage a resource: change its stored byte at ``offset``, without telling the storage."""
        raise NotImplementedError

    def bytes_of(self, piece: Piece) -> bytes:
        """Return bytes that were read, which have their hash."""
        data = bytes(piece.data)
        assert piece.hash == self.chunk_hash(data)
        return data

    @pytest_asyncio.fixture
    async def storage(self, tmp_path: Path) -> AsyncGenerator[Storage, None]:
        folder = tmp_path / "storage"
        async with self.new_storage(folder) as storage:
            yield storage

    @pytest_asyncio.fixture
    async def id(self, storage: Storage) -> str:
        """Return the id of a new resource with line access."""
        descriptor = make_descriptor()
        await storage.create(descriptor)
        return descriptor.id

    def check(self, snapshot: Snapshot, data: bytes, state: ResourceState, *, lines: bool = True) -> None:
        assert snapshot.state is state
        assert snapshot.size == len(data)
        assert snapshot.head == self.head(data)
        assert snapshot.newlines == (data.count(b"\n") if lines else 0)
        assert snapshot.open_line is (lines and bool(data) and not data.endswith(b"\n"))

    async def with_bytes(self, storage: Storage, id: str, data: Buffer) -> ResourceWriter:
        writer = await storage.open(id)
        writer.append(data)
        await writer.checkpoint()
        return writer
