"""What the filesystem storage recovers from every instant at which its process, or the machine, may die."""

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tailrace_common_api import Metadata, StorageFailure, Visibility
from tailrace_impl_common import head_of
from tailrace_impl_server._filesystem_files import ResourceFiles
from tailrace_impl_server._filesystem_recovery import recover
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_server_api import BLOCK_SIZE, Committed, Descriptor, Durability, Snapshot

ID = "0" * 32
DESCRIPTOR = Descriptor(
    id=ID,
    metadata=Metadata(name="x", lines=True),
    visibility=Visibility.LIVE,
    created_at=1.0,
    token_hash=bytes(32),
    principal="",
)
SECTOR = 512
_readlink = os.readlink  # As it is before blocking calls are watched: the recorder is called on the event loop.


@dataclass(frozen=True)
class Write:
    file: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Cut:
    file: str
    size: int


@dataclass(frozen=True)
class Sync:
    file: str


@dataclass(frozen=True)
class Announced:
    snapshot: Snapshot


Event = Write | Cut | Sync | Announced


@dataclass
class Recorder:
    """Notes what reaches data and journal of one resource, in order."""

    folder: Path
    events: list[Event] = field(default_factory=list)
    base: dict[str, bytes] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = {name: (self.folder / name).read_bytes() for name in ("data", "journal")}
        pwritev, pwrite, ftruncate, fdatasync = os.pwritev, os.pwrite, os.ftruncate, os.fdatasync

        def record_pwritev(fd: int, buffers: list[bytes], offset: int) -> int:
            self._note(fd, lambda name: Write(name, offset, b"".join(buffers)))
            return pwritev(fd, buffers, offset)

        def record_pwrite(fd: int, data: bytes, offset: int) -> int:
            self._note(fd, lambda name: Write(name, offset, bytes(data)))
            return pwrite(fd, data, offset)

        def record_ftruncate(fd: int, size: int) -> None:
            self._note(fd, lambda name: Cut(name, size))
            ftruncate(fd, size)

        def record_fdatasync(fd: int) -> None:
            fdatasync(fd)
            self._note(fd, Sync)

        monkeypatch.setattr(os, "pwritev", record_pwritev)
        monkeypatch.setattr(os, "pwrite", record_pwrite)
        monkeypatch.setattr(os, "ftruncate", record_ftruncate)
        monkeypatch.setattr(os, "fdatasync", record_fdatasync)

    def _note(self, fd: int, make: Callable[[str], Event]) -> None:
        path = Path(_readlink(f"/proc/self/fd/{fd}"))
        if path.parent == self.folder and path.name in self.base:
            self.events.append(make(path.name))

    def announce(self, outcome: object) -> None:
        assert isinstance(outcome, Committed)
        self.events.append(Announced(outcome.snapshot))


class Image:
    """The two files of a resource as some death would leave them."""

    def __init__(self, base: Mapping[str, bytes | bytearray]) -> None:
        # A bytearray is shared with the image that it comes from.
        self.files = {name: data if isinstance(data, bytearray) else bytearray(data) for name, data in base.items()}

    def apply(self, event: Event) -> None:
        if isinstance(event, Write):
            file = self.files[event.file]
            if len(file) < event.offset:
                file.extend(bytes(event.offset - len(file)))
            file[event.offset : event.offset + len(event.data)] = event.data
        elif isinstance(event, Cut):
            file = self.files[event.file]
            del file[event.size :]
            file.extend(bytes(event.size - len(file)))

    def recovered(self) -> Snapshot:
        """Recover the image and check that its bytes are what the recovered state says of them."""
        # Thousands of images: their files are in memory only.
        files = ResourceFiles.__new__(ResourceFiles)
        files.folder = Path(ID)
        files.data, files.journal = (os.memfd_create(name) for name in ("data", "journal"))
        os.write(files.data, self.files["data"])
        os.write(files.journal, self.files["journal"])
        snapshot = recover(files).slot.snapshot
        data = bytes(self.files["data"][: snapshot.size])
        assert len(data) == snapshot.size
        assert snapshot.head == head_of(data)
        assert snapshot.newlines == data.count(b"\n")
        return snapshot


async def record_upload(
    root: Path, durability: Durability, seed: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Recorder, bytes]:
    """Upload random chunks in several sessions; return what was written and what was appended."""
    rng = random.Random(seed)
    storage = FilesystemStorage(root, durability=durability)
    await storage.start()
    await storage.create(DESCRIPTOR)
    recorder = Recorder(root / "resources" / ID)
    recorder.install(monkeypatch)
    data = b""
    for session in range(3):
        writer = await storage.open(ID)
        # What the session before had not announced is lost, and told as such.
        data = data[: writer.snapshot.size]
        recorder.events.append(Announced(writer.snapshot))
        for _ in range(rng.randrange(3, 6)):
            for _ in range(rng.randrange(1, 3)):
                chunk = rng.randbytes(rng.choice((1, 100, 5_000, BLOCK_SIZE // 4, BLOCK_SIZE, BLOCK_SIZE + 1)))
                data += chunk
                writer.append(chunk)
            if rng.random() < 0.7:
                recorder.announce(await writer.checkpoint())
            else:
                await writer.flush()
        if session == 2:
            recorder.announce(await (writer.complete() if seed % 2 else writer.fail("why")))
        await writer.close()
    await storage.close()
    return recorder, data


def cuts(event: Write) -> Iterable[int]:
    """Return lengths after which a write may be interrupted: all of them where there are few."""
    length = len(event.data)
    return range(length) if length <= 512 else sorted({0, 1, 47, 48, 511, 512, length // 2, length - 1})


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("seed", range(2))
async def test_a_kill_at_any_byte_keeps_what_was_announced(
    tmp_path: Path, durability: Durability, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, data = await record_upload(tmp_path / "storage", durability, seed, monkeypatch)
    image = Image(recorder.base)
    announced = image.recovered()
    images = 0
    for event in recorder.events:
        if isinstance(event, Announced):
            announced = event.snapshot
            assert image.recovered() == announced
            continue
        if isinstance(event, Write):
            for cut in cuts(event):
                torn = Image(image.files)
                torn.files[event.file] = bytearray(image.files[event.file])
                torn.apply(Write(event.file, event.offset, event.data[:cut]))
                # A slot counts once all that its CRC covers is there, even if the zeros behind it are not.
                assert torn.recovered().version in (announced.version, announced.version + 1)
                images += 1
        image.apply(event)
        recovered = image.recovered()
        assert recovered.version in (announced.version, announced.version + 1)
        assert recovered.size >= announced.size
        images += 1
    assert announced.state.terminal
    assert bytes(image.files["data"]) == data
    assert images > 1000


def lose_power(recorder: Recorder, until: int, rng: random.Random) -> Image:
    """Return an image with a random part of what was not synced by event ``until``: sectors missing, order kept."""
    synced = {
        name: max((n for n, event in enumerate(recorder.events[:until]) if event == Sync(name)), default=-1)
        for name in recorder.base
    }
    image = Image(recorder.base)
    for number, event in enumerate(recorder.events[:until]):
        if isinstance(event, Cut | Write) and number > synced[event.file]:
            if isinstance(event, Write):
                # The first and the last piece end at a sector of the disk.
                start = event.offset
                while start < event.offset + len(event.data):
                    end = min(start - start % SECTOR + SECTOR, event.offset + len(event.data))
                    if rng.random() < 0.5:
                        image.apply(Write(event.file, start, event.data[start - event.offset : end - event.offset]))
                    start = end
            elif rng.random() < 0.5:
                image.apply(event)
        else:
            image.apply(event)
    return image


@pytest.mark.parametrize("seed", range(4))
async def test_a_power_loss_keeps_what_was_announced_synced(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, _ = await record_upload(tmp_path / "storage", Durability.FSYNC, seed, monkeypatch)
    announced = Image(recorder.base).recovered()
    rng = random.Random(seed)
    for until in range(len(recorder.events) + 1):
        if until and isinstance(event := recorder.events[until - 1], Announced):
            announced = event.snapshot
        for _ in range(5):
            recovered = lose_power(recorder, until, rng).recovered()
            assert recovered.version in (announced.version, announced.version + 1)
            assert recovered.size >= announced.size


@pytest.mark.parametrize("seed", range(2))
async def test_a_power_loss_keeps_every_end(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, data = await record_upload(tmp_path / "storage", Durability.OS, seed, monkeypatch)
    final = recorder.events[-1]
    assert isinstance(final, Announced)
    for attempt in range(10):
        image = lose_power(recorder, len(recorder.events), random.Random(attempt))
        assert image.recovered() == final.snapshot
        assert bytes(image.files["data"]) == data


@pytest.mark.parametrize("seed", range(3))
async def test_an_upload_continues_after_any_kill(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, _ = await record_upload(tmp_path / "storage", Durability.OS, seed, monkeypatch)
    monkeypatch.undo()
    rng = random.Random(seed)
    points = sorted(rng.sample(range(len(recorder.events)), 12))
    for point in points:
        image = Image(recorder.base)
        for event in recorder.events[:point]:
            image.apply(event)
        root = tmp_path / f"killed-{point}"
        await asyncio.to_thread(shutil.copytree, tmp_path / "storage", root)
        for name, content in image.files.items():
            (root / "resources" / ID / name).write_bytes(content)
        storage = FilesystemStorage(root, durability=Durability.OS)
        await storage.start()
        found = await storage.load(ID)
        if found.state.terminal:
            await storage.close()
            continue
        writer = await storage.open(ID)
        assert writer.snapshot.size == found.size
        assert writer.snapshot.version > found.version
        assert writer.epoch == found.epoch + 1
        before = bytes(image.files["data"][: found.size])
        added = rng.randbytes(rng.choice((1, BLOCK_SIZE, 400_000)))
        writer.append(added)
        outcome = await writer.checkpoint()
        assert isinstance(outcome, Committed)
        boundary = await storage.boundary(ID, outcome.snapshot.size)
        assert boundary.newlines == (before + added).count(b"\n", 0, boundary.offset)
        outcome = await writer.complete()
        assert isinstance(outcome, Committed)
        assert outcome.snapshot.head == head_of(before + added)
        await storage.close()
        assert (root / "resources" / ID / "data").read_bytes() == before + added


@pytest.mark.parametrize("lost", range(1, 21))
async def test_a_state_counts_only_with_all_records_that_it_needs(tmp_path: Path, lost: int) -> None:
    storage = FilesystemStorage(tmp_path, durability=Durability.OS)
    await storage.start()
    await storage.create(DESCRIPTOR)
    writer = await storage.open(ID)
    writer.append(b"x" * BLOCK_SIZE)
    await writer.checkpoint()
    before = writer.snapshot
    writer.append(b"y" * 20 * BLOCK_SIZE)
    await writer.checkpoint()
    await storage.close()
    folder = tmp_path / "resources" / ID
    files = ResourceFiles(folder, writable=True)
    assert recover(files).slot.snapshot == writer.snapshot
    # The slot reached the disk, one of the records before it did not.
    os.pwrite(files.journal, bytes(48), 12288 + 48 * lost)
    assert recover(files).slot.snapshot == before


@pytest.mark.parametrize("size", [0, 1, BLOCK_SIZE, 2 * BLOCK_SIZE + 5])
async def test_a_journal_that_is_cut_anywhere_is_refused_or_recovers_an_announced_state(
    tmp_path: Path, size: int
) -> None:
    storage = FilesystemStorage(tmp_path / "storage", durability=Durability.OS)
    await storage.start()
    await storage.create(DESCRIPTOR)
    states = [await storage.load(ID)]
    writer = await storage.open(ID)
    states.append(writer.snapshot)
    if size:
        writer.append(b"x" * size)
        await writer.checkpoint()
        states.append(writer.snapshot)
    await storage.close()
    folder = tmp_path / "storage" / "resources" / ID
    refused = recovered = 0
    for end in range((folder / "journal").stat().st_size, -1, -1):
        os.truncate(folder / "journal", end)
        try:
            assert recover(ResourceFiles(folder, writable=False)).slot.snapshot in states
            recovered += 1
        except StorageFailure:
            refused += 1
    assert refused
    assert recovered
