"""Uploads whose writers do not wait for the server."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tailrace_client_upload_api import Buffer, DropOldest, SpoolToDisk, UploadRequest, UploadSession, Wait
from tailrace_common_api import (
    Metadata,
    ResourceState,
    StorageFailure,
    StorageFull,
    UploadAborted,
)
from tailrace_impl_common import DiscardingClient, head_of
from tailrace_impl_common._buffered_upload import BufferedUpload, with_policy
from tailrace_impl_common._delegating_upload import DelegatingUpload
from tailrace_impl_common._spool import Spool

KIB = 1024


class GatedUpload(DelegatingUpload):
    """A server that takes bytes while a gate is open."""

    def __init__(self) -> None:
        super().__init__(DiscardingClient().start_upload(UploadRequest(metadata=Metadata(name="a", lines=True))))
        self.gate = asyncio.Event()
        self.taken = b""
        self.failure: Exception | None = None

    async def write(self, data: Buffer) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.taken += bytes(data)
        await super().write(data)


@pytest.fixture
async def gated() -> GatedUpload:
    return GatedUpload()


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


async def until_written(upload: UploadSession, offset: int) -> None:
    while upload.offset < offset:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)


def spooled(session: UploadSession, folder: Path, room: int = 1 << 30) -> UploadSession:
    return with_policy(session, SpoolToDisk(directory=folder, max_bytes=room))


async def test_waiting_is_no_buffer(gated: GatedUpload) -> None:
    assert with_policy(gated, Wait()) is gated


async def test_a_writer_does_not_wait_while_there_is_room_on_disk(gated: GatedUpload, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    async with spooled(gated, tmp_path / "spool") as upload:
        # Nothing is taken, and all of it is written.
        await upload.write(memoryview(data)[:4_000_000])
        await upload.write(data[4_000_000:])
        assert (upload.offset, gated.taken) == (len(data), b"")
        flushing = asyncio.create_task(upload.flush())
        gated.gate.set()
        checkpoint = await flushing
        assert (checkpoint.size, checkpoint.head) == (len(data), head_of(data))
        await upload.write(b"more\n")
        assert upload.offset == len(data) + 5
    assert gated.taken == data + b"more\n"
    assert (upload.status.state, upload.status.size) == (ResourceState.COMPLETED, len(gated.taken))
    assert await upload.finish() == upload.status
    assert os.listdir(tmp_path / "spool") == []


async def test_a_full_spool_makes_the_writer_wait(gated: GatedUpload, tmp_path: Path) -> None:
    async with spooled(gated, tmp_path, 600 * KIB) as upload:
        await upload.write(bytes(512 * KIB))
        writing = asyncio.create_task(upload.write(bytes(512 * KIB)))
        # One piece is in the hands of the pump, so this one fits, and then no more does.
        await until_written(upload, 768 * KIB)
        assert not writing.done()
        gated.gate.set()
        await writing
    assert gated.taken == bytes(1024 * KIB)


async def test_a_waiting_writer_can_be_cancelled_and_the_upload_aborted(gated: GatedUpload, tmp_path: Path) -> None:
    upload = spooled(gated, tmp_path, 300 * KIB)
    with pytest.raises(asyncio.CancelledError):  # noqa: PT012 - what leaves the block is raised by it
        async with upload:
            writing = asyncio.create_task(upload.write(bytes(2000 * KIB)))
            await until_written(upload, 256 * KIB)
            writing.cancel()
            await writing
    assert upload.status.state is ResourceState.FAILED
    with pytest.raises(UploadAborted):
        await upload.write(b"x")


async def test_an_error_of_the_server_is_raised_by_the_waiting_writer(gated: GatedUpload, tmp_path: Path) -> None:
    upload = spooled(gated, tmp_path, 300 * KIB)
    with pytest.raises(StorageFull, match="full"):  # noqa: PT012 - what leaves the block is raised by it
        async with upload:
            writing = asyncio.create_task(upload.write(bytes(2000 * KIB)))
            await until_written(upload, 256 * KIB)
            gated.failure = StorageFull("full")
            gated.gate.set()
            await writing


async def test_the_end_of_an_idle_upload_is_noticed(gated: GatedUpload, tmp_path: Path) -> None:
    upload = spooled(gated, tmp_path)
    await upload.open()
    await gated.abort("elsewhere")
    for watching in [task for task in asyncio.all_tasks() if task.get_name() == "tailrace upload watch"]:
        await asyncio.wait((watching,))
    with pytest.raises(UploadAborted, match="elsewhere"):
        await upload.write(b"x")
    await upload.abort()


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageFailure)])
async def test_a_disk_that_fails_is_told_at_once(
    gated: GatedUpload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with pytest.raises(expected):  # noqa: PT012 - what leaves the block is raised by it
        async with spooled(gated, tmp_path) as upload:
            await upload.write(bytes(900 * KIB))
            monkeypatch.setattr(os, "pwrite", fail)
            await upload.write(bytes(900 * KIB))
    assert upload.status.state is ResourceState.FAILED


async def test_a_spool_that_cannot_be_made_is_told_at_the_start(gated: GatedUpload, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailure, match="spool"):
        await spooled(gated, tmp_path / "file").open()
    assert gated.status.state is ResourceState.FAILED


async def test_dropping_never_waits_and_says_what_was_lost(gated: GatedUpload) -> None:
    lines = [b"%06d %s\n" % (number, b"." * (number % 50)) for number in range(10_000)]
    async with with_policy(gated, DropOldest(max_bytes=64 * KIB)) as upload:
        for line in lines:
            await upload.write(line)
        assert gated.taken == b""
        gated.gate.set()
        await upload.flush()
        assert upload.offset == len(gated.taken)
    written = b"".join(lines)
    position = 0
    for line in gated.taken.splitlines(keepends=True):
        if line.startswith(b"[tailrace: "):
            position += int(line.split()[1])
        else:
            assert written[position : position + len(line)] == line
            position += len(line)
    assert position == len(written)
    # One for what was lost before anything was taken, at most, and one for the rest.
    assert 1 <= gated.taken.count(b"[tailrace: ") <= 2
    assert upload.status.size == len(gated.taken)


async def test_nothing_is_dropped_where_the_server_keeps_up(gated: GatedUpload) -> None:
    gated.gate.set()
    async with with_policy(gated, DropOldest(max_bytes=1 << 20)) as upload:
        for number in range(3000):
            await upload.write(b"%1000d\n" % number)
            if number % 900 == 0:
                await upload.flush()
    assert gated.taken == b"".join(b"%1000d\n" % number for number in range(3000))


async def test_detaching_waits_for_what_is_kept(gated: GatedUpload, tmp_path: Path) -> None:
    async with spooled(gated, tmp_path) as upload:
        await upload.write(b"abc")
        detaching = asyncio.create_task(upload.detach())
        gated.gate.set()
        await detaching
    assert gated.taken == b"abc"


async def test_a_cancelled_finish_can_be_repeated(gated: GatedUpload, tmp_path: Path) -> None:
    async with spooled(gated, tmp_path) as upload:
        await upload.write(b"abc")
        finishing = asyncio.create_task(upload.finish())
        await asyncio.sleep(0)
        finishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finishing
        await upload.write(b"def")
        gated.gate.set()
        assert (await upload.finish()).size == 6


async def test_memory_stays_small_while_much_waits(gated: GatedUpload, tmp_path: Path) -> None:
    spool = Spool(tmp_path, 64 * KIB * KIB)
    async with BufferedUpload(gated, lambda _: spool) as upload:
        for _ in range(40):
            await upload.write(bytes(KIB * KIB))
        assert upload.offset == 40 * KIB * KIB
        assert spool.size - spool.on_disk <= 2 * KIB * KIB
        await upload.abort("enough")
