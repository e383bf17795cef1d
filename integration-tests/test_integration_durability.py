"""What a loss of power at any instant leaves of a storage: every prefix of its calls, with any part of what was not
synced missing, is recovered by a new storage.

A killed process cannot tell the durability `fsync` from `os`: what it has written is in the system's hands. Here the
system's hands are a model, which drops, reorders and tears whatever it may.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cells import PROCESS_CELLS, Cell, Transport
from conversations import Conversation, HandUpload
from manifest import proves
from server_process import ServerProcess
from storage_recorder import Disk, Recorder, Told, disks_after_power_loss

from tailrace_common_api import (
    ClientSettings,
    DamagedBlock,
    Metadata,
    NotFound,
    ResourceState,
    StorageFailure,
    TailraceError,
    Visibility,
)
from tailrace_impl_common import head_of
from tailrace_impl_common.messages import Chunk, Read
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_server import _filesystem_storage, create_manager
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_websocket import connect as connect_websocket
from tailrace_server_api import BLOCK_SIZE, Committed, Descriptor, Durability, Snapshot

SOAK = os.environ.get("TAILRACE_SOAK") is not None
ALL_BELOW = 10 if SOAK else 4
SAMPLES = 100 if SOAK else 6
SOURCE = random.Random(5).randbytes(4 * BLOCK_SIZE).translate(bytes(10 if b % 16 == 0 else b for b in range(256)))


@dataclass(frozen=True)
class Announced:
    """A state was told."""

    id: str
    snapshot: Snapshot


@dataclass(frozen=True)
class TokenBegun:
    """A token began to be replaced."""

    id: str
    token: bytes


@dataclass(frozen=True)
class TokenTold:
    """A token was told to be replaced."""

    id: str
    token: bytes


@dataclass(frozen=True)
class DeletionBegun:
    """A deletion began."""

    id: str


@dataclass(frozen=True)
class DeletionTold:
    """A deletion was told."""

    id: str


def descriptor(number: int) -> Descriptor:
    return Descriptor(
        id=f"{number:032d}",
        metadata=Metadata(name="x", lines=True),
        visibility=Visibility.LIVE,
        created_at=1.0,
        token_hash=bytes(32),
        principal="",
    )


class Scenario:
    """What is done to a storage while it is recorded."""

    def __init__(self, storage: FilesystemStorage, recorder: Recorder) -> None:
        self._storage = storage
        self._recorder = recorder

    async def run(self) -> None:
        long = await self._create(1)
        await self._upload(long, 5, 5 + 100_000, BLOCK_SIZE, close=True)
        await self._replace_token(long)
        await self._upload(long, 2 * BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 700, end="complete")
        failed = await self._create(2)
        await self._upload(failed, 1000, end="fail")
        deleted = await self._create(3)
        await self._upload(deleted, BLOCK_SIZE + 9, close=True)
        self._recorder.tell(DeletionBegun(deleted))
        await self._storage.delete(deleted)
        self._recorder.tell(DeletionTold(deleted))
        await self._replace_token(await self._create(4))

    async def _create(self, number: int) -> str:
        made = descriptor(number)
        self._recorder.tell(Announced(made.id, await self._storage.create(made)))
        return made.id

    async def _upload(self, id: str, *sizes: int, close: bool = False, end: str | None = None) -> None:
        writer = await self._storage.open(id)
        at = writer.snapshot.size
        self._recorder.tell(Announced(id, writer.snapshot))
        for size in sizes:
            writer.append(SOURCE[at:size])
            at = size
            self._told(id, await writer.checkpoint())
        writer.append(SOURCE[at : at + 3000])
        await writer.flush()
        if end == "complete":
            self._told(id, await writer.complete())
        elif end == "fail":
            self._told(id, await writer.fail("why"))
        await writer.close()

    def _told(self, id: str, outcome: object) -> None:
        assert isinstance(outcome, Committed)
        self._recorder.tell(Announced(id, outcome.snapshot))

    async def _replace_token(self, id: str) -> None:
        self._recorder.tell(TokenBegun(id, b"new token".ljust(32)))
        await self._storage.replace_token(id, b"new token".ljust(32))
        self._recorder.tell(TokenTold(id, b"new token".ljust(32)))


async def record(
    folder: Path, durability: Durability, monkeypatch: pytest.MonkeyPatch, *, syncing: bool = True
) -> Recorder:
    """Run the scenario and return what it asked of the filesystem."""
    folder.mkdir()
    recorder = Recorder(folder, syncing=syncing)
    with monkeypatch.context() as patches:
        patches.setattr(_filesystem_storage, "_read_boot_id", lambda: b"before".ljust(16))
        recorder.install(patches)
        storage = FilesystemStorage(folder / "storage", durability=durability)
        await storage.start()
        await Scenario(storage, recorder).run()
        await storage.close()
    return recorder


class Expectations:
    """What must be found after a number of events."""

    def __init__(self, told: list[object]) -> None:
        self.announced: dict[str, Snapshot] = {}
        self.tokens: dict[str, set[bytes]] = {}
        self.may_be_gone: set[str] = set()
        self.gone: set[str] = set()
        for what in told:
            match what:
                case Announced():
                    self.announced[what.id] = what.snapshot
                    self.tokens.setdefault(what.id, {bytes(32)})
                case TokenBegun():
                    self.tokens[what.id].add(what.token)
                case TokenTold():
                    self.tokens[what.id] = {what.token}
                case DeletionBegun():
                    self.may_be_gone.add(what.id)
                case DeletionTold():
                    self.gone.add(what.id)

    async def check(self, root: Path, durability: Durability) -> None:
        """Recover what is in ``root`` and compare."""
        storage = FilesystemStorage(root / "storage", durability=durability, writer_threads=1)
        await storage.start()
        try:
            stored = {found async for found in storage.ids()}
            found = {name for name in stored if await self._check_one(storage, name, durability)}
            if durability is Durability.FSYNC:
                assert self.announced.keys() - self.may_be_gone <= found
            assert not self.gone & found
            for place in ("creating", "trash"):
                assert not await asyncio.to_thread(os.listdir, root / "storage" / place)
        finally:
            await storage.close()

    async def _check_one(self, storage: FilesystemStorage, id: str, durability: Durability) -> bool:
        try:
            snapshot = await storage.load(id)
        except NotFound:
            # Half made, and gone by now.
            assert durability is Durability.OS
            return False
        except StorageFailure as error:
            # Names were lost and bytes were not: nobody knows what they are, and they are left alone.
            if durability is Durability.OS and "has bytes and no journal" in str(error):
                return False
            raise
        assert snapshot.head == head_of(SOURCE[: snapshot.size])
        assert snapshot.newlines == SOURCE.count(b"\n", 0, snapshot.size)
        if snapshot.size:
            assert bytes((await storage.read(id, 0, snapshot.size)).data) == SOURCE[: snapshot.size]
        announced = self.announced.get(id)
        if announced is not None:
            if durability is Durability.FSYNC:
                assert snapshot.size >= announced.size
                assert snapshot.version >= announced.version
            if announced.state.terminal:
                assert snapshot == announced
            if durability is Durability.FSYNC or announced.state.terminal:
                assert (await storage.describe(id)).token_hash in self.tokens[id]
        if not snapshot.state.terminal:
            writer = await storage.open(id)
            assert writer.epoch == snapshot.epoch + 1
            assert (writer.snapshot.size, writer.snapshot.head) == (snapshot.size, snapshot.head)
            writer.append(SOURCE[snapshot.size : snapshot.size + 200])
            outcome = await writer.complete()
            assert isinstance(outcome, Committed)
            assert outcome.snapshot.head == head_of(SOURCE[: snapshot.size + 200])
        else:
            assert snapshot.state in (ResourceState.COMPLETED, ResourceState.FAILED)
        return True


@dataclass
class Findings:
    """What became of all disks."""

    disks: int = 0
    broken: int = 0
    first: BaseException | None = None


async def recover_all(
    recorder: Recorder, folder: Path, durability: Durability, monkeypatch: pytest.MonkeyPatch, *, seed: int = 1
) -> Findings:
    """Recover every disk that a loss of power may leave, and compare it with what was told until then."""
    rng = random.Random(seed)
    findings = Findings()
    seen: set[tuple[bytes, int]] = set()
    told: list[object] = []
    with monkeypatch.context() as patches:
        patches.setattr(_filesystem_storage, "_read_boot_id", lambda: b"after".ljust(16))
        patches.setattr(os, "fsync", lambda fd: None)
        patches.setattr(os, "fdatasync", lambda fd: None)
        for until in range(len(recorder.events) + 1):
            if until and isinstance(event := recorder.events[until - 1], Told):
                told.append(event.what)
            for disk in disks_after_power_loss(recorder.events, until, rng, all_below=ALL_BELOW, samples=SAMPLES):
                key = (disk.digest(), len(told))
                if key in seen:
                    continue
                seen.add(key)
                findings.disks += 1
                try:
                    await _recover_one(disk, folder, Expectations(told), durability)
                except (AssertionError, TailraceError) as error:
                    findings.broken += 1
                    findings.first = findings.first or error
    return findings


async def _recover_one(disk: Disk, folder: Path, expectations: Expectations, durability: Durability) -> None:
    await asyncio.to_thread(folder.mkdir)
    try:
        await asyncio.to_thread(disk.write_to, folder)
        await expectations.check(folder, durability)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder)


@proves("CHK-2", "CHK-3", "RES-5")
@pytest.mark.timeout(3600 if SOAK else 400)
async def test_nothing_that_was_announced_is_lost_with_the_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = await record(tmp_path / "recorded", Durability.FSYNC, monkeypatch)
    findings = await recover_all(recorder, tmp_path / "disk", Durability.FSYNC, monkeypatch)
    assert findings.disks > len(recorder.events)
    if findings.first is not None:
        raise findings.first


@proves("CHK-3")
@pytest.mark.timeout(3600 if SOAK else 400)
async def test_without_syncing_a_proven_prefix_and_every_end_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = await record(tmp_path / "recorded", Durability.OS, monkeypatch)
    findings = await recover_all(recorder, tmp_path / "disk", Durability.OS, monkeypatch)
    assert "announced bytes with the power" in caplog.text
    caplog.clear()
    assert findings.disks > len(recorder.events)
    if findings.first is not None:
        raise findings.first


@proves("CHK-2")
@pytest.mark.timeout(3600 if SOAK else 400)
@pytest.mark.parametrize("lying", [False, True], ids=["os", "lying disk"])
async def test_a_loss_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lying: bool
) -> None:
    # What does not sync, or only seems to, must not pass for durable: else the two tests above would prove nothing.
    durability = Durability.FSYNC if lying else Durability.OS
    recorder = await record(tmp_path / "recorded", durability, monkeypatch, syncing=not lying)
    recorder.events = recorder.events[: len(recorder.events) // 2]
    findings = await recover_all(recorder, tmp_path / "disk", Durability.FSYNC, monkeypatch)
    assert findings.broken > 10
    caplog.clear()


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize("block", range(3))
@proves("CHK-4")
async def test_a_damaged_block_is_reported_and_not_served(
    new_server_process: Callable[..., ServerProcess], cell: Cell, block: int
) -> None:
    server = await asyncio.to_thread(new_server_process)
    connect = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
    size = 2 * BLOCK_SIZE + 1000
    async with connect(server.url(cell.transport), ClientSettings()) as client:
        upload = await HandUpload.open(client.connection, lines=True)
        for start in range(0, size, 65536):
            await upload.chunk(SOURCE[start : min(start + 65536, size)])
        await upload.finished()
    await asyncio.to_thread(server.stop)
    data = server.data / "resources" / upload.id / "data"
    content = bytearray(await asyncio.to_thread(data.read_bytes))
    content[block * BLOCK_SIZE + 7] ^= 1
    await asyncio.to_thread(data.write_bytes, content)
    found = [
        (resource, damage and damage.offset)
        async for resource, damage in create_manager(server.data, {}).verify([upload.id])
    ]
    assert found == [(upload.id, block * BLOCK_SIZE), (upload.id, None)]
    await asyncio.to_thread(server.start)
    async with connect(server.url(cell.transport), ClientSettings()) as client:
        for start in range(0, size, BLOCK_SIZE):
            end = min(start + BLOCK_SIZE, size)
            reader = await Conversation.begin(client.connection, Read(id=upload.id, start=start + 1, end=end))
            if start == block * BLOCK_SIZE:
                error = await reader.error()
                assert isinstance(error, DamagedBlock)
                assert error.offset == start
            else:
                received = [message.data for message in await reader.rest() if isinstance(message, Chunk)]
                assert b"".join(map(bytes, received)) == SOURCE[start + 1 : end]
            await reader.close()
