"""The storage contract over memory and filesystem."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncGenerator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from xxhash import xxh3_64_digest, xxh3_128_digest

from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._memory_storage import MemoryStorage
from tailrace_server_api import BLOCK_SIZE, Durability, Storage
from tailrace_server_api.contracts.storage import StorageContract


class DefinedHashes:
    """Hashes computed straight from their definitions."""

    def spine(self, data: bytes) -> bytes:
        spine = bytes(16)
        for start in range(0, len(data), BLOCK_SIZE):
            spine = xxh3_128_digest(spine + xxh3_128_digest(data[start : start + BLOCK_SIZE]))
        return spine

    def head(self, data: bytes) -> bytes:
        full = len(data) // BLOCK_SIZE * BLOCK_SIZE
        rest = xxh3_128_digest(data[full:]) if len(data) > full else b""
        return xxh3_128_digest(self.spine(data[:full]) + rest + len(data).to_bytes(8, "little"))

    def chunk_hash(self, data: bytes) -> bytes:
        if len(data) <= BLOCK_SIZE:
            return xxh3_64_digest(data)
        parts = [data[start : start + BLOCK_SIZE] for start in range(0, len(data), BLOCK_SIZE)]
        return xxh3_64_digest(b"".join(xxh3_128_digest(part) for part in parts))


class TestMemoryStorage(DefinedHashes, StorageContract):
    @asynccontextmanager
    async def new_storage(self, folder: Path) -> AsyncGenerator[Storage, None]:
        storage = MemoryStorage()
        await storage.start()
        yield storage
        await storage.close()

    def after_kill(self, storage: Storage, folder: Path) -> AbstractAsyncContextManager[Storage]:
        pytest.skip("memory does not outlive its process")

    async def stored_bytes(self, storage: Storage, id: str) -> bytes:
        assert isinstance(storage, MemoryStorage)
        return b"".join(storage._resources[id].blocks)

    async def remnants(self, storage: Storage, id: str) -> Collection[str]:
        assert isinstance(storage, MemoryStorage)
        taken = storage._budget._limit - storage._budget._left - sum(r.stored for r in storage._resources.values())
        return [name for name in storage._resources if name == id] + (["bytes"] if taken else [])

    async def cut_bytes(self, storage: Storage, id: str, size: int) -> None:
        assert isinstance(storage, MemoryStorage)
        blocks = storage._resources[id].blocks
        del blocks[size // BLOCK_SIZE + 1 :]
        del blocks[-1][size % BLOCK_SIZE :]

    async def damage_byte(self, storage: Storage, id: str, offset: int) -> None:
        assert isinstance(storage, MemoryStorage)
        storage._resources[id].blocks[offset // BLOCK_SIZE][offset % BLOCK_SIZE] ^= 1


class FilesystemContract(DefinedHashes, StorageContract):
    durability: Durability

    @asynccontextmanager
    async def new_storage(self, folder: Path) -> AsyncGenerator[Storage, None]:
        storage = FilesystemStorage(folder, durability=self.durability)
        await storage.start()
        yield storage
        await storage.close()

    @asynccontextmanager
    async def after_kill(self, storage: Storage, folder: Path) -> AsyncGenerator[Storage, None]:
        # What a process has written is in the system's hands; a copy of it is what a kill would leave.
        await asyncio.to_thread(shutil.copytree, self._root(storage), folder)
        async with self.new_storage(folder) as survivor:
            yield survivor

    async def stored_bytes(self, storage: Storage, id: str) -> bytes:
        return await asyncio.to_thread((self._root(storage) / "resources" / id / "data").read_bytes)

    async def remnants(self, storage: Storage, id: str) -> Collection[str]:
        return await asyncio.to_thread(_names_of, id, self._root(storage))

    async def cut_bytes(self, storage: Storage, id: str, size: int) -> None:
        await asyncio.to_thread(os.truncate, self._root(storage) / "resources" / id / "data", size)

    async def damage_byte(self, storage: Storage, id: str, offset: int) -> None:
        def flip() -> None:
            with (self._root(storage) / "resources" / id / "data").open("r+b") as file:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 1]))

        await asyncio.to_thread(flip)

    @staticmethod
    def _root(storage: Storage) -> Path:
        assert isinstance(storage, FilesystemStorage)
        return storage._layout._root


def _names_of(id: str, root: Path) -> list[str]:
    """Return the paths that name a resource: files on disk, and files that are open though deleted."""
    paths = [str(path) for path in root.rglob("*")]
    for fd in os.listdir("/proc/self/fd"):
        # The descriptor that listed the folder is gone by now.
        with contextlib.suppress(FileNotFoundError):
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in paths if path.startswith(str(root)) and id in path]


class TestFilesystemStorage(FilesystemContract):
    durability = Durability.OS


class TestSyncedFilesystemStorage(FilesystemContract):
    durability = Durability.FSYNC
