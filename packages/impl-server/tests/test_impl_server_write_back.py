"""Beginning to bring bytes to disk: what is asked of the system, and that nothing depends on it."""

import os
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
from impl_server_disk import ID, committed, writer_of

from tailrace_common_api import ResourceState
from tailrace_impl_common import head_of
from tailrace_impl_server import _write_back
from tailrace_impl_server._filesystem_files import DATA, JOURNAL, ResourceFiles
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._filesystem_writer import FilesystemWriter
from tailrace_impl_server._write_back import WriteBack, load_sync_file_range
from tailrace_server_api import Durability

MIB = 1 << 20
GRID = 64 * 1024
PATIENCE = 30.0


class System:
    """Notes what it is asked for; may be slow."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, int]] = []
        self.arrived = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def load(self) -> Callable[[int, int, int, int], object]:
        def call(fd: int, start: int, length: int, flags: int) -> int:
            self.asked.append((fd, start, length, flags))
            self.arrived.release()
            self.gate.wait(PATIENCE)
            return 0

        return call

    def await_requests(self, count: int) -> None:
        """Wait until it was asked so many times more."""
        for _ in range(count):
            assert self.arrived.acquire(timeout=PATIENCE)


class Recorded(WriteBack):
    """Takes what it is told to take, and does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.refusing = False
        self.offered: list[tuple[int, int]] = []
        self.taken: list[tuple[int, int]] = []

    def begin(self, files: ResourceFiles, start: int, end: int) -> bool:
        self.offered.append((start, end))
        if not self.refusing:
            self.taken.append((start, end))
        return not self.refusing


@pytest.fixture
def files(tmp_path: Path) -> ResourceFiles:
    (tmp_path / DATA).write_bytes(bytes(4 * MIB))
    (tmp_path / JOURNAL).touch()
    return ResourceFiles(tmp_path, writable=True)


class Watched(ResourceFiles):
    """Files whose end can be seen."""


def watched_files(folder: Path) -> tuple[Watched, threading.Event]:
    """Return files, and what is set when nobody has them any more."""
    (folder / DATA).write_bytes(bytes(100))
    (folder / JOURNAL).touch()
    closed = threading.Event()
    watched = Watched(folder, writable=True)
    weakref.finalize(watched, closed.set)
    return watched, closed


async def storage_in(path: Path, durability: Durability) -> tuple[FilesystemStorage, Recorded]:
    storage = FilesystemStorage(path, durability=durability)
    recorded = Recorded()
    storage._write_back = recorded
    await storage.start()
    return storage, recorded


@pytest.fixture
async def os_storage(tmp_path: Path) -> AsyncGenerator[tuple[FilesystemStorage, Recorded], None]:
    storage, recorded = await storage_in(tmp_path / "storage", Durability.OS)
    yield storage, recorded
    await storage.close()


def refuse_to_start(thread: threading.Thread) -> None:
    """Do what a system does that has no more threads."""
    raise RuntimeError("can't start new thread")


async def append(writer: FilesystemWriter, *sizes: int) -> None:
    for size in sizes:
        writer.append(bytes(size))
        await writer.flush()


def held_by_the_disk(files: ResourceFiles) -> tuple[System, WriteBack]:
    """Return a system and what has asked it for the first byte of some files, and waits for it until the gate opens."""
    system = System()
    system.gate.clear()
    write_back = WriteBack(system.load)
    assert write_back.begin(files, 0, 1)
    system.await_requests(1)
    return system, write_back


def test_the_system_is_asked_to_begin_and_not_to_wait(files: ResourceFiles) -> None:
    system = System()
    write_back = WriteBack(system.load)
    assert write_back.begin(files, 0, MIB)
    assert write_back.begin(files, MIB, 3 * MIB)
    system.await_requests(2)
    write_back.close(PATIENCE)
    # Flag 2 alone: the flags that wait would take an error of the disk away from the sync that has to tell it.
    assert system.asked == [(files.data, 0, MIB, 2), (files.data, MIB, 2 * MIB, 2)]


def test_a_disk_that_is_behind_is_asked_for_no_more(files: ResourceFiles) -> None:
    system, write_back = held_by_the_disk(files)
    taken = 0
    while write_back.begin(files, taken + 1, taken + 2):
        taken += 1
    assert taken == _write_back._MOST_WAITING
    system.gate.set()
    system.await_requests(taken)
    write_back.close(PATIENCE)
    assert len(system.asked) == 1 + taken


def test_what_stands_in_line_at_the_end_is_dropped(files: ResourceFiles) -> None:
    system, write_back = held_by_the_disk(files)
    while write_back.begin(files, 1, 2):
        pass
    write_back.close(0.0)
    system.gate.set()
    write_back.close(PATIENCE)
    assert system.asked == [(files.data, 0, 1, 2)]
    assert write_back._thread is not None
    assert not write_back._thread.is_alive()


def test_where_the_system_cannot_nothing_is_asked_and_nothing_is_kept(tmp_path: Path) -> None:
    write_back = WriteBack(lambda: None)
    watched, closed = watched_files(tmp_path)
    for number in range(3 * _write_back._MOST_WAITING):
        write_back.begin(watched, number, number + 1)
    del watched
    assert closed.wait(PATIENCE)
    assert write_back._line.empty()
    write_back.close(PATIENCE)


def test_where_no_thread_can_be_started_nothing_is_taken_until_one_can(
    files: ResourceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System()
    write_back = WriteBack(system.load)
    with monkeypatch.context() as exhausted:
        exhausted.setattr(threading.Thread, "start", refuse_to_start)
        assert not write_back.begin(files, 0, MIB)
    write_back.close(PATIENCE)
    assert write_back.begin(files, 0, 2 * MIB)
    system.await_requests(1)
    write_back.close(PATIENCE)
    assert system.asked == [(files.data, 0, 2 * MIB, 2)]


def test_without_requests_there_is_no_thread() -> None:
    before = set(threading.enumerate())
    write_back = WriteBack()
    assert set(threading.enumerate()) <= before
    write_back.close(PATIENCE)


def test_files_are_closed_though_the_thread_waits_for_more(tmp_path: Path) -> None:
    system = System()
    write_back = WriteBack(system.load)
    watched, closed = watched_files(tmp_path)
    assert write_back.begin(watched, 0, 100)
    del watched
    assert closed.wait(PATIENCE)
    write_back.close(PATIENCE)


def test_closing_does_not_wait_for_ever_for_a_disk_that_does_not_answer(files: ResourceFiles) -> None:
    system, write_back = held_by_the_disk(files)
    write_back.close(0.01)
    thread = write_back._thread
    assert thread is not None
    assert thread.is_alive()
    system.gate.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="the call is one of Linux")
def test_linux_has_the_call_and_it_works_on_a_real_file(files: ResourceFiles) -> None:
    call = load_sync_file_range()
    assert call is not None
    assert call(files.data, 0, 4 * MIB, 2) == 0
    # Refused as any error is: by its result.
    reading, writing = os.pipe()
    try:
        assert call(writing, 0, MIB, 2) == -1
    finally:
        os.close(reading)
        os.close(writing)


def test_a_system_without_the_call_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    class Library:
        def __init__(self, name: object) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert load_sync_file_range() is None


async def test_what_is_stored_is_begun_in_steps_that_grow_up_to_a_bound(
    os_storage: tuple[FilesystemStorage, Recorded],
) -> None:
    storage, recorded = os_storage
    writer = await writer_of(storage, lines=False)
    await append(writer, *[500_000] * 100)
    steps = [end - start for start, end in recorded.taken]
    assert [start for start, _ in recorded.taken] == [0, *(end for _, end in recorded.taken[:-1])]
    assert all(end % GRID == 0 for _, end in recorded.taken)
    assert MIB - GRID < steps[0] < MIB + 500_000
    assert 2 * MIB - GRID < steps[-1] < 2 * MIB + 500_000
    assert 50_000_000 - recorded.taken[-1][1] < 2 * MIB + GRID
    snapshot = committed(await writer.complete())
    assert (snapshot.state, snapshot.head) == (ResourceState.COMPLETED, head_of(bytes(50_000_000)))
    await writer.close()


async def test_a_range_that_was_refused_is_part_of_the_next(os_storage: tuple[FilesystemStorage, Recorded]) -> None:
    storage, recorded = os_storage
    writer = await writer_of(storage, lines=False)
    recorded.refusing = True
    await append(writer, 3 * MIB, MIB)
    assert len(recorded.offered) == 2
    recorded.refusing = False
    await append(writer, MIB)
    assert recorded.taken == [(0, 5 * MIB)]
    await writer.close()


async def test_little_is_left_to_the_sync_at_the_end(os_storage: tuple[FilesystemStorage, Recorded]) -> None:
    storage, recorded = os_storage
    writer = await writer_of(storage)
    await append(writer, *[1000] * 1000)
    await writer.checkpoint()
    await writer.complete()
    await writer.close()
    assert recorded.offered == []


async def test_a_writer_that_continues_begins_behind_what_is_stored(
    os_storage: tuple[FilesystemStorage, Recorded],
) -> None:
    storage, recorded = os_storage
    writer = await writer_of(storage, lines=False)
    await append(writer, 3 * MIB + 5)
    await writer.checkpoint()
    await writer.close()
    recorded.taken.clear()
    writer = await storage.open(ID)  # type: ignore[assignment]  # another writer, of the interface
    await append(writer, 2 * MIB)
    assert recorded.taken == [(3 * MIB, 5 * MIB)]
    await writer.close()


async def test_what_is_synced_before_it_is_announced_needs_no_early_beginning(tmp_path: Path) -> None:
    storage, recorded = await storage_in(tmp_path / "storage", Durability.FSYNC)
    writer = await writer_of(storage, lines=False)
    await append(writer, *[MIB] * 8)
    await writer.complete()
    await writer.close()
    await storage.close()
    assert recorded.offered == []
