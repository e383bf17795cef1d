"""A manager on real storage, an uploader and a follower that talk to it: what the tests of the manager share."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from impl_server_gated_storage import GatedStorage, Gates

from tailrace_common_api import Metadata, Status, TailraceError
from tailrace_impl_common import HeadHasher, chunk_hash
from tailrace_impl_server import (
    FilesystemStorage,
    LocalEventBus,
    Manager,
    MemoryCatalog,
    MemoryStorage,
    ServerSettings,
    SqliteCatalog,
)
from tailrace_server_api import Catalog, ResourceReader, ServerHooks, Storage, UploadIngest

LINES = Metadata(name="build.log", content_type="text/plain", lines=True)
MIB = 1024 * 1024


class Bench:
    """Starts managers on one place, one after the other."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.manager: Manager
        self.storage: GatedStorage
        self.catalog: Catalog
        self.hooks: ServerHooks | None = None
        self._running = False

    async def start(self, **options: object) -> Manager:
        settings = ServerSettings.from_options({"poll_interval": 0.05, **options})
        inner: Storage
        if self.path is None:
            inner = MemoryStorage(max_bytes=settings.memory_bytes)
            self.catalog = MemoryCatalog()
        else:
            inner = FilesystemStorage(self.path, durability=settings.durability)
            self.catalog = SqliteCatalog(self.path / "catalog.sqlite", durability=settings.durability)
        self.storage = GatedStorage(inner)
        self.manager = Manager(self.storage, self.catalog, LocalEventBus(), settings, hooks=self.hooks)
        await self.manager.start()
        self._running = True
        return self.manager

    async def close(self) -> None:
        if self._running:
            self._running = False
            await self.manager.close()

    async def restart(self, **options: object) -> Manager:
        await self.close()
        return await self.start(**options)

    @property
    def gates(self) -> Gates:
        return self.storage.gates


class Uploader:
    """What a transport's conversation does with a session."""

    def __init__(self, ingest: UploadIngest, sent: bytes = b"") -> None:
        self.ingest = ingest
        self.id = ingest.id
        self._hasher = HeadHasher()
        self._hasher.update(sent)
        assert ingest.snapshot.size == len(sent)
        self._offset = len(sent)

    @property
    def size(self) -> int:
        return self._hasher.size

    @property
    def head(self) -> bytes:
        return self._hasher.head()

    async def send(self, data: bytes, *, chunk_size: int = MIB) -> None:
        for start in range(0, len(data), chunk_size):
            chunk = data[start : start + chunk_size]
            while (progress := self.ingest.progress).until < self._offset + len(chunk):
                await self.ingest.changed(progress)
            self.ingest.submit(chunk, hash=chunk_hash(chunk))
            self._offset += len(chunk)
            self._hasher.update(chunk)

    async def announced(self, size: int | None = None) -> None:
        wanted = self.size if size is None else size
        while (progress := self.ingest.progress).checkpoint.size < wanted:
            await self.ingest.changed(progress)

    async def finish(self) -> Status:
        return await self.ingest.finish(size=self.size, head=self.head)


async def upload(manager: Manager, data: bytes, metadata: Metadata = LINES, *, chunk_size: int = MIB) -> Status:
    """Upload ``data`` as a completed resource."""
    uploader = Uploader(await manager.create(metadata))
    await uploader.send(data, chunk_size=chunk_size)
    return await uploader.finish()


@asynccontextmanager
async def reading(manager: Manager, id: str, token: str | None = None) -> AsyncGenerator[ResourceReader, None]:
    reader = await manager.open_reader(id, token=token)
    try:
        yield reader
    finally:
        reader.close()


async def follow(reader: ResourceReader, *, until: Callable[[ResourceReader], bool], piece: int = MIB) -> bytes:
    """Return what a follower gets from offset 0 until a condition holds and everything announced was read."""
    data = bytearray()
    while True:
        snapshot = reader.snapshot
        while len(data) < snapshot.size:
            end = min(snapshot.size, len(data) + piece)
            got = reader.try_read(len(data), end) or await reader.read(len(data), end)
            assert 0 < len(got.data) <= end - len(data)
            assert got.hash == chunk_hash(got.data)
            data += got.data
        if until(reader) and reader.snapshot.version == snapshot.version:
            return bytes(data)
        await reader.changed(snapshot.version)


def ended(reader: ResourceReader) -> bool:
    return reader.snapshot.state.terminal


async def read_all(manager: Manager, id: str, *, piece: int = MIB) -> bytes:
    """Return all that is announced."""
    async with reading(manager, id) as reader:
        size = reader.snapshot.size
        return await follow(reader, until=lambda at: at.snapshot.size >= size, piece=piece)


async def turned(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until a condition holds that has no event of its own, or the test's time is up."""
    while not condition():  # noqa: ASYNC110 - the condition is the state of the objects under test.
        await asyncio.sleep(0.001)


async def refusal(ingest: UploadIngest) -> TailraceError:
    """Return the error that ends a session."""
    try:
        while True:
            await ingest.changed(ingest.progress)
    except TailraceError as error:
        return error


async def last_status(manager: Manager, id: str, token: str | None = None) -> Status:
    """Return the terminal status, once it is there."""
    statuses = [status async for status in manager.statuses(id, token=token)]
    return statuses[-1]
