"""A disk that fails when told to, and the resources that the tests of the filesystem storage write to it."""

import errno
import os
import threading
from dataclasses import dataclass, field

import pytest

from tailrace_common_api import (
    Metadata,
    Visibility,
)
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._filesystem_writer import FilesystemWriter
from tailrace_server_api import Committed, Descriptor, Snapshot

ID = "0" * 32


def descriptor(id: str = ID, *, lines: bool = True) -> Descriptor:
    return Descriptor(
        id=id,
        metadata=Metadata(name="x", lines=lines),
        visibility=Visibility.LIVE,
        created_at=1.0,
        token_hash=bytes(32),
        principal="",
    )


def committed(outcome: object) -> Snapshot:
    assert isinstance(outcome, Committed)
    return outcome.snapshot


@dataclass
class Disk:
    """Notes who writes, and fails or falls short when told to."""

    writes: list[tuple[str, int, int]] = field(default_factory=list)
    """File, bytes and thread of each write."""
    synced_by: list[int] = field(default_factory=list)
    """Thread of each sync."""
    full: str | None = None
    """Name of the file that takes no more bytes."""
    error: int = errno.ENOSPC
    """What a write to the full file fails with."""
    most: int | None = None
    """Most bytes that one write takes."""
    sync_fails: bool = False
    gate: threading.Event | None = None
    """The writers' pool waits for it."""


_readlink = os.readlink  # As it is before blocking calls are watched: writes are noted on the event loop, too.


async def writer_of(storage: FilesystemStorage, id: str = ID, *, lines: bool = True) -> FilesystemWriter:
    await storage.create(descriptor(id, lines=lines))
    writer = await storage.open(id)
    assert isinstance(writer, FilesystemWriter)
    return writer


def watch_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Put a disk that can be told to fail between the storage and the real one."""
    disk = Disk()
    pwrite, fdatasync = os.pwrite, os.fdatasync

    def write(fd: int, data: bytes, offset: int) -> int:
        name = os.path.basename(_readlink(f"/proc/self/fd/{fd}"))
        if disk.gate is not None and threading.current_thread().name.startswith("tailrace-writer"):
            disk.gate.wait(30)
        if name == disk.full:
            raise OSError(disk.error, os.strerror(disk.error))
        count = pwrite(fd, data[: disk.most], offset)
        disk.writes.append((name, count, threading.get_ident()))
        return count

    def sync(fd: int) -> None:
        if disk.sync_fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fdatasync(fd)
        disk.synced_by.append(threading.get_ident())

    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: write(fd, b"".join(buffers), offset))
    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    return disk
