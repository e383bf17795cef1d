"""What reopening an interrupted upload reads: `python benchmarks/reopening.py`.

It must not depend on the size. The resources are sparse: all their blocks are zeros, so that their journals can be made
without writing the data. Read bytes are counted where the storage reads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from tailrace_common_api import Metadata, ResourceState, Visibility
from tailrace_impl_common import BlockDigest, HeadHasher, block_digest, next_spine
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._journal import RECORDS_OFFSET, Slot, pack_records, pack_slot, slot_offset
from tailrace_server_api import BLOCK_SIZE, Descriptor, Durability, Snapshot

SIZES = {"1 MiB": 1 << 20, "1 GiB": 1 << 30, "100 GiB": 100 << 30}
_OPEN_END = 1000
_RECORDS_AT_ONCE = 65536


class ReadBytes:
    """Counts what is read with `os.pread`, by the name of the file."""

    def __init__(self) -> None:
        self.counts = {"data": 0, "journal": 0}
        self._pread = os.pread
        os.pread = self._counted

    def _counted(self, fd: int, length: int, offset: int) -> bytes:
        data = self._pread(fd, length, offset)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name in self.counts:
            self.counts[name] += len(data)
        return data

    def stop(self) -> None:
        """Count no more."""
        os.pread = self._pread


def make_interrupted(folder: Path, size: int) -> None:
    """Make data and journal of an upload of zeros that was interrupted at ``size``."""
    os.truncate(folder / "data", size)
    digest = block_digest(bytes(BLOCK_SIZE))
    spine = bytes(16)
    blocks = size // BLOCK_SIZE
    with (folder / "journal").open("r+b") as journal:
        journal.seek(RECORDS_OFFSET)
        for first in range(0, blocks, _RECORDS_AT_ONCE):
            records = []
            for number in range(first, min(first + _RECORDS_AT_ONCE, blocks)):
                spine = next_spine(spine, digest)
                records.append(BlockDigest(number, digest, spine, 0))
            journal.write(pack_records(records))
        hasher = HeadHasher.resume(spine=spine, blocks=blocks, open_block=bytes(size % BLOCK_SIZE))
        for version in (2, 3):
            snapshot = Snapshot(
                version=version,
                epoch=1,
                state=ResourceState.IN_PROGRESS,
                reason=None,
                size=size,
                newlines=0,
                head=hasher.head(),
                open_line=False,
            )
            journal.seek(slot_offset(version))
            journal.write(pack_slot(Slot(snapshot, spine, hasher.open_digest())))


async def measure(root: Path, name: str, size: int) -> None:
    """Print a row of the table."""
    storage = FilesystemStorage(root, durability=Durability.OS)
    await storage.start()
    descriptor = Descriptor(
        id=f"{size:032d}",
        metadata=Metadata(name=name),
        visibility=Visibility.LIVE,
        created_at=time.time(),
        token_hash=bytes(32),
        principal="",
    )
    await storage.create(descriptor)
    make_interrupted(root / "resources" / descriptor.id, size + _OPEN_END)
    read = ReadBytes()
    try:
        began = time.perf_counter()
        writer = await storage.open(descriptor.id)
        seconds = time.perf_counter() - began
    finally:
        read.stop()
    if writer.snapshot.size != size + _OPEN_END:
        raise SystemExit(f"{name}: reopened at {writer.snapshot.size}")
    print(f"| {name} | {read.counts['data']:,} | {read.counts['journal']:,} | {seconds * 1000:.1f} ms |")
    await storage.close()


async def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description="Measure what reopening an interrupted upload reads.")
    parser.add_argument("--folder", type=Path, help="where sparse files are made; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print("| size | data read, bytes | journal read, bytes | time |\n|---|---|---|---|")
        for name, size in SIZES.items():
            await measure(Path(folder) / name.replace(" ", ""), name, size)


if __name__ == "__main__":
    asyncio.run(main())
