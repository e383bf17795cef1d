"""Random uploads with takeovers, crashes and failures against a plain model, over every storage."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace_common_api import IntegrityError, Metadata, ResourceState, Visibility
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_server._filesystem_storage import FilesystemStorage
from tailrace_impl_server._memory_storage import MemoryStorage
from tailrace_server_api import BLOCK_SIZE, Committed, Descriptor, Durability, FencedOff, ResourceWriter, Storage

ID = "0" * 32

sizes = st.sampled_from([1, 2, 100, 4096, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE, 300_000])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), sizes),
        st.tuples(st.sampled_from(["checkpoint", "flush", "open", "kill", "bad chunk", "close", "lookup"]), st.just(0)),
    ),
    min_size=4,
    max_size=30,
)
ends = st.sampled_from(["complete", "fail", "leave"])


@dataclass
class Model:
    announced: bytes = b""
    appended: bytes = b""
    epoch: int = 0
    version: int = 1


def content(size: int, seed: int) -> bytes:
    line = f"line {seed}\n".encode()
    return (line * (size // len(line) + 1))[:size]


async def play(storage: Storage, root: Path | None, plan: list[tuple[str, int]], end: str) -> None:
    model = Model()
    await storage.create(
        Descriptor(
            id=ID,
            metadata=Metadata(name="x", lines=True),
            visibility=Visibility.LIVE,
            created_at=1.0,
            token_hash=bytes(32),
            principal="",
        )
    )
    writer: ResourceWriter | None = None

    def check() -> None:
        assert writer is not None
        snapshot = writer.snapshot
        assert snapshot.size == len(model.announced)
        assert snapshot.head == head_of(model.announced)
        assert snapshot.newlines == model.announced.count(b"\n")
        assert snapshot.version > model.version or (snapshot.version == model.version)
        model.version = snapshot.version

    async def open_writer() -> ResourceWriter:
        opened = await storage.open(ID)
        model.epoch += 1
        model.appended = model.announced
        assert opened.epoch == model.epoch
        return opened

    try:
        for number, (step, size) in enumerate(plan):
            if writer is None:
                writer = await open_writer()
                check()
            if step == "append":
                chunk = content(size, number)
                writer.append(chunk, hash=chunk_hash(chunk))
                model.appended += chunk
            elif step == "checkpoint":
                outcome = await writer.checkpoint()
                assert isinstance(outcome, Committed)
                model.announced = model.appended
                check()
            elif step == "flush":
                assert await writer.flush() == writer.stored == len(model.appended)
            elif step == "open":
                older, writer = writer, await open_writer()
                check()
                older.append(b"of an older session")
                assert await older.checkpoint() == FencedOff(writer.epoch)
            elif step == "bad chunk":
                writer.append(b"bad", hash=bytes(8))
                with pytest.raises(IntegrityError) as raised:
                    await writer.flush()
                assert raised.value.offset == len(model.appended)
                assert isinstance(await writer.checkpoint(), Committed)
                model.announced = model.appended
                check()
                await writer.close()
                writer = None
            elif step == "close":
                await writer.close()
                writer = None
            elif step == "kill" and root is not None:
                copy = root.with_name(f"{root.name}-{number}")
                await asyncio.to_thread(shutil.copytree, root, copy)
                await storage.close()
                root = copy
                storage = FilesystemStorage(root, durability=storage.durability)
                await storage.start()
                writer = None
                found = await storage.load(ID)
                assert found.size == len(model.announced)
                assert found.head == head_of(model.announced)
                assert found.version == model.version
            elif step == "lookup" and model.announced:
                half = len(model.announced) // 2
                boundary = await storage.boundary(ID, half)
                assert boundary.newlines == model.announced.count(b"\n", 0, boundary.offset)
                wanted = model.announced.count(b"\n") // 2 + 1
                found_boundary = await storage.boundary_of_newline(ID, wanted, len(model.announced))
                assert found_boundary.newlines < wanted
                following = found_boundary.offset + BLOCK_SIZE
                if following <= len(model.announced):
                    assert model.announced.count(b"\n", 0, following) >= wanted
                assert bytes((await storage.read(ID, half, len(model.announced))).data) == model.announced[half:]
        if end != "leave":
            writer = writer or await open_writer()
            await writer.flush()
            outcome = await (writer.complete() if end == "complete" else writer.fail("why"))
            assert isinstance(outcome, Committed)
            model.announced = model.appended
            check()
            assert writer.snapshot.state is (ResourceState.COMPLETED if end == "complete" else ResourceState.FAILED)
            if model.announced:
                assert bytes((await storage.read(ID, 0, len(model.announced))).data) == model.announced
            if root is not None:
                assert (root / "resources" / ID / "data").read_bytes() == model.announced
    finally:
        await storage.close()


@given(plan=steps, end=ends)
@settings(max_examples=60, deadline=None)
def test_a_memory_storage_behaves_like_the_model(plan: list[tuple[str, int]], end: str) -> None:
    async def run() -> None:
        storage = MemoryStorage()
        await storage.start()
        await play(storage, None, plan, end)

    asyncio.run(run())


@given(plan=steps, end=ends, durability=st.sampled_from(Durability))
@settings(max_examples=60, deadline=None)
def test_a_filesystem_storage_behaves_like_the_model(
    plan: list[tuple[str, int]], end: str, durability: Durability
) -> None:
    async def run(folder: Path) -> None:
        root = folder / "storage"
        storage = FilesystemStorage(root, durability=durability, writer_threads=1)
        await storage.start()
        await play(storage, root, plan, end)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
