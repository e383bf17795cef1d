"""Resources as folders of files; see ``_filesystem_layout`` and ``_journal`` for what is on disk.

One process owns the data folder, so the announced state of a resource that is being written is the one that its writer
knows, and every other state is what recovery finds on disk. Everything that may wait for a disk runs in threads: the
writers' pool for bytes and journals, another for the rest. Changes to one resource exclude one another and run to their
end even when the caller is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from tailrace_common_api import (
    AlreadyTerminal,
    ConfigurationError,
    DamagedBlock,
    NotFound,
    ResourceState,
    StorageFailure,
)
from tailrace_impl_common import EMPTY_HEAD, HeadHasher, ReusableBuffers
from tailrace_impl_server._filesystem_files import FileCache, ResourceFiles
from tailrace_impl_server._filesystem_layout import Layout
from tailrace_impl_server._filesystem_reader import (
    ResidencyUnknownError,
    announced_slot,
    boundary_at,
    boundary_of_newline,
    forget_cached,
    read_exactly,
    read_resident,
    resident_boundary_of_newline,
)
from tailrace_impl_server._filesystem_recovery import Recovered, cut_to, read_slots, recover, recover_in_full
from tailrace_impl_server._filesystem_verify import open_for_verification, verify_files
from tailrace_impl_server._filesystem_writer import CLOSE_TIMEOUT, FilesystemWriter
from tailrace_impl_server._journal import EMPTY_SPINE, NO_BOOT_ID, Slot, pack_slot, slot_offset
from tailrace_impl_server._keyed_locks import KeyedLocks
from tailrace_impl_server._positional_io import storage_error, sync_data, write_all
from tailrace_impl_server._recently_read import RecentlyRead
from tailrace_impl_server._stalls import Stalls
from tailrace_impl_server._write_back import WriteBack
from tailrace_impl_server._writer_pool import WriterPool
from tailrace_server_api import (
    BLOCK_SIZE,
    Boundary,
    Damage,
    Descriptor,
    Durability,
    Piece,
    ResourceWriter,
    Snapshot,
    Storage,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_READER_THREADS = 8
_END = object()
_CACHED_FILES = 128
"""Resources that are kept open for reading; two descriptors each."""
_KEPT_DESCRIPTIONS = 128
_KEPT_ENDS = 1024


class FilesystemStorage(Storage):
    """Keeps each resource in a folder of its own."""

    def __init__(
        self, path: Path, *, durability: Durability, writer_threads: int = 4, close_timeout: float = CLOSE_TIMEOUT
    ) -> None:
        """Describe the storage; nothing is touched before :meth:`start`.

        Args:
            path: The data folder; made if it is not there.
            durability: What an announced byte survives.
            writer_threads: Most uploads that are written at the same instant.
            close_timeout: Longest time that closing waits for a disk that does not answer, in seconds.
        """
        self._durability = durability
        self._layout = Layout(path)
        self._pool = WriterPool(writer_threads)
        self._write_back = WriteBack()
        self._stalls = Stalls()
        self._threads = ThreadPoolExecutor(_READER_THREADS, thread_name_prefix="tailrace-files")
        self._boot_id = NO_BOOT_ID
        self._cache = FileCache(_CACHED_FILES)
        # Nobody else changes what is in the folder, and a state in which a resource has ended is its last one.
        self._descriptions: RecentlyRead[Descriptor] = RecentlyRead(_KEPT_DESCRIPTIONS)
        self._ends: RecentlyRead[Snapshot] = RecentlyRead(_KEPT_ENDS)
        self._residency_known = True
        self._buffers: ReusableBuffers | None = None
        self._writers: dict[str, FilesystemWriter] = {}
        self._creating: set[str] = set()
        self._deletions = 0
        self._locks = KeyedLocks()
        self._changes: set[asyncio.Task[object]] = set()
        self._started = False
        self._closed = False
        self._close_timeout = close_timeout
        # Resources of which a sync has failed: what the system holds of them is not what the disk has.
        self._doubtful: set[str] = set()

    @property
    def durability(self) -> Durability:
        return self._durability

    async def start(self) -> None:
        try:
            await self._run(self._layout.acquire)
        except FileExistsError as error:
            raise ConfigurationError(field="data", problem=f"{error.filename} is no folder") from error
        except OSError as error:
            problem = f"{error.filename or 'the folder'}: {error.strerror}"
            raise ConfigurationError(field="data", problem=problem) from error
        self._boot_id = await self._run(_read_boot_id)
        self._buffers = ReusableBuffers(asyncio.get_running_loop())
        self._started = True

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._changes:
            await asyncio.wait(self._changes, timeout=self._close_timeout)
        await asyncio.gather(*(writer.close() for writer in list(self._writers.values())))
        self._cache.clear()
        if self._buffers is not None:
            self._buffers.release()
        if self._writers or self._changes:
            # The lock stays: what hangs may still write, and another server must not come between.
            _log.error("The disk does not answer: %s writers are left behind", len(self._writers))
            self._threads.shutdown(wait=False, cancel_futures=True)
            return
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._pool.close()
        self._write_back.close(self._close_timeout)
        self._threads.shutdown()
        self._layout.release()

    # Changes.

    async def create(self, descriptor: Descriptor) -> Snapshot:
        return await self._change(descriptor.id, self._create(descriptor))

    async def _create(self, descriptor: Descriptor) -> Snapshot:
        snapshot = Snapshot(
            version=1,
            epoch=0,
            state=ResourceState.INITIATED,
            reason=None,
            size=0,
            newlines=0,
            head=EMPTY_HEAD,
            open_line=False,
        )
        slot = Slot(snapshot, EMPTY_SPINE, b"", self._boot_id, self._syncs)
        self._creating.add(descriptor.id)
        try:
            await self._run(partial(self._layout.create, descriptor, slot, sync_names=self._syncs))
        except OSError as error:
            raise storage_error(error, "create a resource") from error
        finally:
            self._creating.discard(descriptor.id)
        return snapshot

    async def replace_token(self, id: str, token_hash: bytes) -> None:
        await self._change(id, self._replace_token(id, token_hash))

    async def _replace_token(self, id: str, token_hash: bytes) -> None:
        descriptor = replace(await self._read_description(id), token_hash=token_hash)
        self._descriptions.forget(id)
        try:
            await self._run(self._layout.replace_description, descriptor)
        except OSError as error:
            raise storage_error(error, f"replace the token of resource {id}") from error
        finally:
            self._descriptions.forget(id)

    async def open(self, id: str) -> ResourceWriter:
        change = asyncio.ensure_future(self._change(id, self._open(id)))
        try:
            return await asyncio.shield(change)
        except asyncio.CancelledError:
            # The writer comes into being all the same, and nobody else will close it.
            change.add_done_callback(self._close_abandoned)
            raise

    async def _open(self, id: str) -> FilesystemWriter:
        await self._fence(id)
        try:
            files, recovered, hasher = await self._run(self._take_over, id)
        except FileNotFoundError:
            raise NotFound(id=id) from None
        except OSError as error:
            raise storage_error(error, f"open resource {id} for writing") from error
        writer = FilesystemWriter(
            files=files,
            slot=recovered.slot,
            hasher=hasher,
            line_access=recovered.line_access,
            durability=self._durability,
            pool=self._pool,
            write_back=self._write_back,
            stalls=self._stalls,
            sync_names=partial(self._layout.sync_names, id),
            on_close=partial(self._writer_closed, id),
            close_timeout=self._close_timeout,
        )
        self._writers[id] = writer
        return writer

    def _take_over(self, id: str) -> tuple[ResourceFiles, Recovered, HeadHasher]:
        """Recover a resource, cut what is not proven, and store the next epoch. Blocks."""
        files = ResourceFiles(self._layout.folder(id), writable=True)
        recovered = self._recover(id, files)
        snapshot = recovered.slot.snapshot
        if recovered.hasher is None:
            raise AlreadyTerminal(id=id, state=snapshot.state.value)
        try:
            cut_to(files, recovered.slot, sync=self._syncs or recovered.in_full)
            slot = self._store_next(files, recovered, epoch=snapshot.epoch + 1)
        except OSError:
            # Some of it may have been a sync, after which the system takes for clean what is not on disk.
            self._doubtful.add(id)
            raise
        return files, replace(recovered, slot=slot), recovered.hasher

    def _recover(self, id: str, files: ResourceFiles) -> Recovered:
        if id not in self._doubtful:
            return recover(files, boot_id=self._boot_id)
        forget_cached(files)
        line_access, slots = read_slots(files)
        if not slots or slots[0].snapshot.state.terminal:
            return recover(files)
        recovered = recover_in_full(files, line_access, slots)
        proven = recovered.slot.snapshot.size
        if proven < slots[0].snapshot.size:
            raise DamagedBlock(offset=proven - proven % BLOCK_SIZE, problem="the disk has lost announced bytes")
        self._doubtful.discard(id)
        return recovered

    def _store_next(self, files: ResourceFiles, recovered: Recovered, *, epoch: int) -> Slot:
        """Write the state that follows on a recovered one: the same, under this boot and ``epoch``."""
        taken = replace(recovered.slot.snapshot, version=recovered.next_version, epoch=epoch)
        synced = self._syncs or recovered.in_full
        slot = replace(recovered.slot, snapshot=taken, boot_id=self._boot_id, synced=synced)
        write_all(files.journal, [pack_slot(slot)], slot_offset(taken.version))
        if synced:
            sync_data(files.journal)
        return slot

    async def verify(self, id: str, *, repair: bool = False) -> AsyncGenerator[Damage, None]:
        if id in self._writers:
            raise StorageFailure(f"resource {id} is being written")
        held = [self._cache.pop(id)]
        held.clear()
        self._forget(id)
        line_access = False
        try:
            try:
                line_access = (await self._read_description(id)).metadata.lines
            except NotFound:
                if not await self._run(self._layout.folder(id).exists):
                    raise
                yield Damage(None, "resource.json is missing")
                return
            except StorageFailure as error:
                yield Damage(None, str(error))
                return
            try:
                files = await self._run(partial(open_for_verification, self._layout.folder(id), repair=repair))
            except StorageFailure as error:
                yield Damage(None, str(error))
                return
            found = verify_files(files, line_access=line_access, repair=repair)
            while (damage := await self._run(next, found, _END)) is not _END:
                if isinstance(damage, Damage):
                    yield damage
        except OSError as error:
            raise storage_error(error, f"verify resource {id}") from error
        finally:
            self._forget(id)

    async def delete(self, id: str) -> None:
        await self._change(id, self._delete(id))

    async def _delete(self, id: str) -> None:
        await self._fence(id)
        # Reads that are under way may still open the files, but must not leave them open behind the deletion.
        self._deletions += 1
        self._forget(id)
        held = [self._cache.pop(id)]
        try:
            await self._run(self._remove, id, held)
        except OSError as error:
            raise storage_error(error, f"delete resource {id}") from error
        finally:
            self._deletions += 1
            self._forget(id)

    def _remove(self, id: str, held: list[ResourceFiles | None]) -> None:
        # The files are closed here, in a thread: closing the last descriptor of a big file that has no name any more
        # takes its time.
        held.clear()
        self._layout.remove(id)

    async def _fence(self, id: str) -> None:
        """Let the open writer of a resource, if there is one, finish what it has begun and nothing more."""
        writer = self._writers.get(id)
        if writer is not None:
            writer.fence(writer.epoch + 1)
            await writer.close()
            if self._writers.get(id) is writer:
                raise StorageFailure(f"the disk does not answer to the last writer of resource {id}")

    def _writer_closed(self, id: str, writer: FilesystemWriter) -> None:
        if writer.doubtful:
            self._doubtful.add(id)
        if self._writers.get(id) is writer:
            del self._writers[id]

    def _close_abandoned(self, change: asyncio.Future[FilesystemWriter]) -> None:
        if not change.cancelled() and change.exception() is None:
            self._keep(asyncio.ensure_future(change.result().close()))

    # Reading.

    async def describe(self, id: str) -> Descriptor:
        known = self._descriptions.get(id)
        if known is not None and not self._closed:
            return known
        forgotten = self._descriptions.forgotten
        descriptor = await self._read_description(id)
        self._descriptions.keep(id, descriptor, forgotten)
        return descriptor

    async def _read_description(self, id: str) -> Descriptor:
        try:
            return await self._run(self._layout.describe, id)
        except OSError as error:
            raise storage_error(error, f"read the description of resource {id}") from error

    async def load(self, id: str) -> Snapshot:
        known = self._ends.get(id)
        if known is not None and not self._closed:
            return known
        async with self._locks.hold(id):
            writer = self._writers.get(id)
            if writer is not None:
                return writer.snapshot
            forgotten = self._ends.forgotten
            try:
                snapshot = await self._run(self._recovered_snapshot, id)
            except FileNotFoundError:
                raise NotFound(id=id) from None
            except OSError as error:
                raise storage_error(error, f"read resource {id}") from error
            if snapshot.state.terminal and id not in self._doubtful:
                self._ends.keep(id, snapshot, forgotten)
            return snapshot

    def _forget(self, id: str) -> None:
        """Forget what was read of a resource, because it changes otherwise than by a writer."""
        self._descriptions.forget(id)
        self._ends.forget(id)

    def _recovered_snapshot(self, id: str) -> Snapshot:
        """Return the proven state; what a crash has left half made of it is removed. Blocks."""
        try:
            files = ResourceFiles(self._layout.folder(id), writable=False)
        except FileNotFoundError:
            self._layout.remove_half_made(id)
            raise
        recovered = self._recover(id, files)
        if not recovered.slot.snapshot.state.terminal:
            self._layout.remove_temporary(id)
        if not recovered.in_full:
            return recovered.slot.snapshot
        # Stored before it is told: it is not verified again, and not found to be less after the next loss of power.
        files = ResourceFiles(self._layout.folder(id), writable=True)
        cut_to(files, recovered.slot, sync=True)
        return self._store_next(files, recovered, epoch=recovered.slot.snapshot.epoch).snapshot

    def read_cached(self, id: str, start: int, end: int) -> Piece | None:
        if not self._residency_known or self._buffers is None:
            return None
        files = self._open_files(id)
        if files is None:
            return None
        writer = self._writers.get(id)
        slot = files.slot if writer is None else writer.committed
        if slot is None or slot.snapshot.size < end:
            return None
        try:
            return read_resident(files, start, end, slot, self._buffers)
        except ResidencyUnknownError:
            self._residency_known = False
            return None

    async def read(self, id: str, start: int, end: int) -> Piece:
        writer = self._writers.get(id)
        slot = None if writer is None else writer.committed
        try:
            return await self._with_files(id, partial(_read, start=start, end=end, slot=slot))
        except StorageFailure:
            # Whoever looks for the state in a journal that is being written, because a writer was opened after the
            # look at it, may find none.
            if writer is not None or (writer := self._writers.get(id)) is None:
                raise
        return await self._with_files(id, partial(_read, start=start, end=end, slot=writer.committed))

    async def boundary(self, id: str, offset: int) -> Boundary:
        return await self._with_files(id, partial(_boundary, blocks=offset // BLOCK_SIZE))

    async def boundary_of_newline(self, id: str, newlines: int, size: int) -> Boundary:
        files = self._open_files(id)
        if files is not None and self._residency_known:
            # A few pages of the journal, most often in memory: less than the way to a thread and back.
            try:
                found = resident_boundary_of_newline(files, newlines, size // BLOCK_SIZE)
            except ResidencyUnknownError:
                self._residency_known = False
            else:
                if found is not None:
                    return found
        return await self._with_files(id, partial(_boundary_of_newline, newlines=newlines, blocks=size // BLOCK_SIZE))

    async def ids(self) -> AsyncGenerator[str, None]:
        try:
            interrupted = await self._run(self._layout.unfinished_creations)
            for name in interrupted:
                # What came into being after the listing is not in it; what is listed and still being made is known.
                if name not in self._creating:
                    await self._run(self._layout.remove_creation, name)
            stored = await self._run(self._layout.ids)
        except OSError as error:
            raise storage_error(error, "list the stored resources") from error
        for name in stored:
            yield name

    def _open_files(self, id: str) -> ResourceFiles | None:
        files = self._cache.get(id)
        if files is None and (writer := self._writers.get(id)) is not None and writer.files is not None:
            files = writer.files
            self._cache.put(id, files)
        return files

    async def _with_files(self, id: str, reading: Callable[[ResourceFiles], _T]) -> _T:
        deletions = self._deletions
        files = self._open_files(id)
        try:
            if files is not None:
                return await self._run(reading, files)
            opened, result = await self._run(partial(_open_and, self._layout.folder(id), reading))
        except FileNotFoundError:
            raise NotFound(id=id) from None
        except OSError as error:
            raise storage_error(error, f"read resource {id}") from error
        if self._deletions == deletions and self._open_files(id) is None:
            self._cache.put(id, opened)
        return result

    # How things run.

    @property
    def _syncs(self) -> bool:
        return self._durability is Durability.FSYNC

    async def _change(self, id: str, change: Coroutine[object, object, _T]) -> _T:
        """Run a change to the end, after all others to the same resource; cancelling abandons the wait only."""

        async def alone() -> _T:
            async with self._locks.hold(id):
                return await change

        task = asyncio.ensure_future(alone())
        self._keep(task)
        return await asyncio.shield(task)

    def _keep(self, task: asyncio.Task[_T]) -> None:
        """Hold a task until it is done; if nobody waits for it any more, its error is of no interest to anyone."""
        self._changes.add(task)
        task.add_done_callback(self._changed)

    def _changed(self, task: asyncio.Task[_T]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()):
            _log.debug("a change of the storage failed", exc_info=error)

    async def _run(self, function: Callable[..., _T], *args: object) -> _T:
        if self._closed:
            raise StorageFailure("the storage is closed")
        call = [partial(function, *args)]
        return await asyncio.get_running_loop().run_in_executor(self._threads, _call_once, call)


def _call_once(call: list[partial[_T]]) -> _T:
    # Taken out, so that the thread holds no files any more once the result is known.
    return call.pop()()


def _read(files: ResourceFiles, *, start: int, end: int, slot: Slot | None) -> Piece:
    return read_exactly(files, start, end, announced_slot(files, end) if slot is None else slot)


def _boundary(files: ResourceFiles, *, blocks: int) -> Boundary:
    return boundary_at(files, blocks)


def _boundary_of_newline(files: ResourceFiles, *, newlines: int, blocks: int) -> Boundary:
    return boundary_of_newline(files, newlines, blocks)


def _open_and(folder: Path, reading: Callable[[ResourceFiles], _T]) -> tuple[ResourceFiles, _T]:
    files = ResourceFiles(folder, writable=False)
    return files, reading(files)


def _read_boot_id() -> bytes:
    """Return which boot of the system this is."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return NO_BOOT_ID
