"""Servers whose disk is full, read-only, slow or broken, whose clock jumps, or who run out of descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from cells import PROCESS_CELLS, Cell, Transport
from conversations import HandUpload, eventually
from fault_points import Injection
from faulty_server import FaultyServer, Report, damages, leftovers, nothing_leaks
from manifest import proves
from soak import SEED
from witnesses import Witness

from tailrace_client_upload_api import ReopenRequest, UploadRequest, UploadSession
from tailrace_common_api import (
    ClientSettings,
    Metadata,
    Overloaded,
    ResourceState,
    StorageFailure,
    StorageFull,
    TailraceError,
)
from tailrace_impl_common import ConnectedClient, head_of
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

SOURCE = random.Random(SEED).randbytes(600_000)
PIECE = 20_000
HOURS = 3600


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(tmp_path / "data", tmp_path, {"checkpoint_interval": 0.0})
    yield server
    server.dispose()


@asynccontextmanager
async def connected(server: FaultyServer, cell: Cell, *, chunk_size: int = 16 * 1024) -> AsyncIterator[ConnectedClient]:
    connect = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
    async with connect(server.url(cell.transport), ClientSettings(chunk_size=chunk_size)) as client:
        yield client


async def nothing_is_left(server: FaultyServer, cell: Cell, before: Report) -> None:
    """Prove that the server holds what it held before.

    Not over gRPC: both of its ends keep connection and call for as long as anything refers to them, such as the
    traceback of an error that this test has seen.
    """
    if cell.transport is not Transport.GRPC:
        await nothing_leaks(server, before)


async def prefix(size: int) -> AsyncGenerator[bytes, None]:
    yield SOURCE[:size]


async def send_until_it_fails(
    client: ConnectedClient, reader: ConnectedClient
) -> tuple[str, str, Witness, type[TailraceError]]:
    """Upload until the server refuses more; return id, token, who watches, and the class of the error."""
    session = client.start_upload(UploadRequest(metadata=Metadata(name="a")))
    await session.open()
    witness = Witness(reader, session.id, SOURCE)
    try:
        for start in range(0, len(SOURCE), PIECE):
            await session.write(SOURCE[start : start + PIECE])
            await session.flush()
    except TailraceError as error:
        with suppress(TailraceError):
            await session.detach()
        return session.id, session.token, witness, type(error)
    raise AssertionError("the disk took everything")


async def continue_to_the_end(client: ConnectedClient, id: str, token: str, witness: Witness) -> None:
    """Take the upload up again, and see that nothing is missing in the end."""
    async with client.resume_upload(ReopenRequest(id=id, token=token, prefix=prefix)) as session:
        assert session.offset >= witness.size
        await session.write(SOURCE[session.offset :])
    assert session.status.head == head_of(SOURCE)
    assert (await witness.end()).head == head_of(SOURCE)


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize(
    ("disk", "durability", "after", "expected"),
    [
        ("full", "os", 9, StorageFull),
        ("full", "fsync", 20, StorageFull),
        ("read-only", "os", 9, StorageFailure),
        ("read-only", "fsync", 20, StorageFailure),
        ("failing", "fsync", 9, StorageFailure),
        ("failing", "fsync", 10, StorageFailure),
    ],
)
@proves("UPL-16", "RES-5", "UPL-9")
async def test_an_upload_goes_on_when_the_disk_works_again(
    tmp_path: Path, cell: Cell, disk: str, durability: str, after: int, expected: type[TailraceError]
) -> None:
    server = FaultyServer(tmp_path / "data", tmp_path, {"durability": durability, "checkpoint_interval": 0.0})
    try:
        injection = Injection(disk=disk, disk_after=after, control=str(server.control))
        await asyncio.to_thread(server.start_faulty, injection)
        before = await server.report()
        async with connected(server, cell) as client, connected(server, cell) as reader:
            upload_id, token, witness, error = await send_until_it_fails(client, reader)
            assert issubclass(error, expected)
            status = await client.status(upload_id)
            assert status.state in (ResourceState.INITIATED, ResourceState.IN_PROGRESS)
            assert await client.open(upload_id).read(0, status.size) == SOURCE[: status.size]
            server.heal_disk()
            await continue_to_the_end(client, upload_id, token, witness)
        await nothing_is_left(server, cell, before)
        await asyncio.to_thread(server.stop)
        assert (server.data / "resources" / upload_id / "data").read_bytes() == SOURCE
        assert leftovers(server.data) == []
        assert await damages(server.data) == []
    finally:
        server.dispose()


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-16")
async def test_a_disk_that_is_really_full(tmp_path: Path, cell: Cell) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mounted = await asyncio.to_thread(
        subprocess.run, ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(data)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system; the case before this one fills a disk in another way")
    server = FaultyServer(data, tmp_path, {"checkpoint_interval": 0.0})
    try:
        await asyncio.to_thread(server.start)
        filler = data / "filler"
        filler.write_bytes(bytes(400_000))
        async with connected(server, cell) as client, connected(server, cell) as reader:
            upload_id, token, witness, error = await send_until_it_fails(client, reader)
            assert issubclass(error, StorageFull)
            # Nothing new fits, and who only reads is not touched.
            with pytest.raises(StorageFull):
                async with client.upload("another") as another:
                    await another.write(bytes(200_000))
            assert await client.open(upload_id).read(0, witness.size) == SOURCE[: witness.size]
            filler.unlink()
            await continue_to_the_end(client, upload_id, token, witness)
        await asyncio.to_thread(server.stop)
    finally:
        server.dispose()
        await asyncio.to_thread(subprocess.run, ["umount", str(data)], check=True)


@pytest.mark.cells(PROCESS_CELLS)
@proves("RES-5")
async def test_writes_that_are_cut_short_are_completed(server: FaultyServer, cell: Cell) -> None:
    await asyncio.to_thread(server.start_faulty, Injection(disk="short", control=str(server.control)))
    async with connected(server, cell) as client:
        async with client.upload("a") as upload:
            witness = Witness(client, upload.id, SOURCE)
            for start in range(0, len(SOURCE), PIECE):
                await upload.write(SOURCE[start : start + PIECE])
        assert upload.status.head == head_of(SOURCE)
        assert (await witness.end()).head == head_of(SOURCE)
    await asyncio.to_thread(server.stop)
    assert await damages(server.data) == []


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-7", "DWN-7")
async def test_a_disk_that_stands_still_holds_up_nobody_else(tmp_path: Path, cell: Cell) -> None:
    # With "os" the event loop itself writes small appends, where the disk has been quick.
    server = FaultyServer(tmp_path / "data", tmp_path, {"durability": "fsync", "checkpoint_interval": 0.0})
    try:
        await _stand_still(server, cell)
    finally:
        server.dispose()


async def _stand_still(server: FaultyServer, cell: Cell) -> None:
    gate = server.make_gate()
    injection = Injection(disk="slow", disk_after=12, control=str(server.control))
    await asyncio.to_thread(server.start_faulty, injection)
    async with connected(server, cell) as client, connected(server, cell) as reader:
        async with reader.upload("whole") as whole:
            await whole.write(b"was there before")
        async with client.upload("held up") as upload:
            witness = Witness(reader, upload.id, SOURCE)
            announcing = asyncio.ensure_future(_write_all(upload))
            for _ in range(20):
                assert await reader.open(whole.id).read() == b"was there before"
                assert not (await reader.status(upload.id)).state.terminal
            assert not announcing.done()
            server.heal_disk()
            announced = threading.Event()
            opening = asyncio.create_task(asyncio.to_thread(_open_gate, gate, announced))
            try:
                await announcing
            finally:
                announced.set()
                await opening
        assert upload.status.head == head_of(SOURCE)
        assert (await witness.end()).head == head_of(SOURCE)


async def _write_all(upload: UploadSession) -> None:
    await upload.write(SOURCE)
    await upload.flush()


def _open_gate(gate: Path, until: threading.Event) -> None:
    """Let every write through that waits."""
    while not until.is_set():
        try:
            os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            # Nobody waits at this moment.
            os.sched_yield()


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize("jump", [2 * HOURS, -2 * HOURS, 24 * 400 * HOURS])
@proves("UPL-9", "RES-1", "RES-3")
async def test_a_clock_that_jumps_ends_nothing(tmp_path: Path, cell: Cell, jump: int) -> None:
    server = FaultyServer(tmp_path / "data", tmp_path, {"upload_grace": 600.0, "checkpoint_interval": 0.0})
    try:
        await asyncio.to_thread(server.start_faulty, Injection(control=str(server.control)))
        async with connected(server, cell) as client:
            lost = await HandUpload.open(client.connection)
            await lost.chunk(SOURCE[:PIECE])
            await lost.announced(PIECE)
            await lost.close()
            async with client.upload("during it") as upload:
                witness = Witness(client, upload.id, SOURCE)
                await upload.write(SOURCE[: len(SOURCE) // 2])
                await upload.flush()
                await server.set_clock(jump)
                await upload.write(SOURCE[len(SOURCE) // 2 :])
            assert (await witness.end()).head == head_of(SOURCE)
            # The grace of a lost uploader is time that has passed, whatever the clock says.
            assert (await client.status(lost.id)).state is ResourceState.IN_PROGRESS
            again = await HandUpload.reopen(client.connection, lost.id, lost.token, SOURCE[:PIECE])
            assert (await again.finished()).status is not None
            async with client.upload("behind it") as last:
                await last.write(b"x")
            assert last.id > upload.id
            assert [status.id async for status in client.list()] == [lost.id, upload.id, last.id]
    finally:
        server.dispose()


@pytest.mark.cells(PROCESS_CELLS)
@proves("LIM-1", "CON-4")
async def test_a_server_without_descriptors_serves_who_is_there(server: FaultyServer, cell: Cell) -> None:
    injection = Injection(descriptors=150, control=str(server.control))
    await asyncio.to_thread(server.start_faulty, injection)
    before = await server.report()
    async with connected(server, cell) as client:
        async with client.upload("honest") as upload, AsyncExitStack() as crowd:
            witness = Witness(client, upload.id, SOURCE)
            refused = await _crowd_in(crowd, server, cell)
            assert refused is not None, "nobody was refused"
            assert refused["code"] == Overloaded.code, refused
            assert refused["retry_after"]
            for start in range(0, len(SOURCE), PIECE):
                await upload.write(SOURCE[start : start + PIECE])
                await upload.flush()
        assert upload.status.head == head_of(SOURCE)
        assert (await witness.end()).head == head_of(SOURCE)

        async def has_room() -> bool:
            try:
                async with client.upload("there is room again") as later:
                    await later.write(b"x")
            except Overloaded:
                return False
            return True

        await eventually(has_room)
    await nothing_is_left(server, cell, before)


async def _crowd_in(crowd: AsyncExitStack, server: FaultyServer, cell: Cell) -> dict[str, object] | None:
    """Connect and upload again and again until that is refused; return the refusal."""
    settings = ClientSettings(reconnect_timeout=0)
    connect = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
    for number in range(200):
        other = await crowd.enter_async_context(connect(server.url(cell.transport), settings))
        try:
            await other.start_upload(UploadRequest(metadata=Metadata(name=f"{number}"))).open()
        except TailraceError as error:
            return {"code": error.code, **error.details()}
    return None
