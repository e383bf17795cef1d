"""Checkpoints: when they are announced, what they survive, and what a restarted server makes of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cells import LASTING_CELLS, PROCESS_CELLS, Cell, Transport
from clock import Clock
from conversations import HandUpload, eventually, is_gone
from manifest import proves
from server_process import ServerProcess
from servers import NewServer
from wiretap import Wiretap

from tailrace_common_api import Checkpoint, ClientSettings, ResourceState, Status, TailraceError, Visibility
from tailrace_impl_common import ConnectedClient, count_newlines, head_of
from tailrace_impl_common.messages import Chunk
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket
from tailrace_server_api import BLOCK_SIZE, Outcome, ResourceWriter

LINE = b"a line of forty bytes, newline and all.\n"


def checkpoint_of(status: Status) -> tuple[int, int | None, bytes]:
    """Return what a status announces to readers."""
    return status.size, status.lines, status.head


def checkpoint_in(data: bytes, size: int) -> Checkpoint:
    """Return what is to be announced of the first bytes of something."""
    return Checkpoint(size, count_newlines(data[:size]), head_of(data[:size]))


# When


class Writing:
    """Stops the writers of a server between the writing and the announcing of a checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tailrace_impl_server._filesystem_writer import FilesystemWriter
        from tailrace_impl_server._memory_storage import MemoryWriter

        self.handed_over = 0
        self.written = asyncio.Event()
        self._returning = asyncio.Semaphore(0)
        for writer in (FilesystemWriter, MemoryWriter):
            self._gate(monkeypatch, writer)

    def _gate(self, monkeypatch: pytest.MonkeyPatch, writer: type[ResourceWriter]) -> None:
        checkpoint, append = writer.checkpoint, writer.append

        async def gated(self_: ResourceWriter) -> Outcome:
            outcome = await checkpoint(self_)
            self.written.set()
            await self._returning.acquire()
            return outcome

        def counted(self_: ResourceWriter, data: bytes, *, hash: bytes | None = None) -> None:
            self.handed_over += len(data)
            append(self_, data, hash=hash)

        monkeypatch.setattr(writer, "checkpoint", gated)
        monkeypatch.setattr(writer, "append", counted)

    def let_return(self, count: int) -> None:
        """Let the next checkpoints be announced."""
        for _ in range(count):
            self._returning.release()


@pytest.fixture
def writing(new_server: NewServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writing]:
    """Stop every checkpoint from the start; at the end of the test all of them go on."""
    gates = Writing(monkeypatch)
    yield gates
    gates.let_return(100_000)


@proves("CHK-1")
async def test_what_arrives_during_an_announcement_is_coalesced_into_the_next(
    client: ConnectedClient, second_client: ConnectedClient, writing: Writing
) -> None:
    upload = await HandUpload.open(client.connection, lines=True)
    await upload.chunk(b"first\n")
    await writing.written.wait()
    for _ in range(50):
        await upload.chunk(LINE)
    await eventually(lambda: writing.handed_over == 6 + 50 * len(LINE))
    # Written is not announced: nobody is told before the write has returned.
    assert checkpoint_of(await second_client.status(upload.id)) == (0, 0, head_of(b""))
    assert await second_client.open(upload.id).read() == b""
    writing.let_return(1)
    assert await upload.receive(Checkpoint) == Checkpoint(6, 1, head_of(b"first\n"))
    everything = b"first\n" + LINE * 50
    writing.let_return(1)
    assert await upload.receive(Checkpoint) == Checkpoint(len(everything), 51, head_of(everything))
    assert await second_client.open(upload.id).read() == everything
    await upload.finished()


INTERVAL = 600.0


async def stored(upload: HandUpload, data: bytes) -> None:
    """Send a chunk that is large enough to renew the window, and wait until the server has it."""
    granted = upload.until
    await upload.chunk(data)
    await upload.granted(granted + 1)


@proves("CHK-1", "RES-5")
async def test_an_interval_has_a_leading_and_a_trailing_edge(
    new_server: NewServer, cell: Cell, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody may take the jumps of the clock for a dead peer.
    calm: dict[str, Any] = {"keepalive_interval": 100_000.0, "keepalive_timeout": 100_000.0}
    server = await new_server(checkpoint_interval=INTERVAL, upload_window=2**20, transport_settings=calm)
    client = server.connect(cell.transport, **calm)
    upload = await HandUpload.open(client.connection)
    sent = b"x"
    await upload.chunk(sent)
    # The leading edge: the first bytes show at once.
    assert (await upload.announced(1)).size == 1
    for _ in range(2):
        for _ in range(2):
            await stored(upload, bytes(300_000))
            sent += bytes(300_000)
        assert (await client.status(upload.id)).size == len(sent) - 600_000
        # The trailing edge: what came meanwhile shows when the time is up, and nothing more is written.
        await clock.advance(INTERVAL + 1)
        assert await upload.receive(Checkpoint) == Checkpoint(len(sent), 0, head_of(sent))
        assert (await client.status(upload.id)).size == len(sent)
    # After a pause longer than the interval the next burst has its leading edge again.
    await clock.advance(INTERVAL + 1)
    await upload.chunk(b"y")
    assert (await upload.receive(Checkpoint)).size == len(sent) + 1
    await upload.finished()


@proves("CHK-1", "UPL-7")
async def test_a_window_of_unannounced_bytes_is_announced_whatever_the_interval(
    new_server: NewServer, cell: Cell
) -> None:
    server = await new_server(checkpoint_interval=INTERVAL, upload_window=WINDOW)
    tap = Wiretap(server.connect(cell.transport).connection)
    # Neither the client nor the server may wait for the interval.
    async with tap.client().upload("a") as upload:
        await upload.write(bytes(10 * WINDOW))
    assert upload.status.size == 10 * WINDOW
    assert unannounced(tap) <= 2 * WINDOW


@proves("CHK-1", "UPL-7")
async def test_a_slow_announcement_holds_the_uploader_back(new_server: NewServer, cell: Cell, writing: Writing) -> None:
    server = await new_server(upload_window=WINDOW)
    tap, other = Wiretap(server.connect(cell.transport).connection), server.connect(cell.transport)
    async with tap.client().upload("a") as upload:
        filling = asyncio.create_task(upload.write(bytes(10 * WINDOW)))
        await writing.written.wait()
        await eventually(lambda: writing.handed_over >= WINDOW)
        for _ in range(20):
            # Whatever is stored meanwhile: the client must not have to keep more than two windows of it.
            assert await other.open(upload.id).read() == b""
            assert unannounced(tap) <= 2 * WINDOW
        writing.let_return(1000)
        await filling
    assert upload.status.size == 10 * WINDOW
    assert unannounced(tap) <= 2 * WINDOW


WINDOW = 2**18


def unannounced(tap: Wiretap) -> int:
    """Return the most bytes that a client had to keep at any time."""
    most = announced = 0
    for message in tap.log:
        if isinstance(message, Checkpoint):
            announced = message.size
        elif isinstance(message, Chunk):
            most = max(most, message.end - announced)
    return most


# What


@pytest.mark.parametrize("durability", ["os", "fsync"])
@proves("CHK-2", "RES-5", "UPL-6")
async def test_readers_and_the_uploader_are_told_the_same(new_server: NewServer, cell: Cell, durability: str) -> None:
    server = await new_server(durability=durability)
    client, reader = server.connect(cell.transport), server.connect(cell.transport)
    upload = await HandUpload.open(client.connection, lines=True)
    seen: list[tuple[int, int | None, bytes]] = []

    async def watch() -> None:
        async with aclosing(reader.open(upload.id).statuses()) as statuses:
            seen.extend([checkpoint_of(status) async for status in statuses])

    watching = asyncio.create_task(watch())
    sent = b""
    for number in range(12):
        for data in (b"%d\n" % number, b"x" * (number * 20_000 + 1)):
            await upload.chunk(data)
            sent += data
        checkpoint = await upload.receive(Checkpoint)
        # Whoever asks once the uploader was told finds it, and all of it.
        status = await reader.status(upload.id)
        assert status.size >= checkpoint.size
        assert head_of(await reader.open(upload.id).read(0, checkpoint.size)) == checkpoint.head
        while checkpoint.size < len(sent):
            assert checkpoint == checkpoint_in(sent, checkpoint.size)
            checkpoint = await upload.receive(Checkpoint)
        assert checkpoint == checkpoint_in(sent, len(sent))
    finished = await upload.finished()
    assert finished.status is not None
    await watching
    assert seen[-1] == checkpoint_of(finished.status) == (len(sent), 13, head_of(sent))
    # Each may be told of an announcement that the other one skips, and then both are told the same of a size.
    for size, lines, head in seen[:-1]:
        assert Checkpoint(size, lines or 0, head) == checkpoint_in(sent, size)


@pytest.mark.cells(LASTING_CELLS)
@pytest.mark.parametrize("durability", ["os", "fsync"])
@proves("CHK-2")
async def test_bytes_are_synced_before_the_journal_and_the_journal_before_the_announcement(
    new_server: NewServer, cell: Cell, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace_impl_server import _filesystem_writer as module

    recorded: list[tuple[str, int]] = []
    write_all, sync_data = vars(module)["write_all"], vars(module)["sync_data"]

    def record_write(descriptor: int, buffers: list[bytes], offset: int) -> None:
        recorded.append(("write", os.fstat(descriptor).st_ino))
        write_all(descriptor, buffers, offset)

    def record_sync(descriptor: int) -> None:
        recorded.append(("sync", os.fstat(descriptor).st_ino))
        sync_data(descriptor)

    def calls() -> list[str]:
        assert server.data is not None
        names = {path.stat().st_ino: path.name for path in server.data.rglob("*")}
        return [f"{what} {names[inode]}" for what, inode in recorded]

    server = await new_server(durability=durability)
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection)
    monkeypatch.setattr(module, "write_all", record_write)
    monkeypatch.setattr(module, "sync_data", record_sync)
    for size in (10, BLOCK_SIZE):
        recorded.clear()
        await upload.chunk(bytes(size))
        await upload.announced(upload.offset)
        # Before the slot, the records of the blocks that are full.
        journal = ["write journal"] * (1 + (size == BLOCK_SIZE))
        if durability == "os":
            assert calls() == ["write data", *journal]
        else:
            assert calls() == ["write data", "sync data", *journal, "sync journal"]
    recorded.clear()
    await upload.finished()
    # The end is on disk before it is answered, in both; then it is written a second time, into the other place.
    assert calls() == ["sync data", "sync journal", "write journal", "sync journal", "write journal"]


# After a restart


@pytest.mark.cells(LASTING_CELLS)
@proves("CHK-3", "UPL-9")
async def test_the_grace_begins_again_with_the_server(new_server: NewServer, cell: Cell, clock: Clock) -> None:
    server = await new_server(upload_grace=INTERVAL)
    client = server.connect(cell.transport)
    live = await HandUpload.open(client.connection, lines=True)
    await live.chunk(b"kept\nkept")
    await live.announced(9)
    atomic = await HandUpload.open(client.connection, visibility=Visibility.ATOMIC)
    await atomic.chunk(b"gone")
    await atomic.announced(4)
    await live.close()
    await atomic.close()
    await clock.advance(INTERVAL - 60)
    await server.restart()
    client = server.connect(cell.transport)
    await clock.advance(INTERVAL - 60)
    assert (await client.status(live.id)).state is ResourceState.IN_PROGRESS
    assert (await client.status(atomic.id, token=atomic.token)).state is ResourceState.IN_PROGRESS
    await clock.advance(61)
    status = await client.open(live.id).wait()
    assert (status.state, status.reason, status.size, status.lines) == (ResourceState.FAILED, "uploader lost", 9, 2)
    await eventually(lambda: is_gone(client, atomic.id))


@pytest.mark.cells(LASTING_CELLS)
@proves("CHK-3")
async def test_recovery_reads_no_data_but_the_open_block(
    new_server: NewServer, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace_impl_server import _filesystem_recovery as module

    server = await new_server()
    client = server.connect(cell.transport)
    ended = client.upload("ended")
    async with ended:
        await ended.write(bytes(10 * BLOCK_SIZE))
    upload = await HandUpload.open(client.connection)
    for _ in range(20):
        await upload.chunk(bytes(BLOCK_SIZE))
        await upload.announced(upload.offset)
    await upload.chunk(bytes(1000))
    await upload.announced(upload.offset)
    read_up_to = vars(module)["read_up_to"]
    assert server.data is not None
    (folder,) = [path for path in server.data.rglob(upload.id) if path.is_dir()]
    read = {(folder / name).stat().st_ino: 0 for name in ("data", "journal")}

    def record_read(descriptor: int, length: int, offset: int) -> bytes:
        data: bytes = read_up_to(descriptor, length, offset)
        read[os.fstat(descriptor).st_ino] += len(data)
        return data

    monkeypatch.setattr(module, "read_up_to", record_read)
    await server.restart()
    # The slots, and the one record between them.
    assert list(read.values()) == [1000, 12_288 + 48]
    client = server.connect(cell.transport)
    assert (await client.status(upload.id)).size == 20 * BLOCK_SIZE + 1000


class Observer:
    """Everything that anybody was told of one resource, over all lives of the server."""

    def __init__(self) -> None:
        self.version = self.size = self.lines = 0
        self.state = ResourceState.INITIATED

    def take(self, status: Status) -> None:
        """Take a status, which must not go back behind an earlier one."""
        assert status.lines is not None
        assert status.version >= self.version
        assert (status.size, status.lines) >= (self.size, self.lines)
        assert status.lines >= self.lines
        assert not self.state.terminal or status.state is self.state
        self.version, self.size, self.lines, self.state = status.version, status.size, status.lines, status.state

    def announce(self, checkpoint: Checkpoint) -> None:
        """Take what the uploader was told."""
        self.size, self.lines = max(self.size, checkpoint.size), max(self.lines, checkpoint.newlines)


NewProcess = Callable[..., ServerProcess]
End = Callable[[ServerProcess], object]


def stop(server: ServerProcess) -> None:
    """End a server in order."""
    assert server.stop() == 0


ENDS = pytest.mark.parametrize("end", [stop, ServerProcess.kill], ids=["stopped", "killed"])


@asynccontextmanager
async def connected(server: ServerProcess, cell: Cell) -> AsyncIterator[ConnectedClient]:
    """Connect to a server process over the transport of the cell."""
    connect = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
    async with connect(server.url(cell.transport), ClientSettings()) as client:
        yield client


async def restart(server: ServerProcess, end: End) -> None:
    """End a server and start it again on the same data."""
    await asyncio.to_thread(end, server)
    await asyncio.to_thread(server.start)


async def complete(client: ConnectedClient, id: str, token: str, source: bytes, seen: Observer) -> None:
    """Reopen an upload with its token, send what is missing, and prove that the resource is the source."""
    offset = (await client.status(id)).size
    assert source[:offset] == await client.open(id).read()
    again = await HandUpload.reopen(client.connection, id, token, source[:offset])
    assert (again.offset, again.opened.head) == (offset, head_of(source[:offset]))
    assert again.opened.newlines == count_newlines(source[:offset])
    seen.take(again.opened.status)
    for start in range(offset, len(source), 100_000):
        piece = source[start : start + 100_000]
        await again.granted(start + len(piece))
        await again.chunk(piece)
    finished = await again.finished()
    assert finished.status is not None
    seen.take(finished.status)
    assert (finished.status.state, finished.status.head) == (ResourceState.COMPLETED, head_of(source))
    resource = client.open(id)
    assert await resource.read() == source
    assert await resource.read_lines(last=1) == [source.splitlines(keepends=True)[-1]]


Before = Callable[[HandUpload, ServerProcess], Awaitable[bytes]]


async def accepted(upload: HandUpload, server: ServerProcess) -> bytes:
    """Nothing was sent."""
    return b""


async def announced(upload: HandUpload, server: ServerProcess) -> bytes:
    """All that was sent is announced, in the middle of a line and of a block."""
    data = LINE * 10_000 + b"cut"
    await upload.chunk(data)
    await upload.announced(len(data))
    return data


async def stored_only(upload: HandUpload, server: ServerProcess) -> bytes:
    """Most of what was sent is stored and not announced."""
    data = b"first\n" + LINE * 20_000
    await upload.chunk(data[:6])
    await upload.announced(6)
    await stored(upload, data[6:])
    return data


async def arriving(upload: HandUpload, server: ServerProcess) -> bytes:
    """Nobody knows what of it is where."""
    data = LINE * 60_000
    for start in range(0, len(data), 100_000):
        await upload.chunk(data[start : start + 100_000])
    await upload.announced(1)
    return data


@pytest.mark.cells(PROCESS_CELLS)
@ENDS
@pytest.mark.parametrize("before", [accepted, announced, stored_only, arriving])
@proves("CHK-3", "RES-3", "RES-5", "UPL-9", "UPL-10")
async def test_an_interrupted_upload_goes_on_where_it_was_announced(
    new_server_process: NewProcess, cell: Cell, before: Before, end: End
) -> None:
    options: dict[str, object] = {"upload_window": 4 * 2**20}
    if before is stored_only:
        options = {"upload_window": 2**20, "checkpoint_interval": INTERVAL}
    server = await asyncio.to_thread(lambda: new_server_process(**options))
    seen = Observer()
    async with connected(server, cell) as client:
        upload = await HandUpload.open(client.connection, lines=True)
        seen.take(upload.opened.status)
        source = await before(upload, server)
        seen.take(await client.status(upload.id))
        if before is stored_only:
            assert seen.size == 6
        await restart(server, end)
        error = await upload.error()
        assert isinstance(error, TailraceError)
    source += b"the rest\nof it"
    async with connected(server, cell) as client:
        status = await client.status(upload.id)
        seen.take(status)
        assert status.state in (ResourceState.INITIATED, ResourceState.IN_PROGRESS)
        assert checkpoint_of(status) == (
            status.size,
            count_newlines(source[: status.size]),
            head_of(source[: status.size]),
        )
        await complete(client, upload.id, upload.token, source, seen)


@pytest.mark.cells(PROCESS_CELLS)
@proves("CHK-3", "RES-5")
async def test_torn_tails_are_cut(new_server_process: NewProcess, cell: Cell) -> None:
    server = await asyncio.to_thread(new_server_process)
    seen = Observer()
    source = LINE * 8_000 + b"the rest\n"
    async with connected(server, cell) as client:
        upload = await HandUpload.open(client.connection, lines=True)
        await upload.chunk(source[:300_000])
        seen.announce(await upload.announced(300_000))
        seen.take(await client.status(upload.id))
        await asyncio.to_thread(server.kill)
        await upload.error()

    def tear() -> Path:
        """Leave what a write leaves that was cut off: bytes without a record, and half a record."""
        (folder,) = [path for path in server.data.rglob(upload.id) if path.is_dir()]
        with (folder / "data").open("ab") as data:
            data.write(b"\xff" * 200_000)
        with (folder / "journal").open("ab") as journal:
            journal.write(b"\xff" * 47)
        return folder

    folder = await asyncio.to_thread(tear)
    await asyncio.to_thread(server.start)
    async with connected(server, cell) as client:
        status = await client.status(upload.id)
        seen.take(status)
        assert (status.size, status.head) == (300_000, head_of(source[:300_000]))
        again = await HandUpload.reopen(client.connection, upload.id, upload.token)
        # Nothing stale is there any more that could be taken for new later.
        assert (folder / "data").stat().st_size == 300_000
        assert (folder / "journal").stat().st_size == 12_288 + 48 * (300_000 // BLOCK_SIZE)
        await again.close()
        await complete(client, upload.id, upload.token, source, seen)


@pytest.mark.cells(PROCESS_CELLS)
@proves("CHK-3", "UPL-4", "RES-3")
async def test_what_has_ended_is_there_after_a_kill(new_server_process: NewProcess, cell: Cell) -> None:
    server = await asyncio.to_thread(new_server_process)
    finals = []
    async with connected(server, cell) as client:
        for number in range(3):
            upload = client.upload(f"number {number}", lines=True)
            await upload.open()
            await upload.write(LINE * number * 4000 + b"end")
            await upload.flush()
            status = await upload.finish() if number < 2 else await upload.abort("given up")
            assert status is not None
            finals.append(status)
        await restart(server, ServerProcess.kill)
    async with connected(server, cell) as client:
        for number, final in enumerate(finals):
            status = await client.status(final.id)
            assert (status.version, status.state, status.reason) == (final.version, final.state, final.reason)
            assert checkpoint_of(status) == checkpoint_of(final)
            assert await client.open(final.id).read() == LINE * number * 4000 + b"end"
        listed = [status.id async for status in client.list()]
        assert listed == [final.id for final in finals]


@pytest.mark.cells(PROCESS_CELLS)
@proves("CHK-3", "RES-5", "UPL-9")
async def test_an_upload_survives_being_killed_again_and_again(new_server_process: NewProcess, cell: Cell) -> None:
    server = await asyncio.to_thread(new_server_process)
    seen = Observer()
    source = b"".join(b"%d: %s\n" % (number, b"x" * (number % 200)) for number in range(30_000))
    async with connected(server, cell) as client:
        upload = await HandUpload.open(client.connection, lines=True)
        resource, token = upload.id, upload.token
        await upload.close()
    for life in range(1, 4):
        async with connected(server, cell) as client:
            status = await client.status(resource)
            seen.take(status)
            assert status.head == head_of(source[: status.size])
            again = await HandUpload.reopen(client.connection, resource, token, source[: status.size])
            seen.take(again.opened.status)

            async def send(again: HandUpload = again) -> None:
                try:
                    for start in range(again.offset, len(source), 3000):
                        await again.granted(start + 3000)
                        await again.chunk(source[start : start + 3000])
                except TailraceError:
                    pass

            # The uploader is told of sizes and a reader sees statuses up to the moment of the kill.
            watcher = client.open(resource).statuses()
            sending = asyncio.create_task(send())
            target = life * len(source) // 5
            async with aclosing(watcher):
                async for status in watcher:
                    seen.take(status)
                    if status.size >= target:
                        break
            await asyncio.to_thread(server.kill)
            try:
                while (message := await again.stream.receive()) is not None:
                    if isinstance(message, Checkpoint):
                        seen.announce(message)
            except TailraceError:
                pass
            sending.cancel()
            await asyncio.wait([sending])
            await again.close()
        await asyncio.to_thread(server.start)
    async with connected(server, cell) as client:
        seen.take(await client.status(resource))
        await complete(client, resource, token, source, seen)


@pytest.mark.cells(PROCESS_CELLS)
@proves("CHK-3", "UPL-13")
async def test_nobody_comes_back_after_a_kill(new_server_process: NewProcess, cell: Cell) -> None:
    server = await asyncio.to_thread(lambda: new_server_process(upload_grace=0.1))
    async with connected(server, cell) as client:
        live = await HandUpload.open(client.connection)
        await live.chunk(b"kept")
        await live.announced(4)
        atomic = await HandUpload.open(client.connection, visibility=Visibility.ATOMIC)
        await atomic.chunk(b"gone")
        await atomic.announced(4)
        await restart(server, ServerProcess.kill)
    async with connected(server, cell) as client:
        status = await client.open(live.id).wait()
        assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "uploader lost", 4)
        await eventually(lambda: not any(server.data.rglob(atomic.id)))
        assert await client.open(live.id).read() == b"kept"
