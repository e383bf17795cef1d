"""Clients that come back: uploads, readers and questions after a lost connection, on the same way or another one."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path

import pytest
from cells import LASTING_CELLS, PROCESS_CELLS, WIRED_CELLS, Cell, Crossing, Transport
from conversations import HandUpload, eventually
from interruptions import MovableProxy, Times, breakable, breaking
from manifest import proves
from server_process import DEADLINE, ServerProcess, read_line, spawn
from servers import LocalServer, NewServer
from tcp_proxy import TcpProxy
from wiretap import Wiretap

from tailrace_client_upload_api import UploadRequest
from tailrace_common_api import (
    Checkpoint,
    ClientSettings,
    ConnectionLost,
    DataLost,
    Fenced,
    IntegrityError,
    Metadata,
    ResourceFailed,
    ResourceState,
    SourceChanged,
    TailraceError,
    UploadAborted,
)
from tailrace_impl_common import ConnectedClient, FailoverConnection, chunk_hash, head_of
from tailrace_impl_common.messages import Chunk, End, Finish, Finished, Opened, ServerMessage, Started

DATA = random.Random(9).randbytes(1_000_000)


async def followed(client: ConnectedClient, id: str) -> bytes:
    """Return what a follower from the start gets."""
    async with aclosing(client.open(id).follow()) as pieces:
        return b"".join([piece async for piece in pieces])


# Uploads at every step of the protocol

Rules = Callable[[], dict[str, Callable[[object], bool]]]

STEPS: dict[str, Rules] = {
    "before the first answer": lambda: {"receiving": Times(Opened, 1)},
    "before the next answers": lambda: {"after": Times(Chunk, 3), "receiving": Times(Opened, 2, 3)},
    "before the first chunk": lambda: {"before": Times(Chunk, 1)},
    "between chunks": lambda: {"before": Times(Chunk, 5, 9, 14)},
    "behind chunks": lambda: {"after": Times(Chunk, 1, 7, 8, 15)},
    "behind the last chunk": lambda: {"before": Times(Finish, 1, 2)},
    "when it finishes": lambda: {"after": Times(Finish, 1)},
    "before the acknowledgement": lambda: {"receiving": Times(Finished, 1)},
}


@pytest.mark.parametrize("step", STEPS)
@proves("UPL-9", "UPL-10")
async def test_an_upload_survives_a_cut_at_every_step(server: LocalServer, cell: Cell, step: str) -> None:
    reader = server.connect(cell.transport)
    async with breaking(server, cell, chunk_size=64 * 1024) as (client, rules):
        assert (await client.list_page()).statuses == ()
        rules.obey(**STEPS[step]())
        upload = client.start_upload(UploadRequest(metadata=Metadata(name="a"), idempotency_key="key"))
        async with upload:
            following = asyncio.ensure_future(followed(reader, upload.id))
            epoch = upload.epoch
            for start in range(0, len(DATA), 10_000):
                await upload.write(DATA[start : start + 10_000])
        assert rules.cuts >= 1
        # An upload that the server had completed when the connection broke is not continued.
        completed = ("when it finishes", "before the acknowledgement")
        assert upload.epoch > epoch or step == "before the first answer" or step in completed
        status = upload.status
        assert (status.state, status.size, status.head) == (ResourceState.COMPLETED, len(DATA), head_of(DATA))
        assert await following == DATA
        assert [each.id for each in (await reader.list_page()).statuses] == [upload.id]


@proves("UPL-9", "DWN-5", "RES-5")
async def test_both_directions_survive_many_cuts(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(upload_window=256 * 1024)
    async with (
        breakable(server, cell, chunk_size=16 * 1024) as (client, cut),
        breakable(server, cell, download_window=64 * 1024) as (reader, cut_reader),
    ):
        async with client.upload("a") as upload:
            following = asyncio.ensure_future(followed(reader, upload.id))

            async def watch() -> list[tuple[int, int]]:
                async with aclosing(reader.open(upload.id).statuses()) as statuses:
                    return [(status.version, status.size) async for status in statuses]

            watching = asyncio.ensure_future(watch())
            for number, start in enumerate(range(0, len(DATA), 10_000)):
                await upload.write(DATA[start : start + 10_000])
                if number % 10 == 9:
                    await upload.flush()
                    (cut if number % 20 == 9 else cut_reader)()
        assert upload.status.head == head_of(DATA)
        assert await following == DATA
        sizes = await watching
        assert sizes == sorted(sizes)
        assert len({version for version, _ in sizes}) == len(sizes)
        assert upload.epoch > 2


@proves("UPL-9", "UPL-3")
async def test_an_upload_that_ends_while_nobody_is_there(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(upload_grace=0.05)
    async with breaking(server, cell) as (client, rules):
        upload = client.upload("a")
        await upload.open()
        await upload.write(b"kept")
        await upload.flush()
        # Until the grace period is over no answer gets through.
        rules.receiving = lambda message: isinstance(message, Opened) and not message.status.state.terminal
        rules.cut()
        with pytest.raises(ResourceFailed, match="uploader lost") as caught:
            await upload.finish()
        assert caught.value.size == 4
        assert upload.status.state is ResourceState.FAILED
        status = await client.status(upload.id)
        assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "uploader lost", 4)


@proves("UPL-9", "UPL-3")
async def test_an_abort_during_an_outage_ends_at_once(server: LocalServer, cell: Cell) -> None:
    async with breaking(server, cell) as (client, rules):
        upload = client.upload("a")
        await upload.open()
        await upload.write(b"kept")
        await upload.flush()
        rules.receiving = lambda message: isinstance(message, Opened)
        rules.cut()
        async with aclosing(upload.interruptions()) as interruptions:
            assert await anext(interruptions) is not None
        finishing = asyncio.ensure_future(upload.finish())
        assert await upload.abort("given up") is None
        with pytest.raises((UploadAborted, ConnectionLost)):
            await finishing
        assert (await server.connect(cell.transport).status(upload.id)).state is ResourceState.IN_PROGRESS


@proves("UPL-10")
async def test_an_upload_that_was_taken_over_is_told_so_and_stops(server: LocalServer, cell: Cell) -> None:
    async with breakable(server, cell) as (client, _):
        upload = client.upload("a")
        await upload.open()
        await upload.write(b"common;")
        await upload.flush()
        other = await HandUpload.reopen(server.connect(cell.transport).connection, upload.id, upload.token, b"common;")
        await other.chunk(b"of another session")
        with pytest.raises(Fenced) as caught:
            await _write_until_it_fails(upload.write)
        assert caught.value.epoch == upload.epoch
        with pytest.raises(Fenced):
            await upload.finish()
        await upload.abort()
        finished = await other.finished()
        assert finished.status is not None
        assert finished.status.head == head_of(b"common;of another session")


async def _write_until_it_fails(write: Callable[[bytes], object]) -> None:
    while True:
        await write(b"of a zombie;")  # type: ignore[misc]  # it is a coroutine function
        await asyncio.sleep(0)


@proves("UPL-9")
async def test_bytes_of_another_session_are_found_by_comparing_heads(server: LocalServer, cell: Cell) -> None:
    async with breaking(server, cell, chunk_size=1000) as (client, rules):
        upload = client.upload("a")
        await upload.open()
        await upload.write(DATA[:200_000])
        await upload.flush()
        rules.obey(opening=lambda request: True, before=lambda message: isinstance(message, Chunk))
        await upload.write(DATA[200_000:201_000])
        async with aclosing(upload.interruptions()) as interruptions:
            assert await anext(interruptions) is not None
        other = await HandUpload.reopen(
            server.connect(cell.transport).connection, upload.id, upload.token, DATA[:200_000]
        )
        await other.chunk(b"?" * 500)
        await other.announced(200_500)
        await other.close()
        rules.obey()
        with pytest.raises(SourceChanged) as caught:
            await upload.finish()
        assert 100_000 <= caught.value.offset <= 200_000
        await upload.abort()
        status = await client.status(upload.id)
        assert status.size == 200_500


@proves("UPL-10", "UPL-9")
async def test_a_session_that_is_left_in_the_middle_is_continued_without_a_gap(server: LocalServer, cell: Cell) -> None:
    # Only the client believes that the connection is lost: the server still takes what is on the way when the next
    # session comes.
    async with breaking(server, cell, chunk_size=1000) as (client, rules):
        rules._cut = lambda: None
        rules.obey(receiving=Times(Checkpoint, 1, 2, 5))
        async with client.upload("a") as upload:
            for start in range(0, 100_000, 1000):
                await upload.write(DATA[start : start + 1000])
            # Each checkpoint is one more chance to leave.
            while rules.cuts < 3:
                await upload.write(b"more")
                await upload.flush()
            size = upload.offset
        assert upload.epoch >= 4
        more = b"more" * ((size - 100_000) // 4)
        assert upload.status.head == head_of(DATA[:100_000] + more)
        assert await client.open(upload.id).read() == DATA[:100_000] + more


@proves("UPL-7", "UPL-9")
async def test_what_waits_for_a_server_is_bounded(new_server: NewServer, cell: Cell) -> None:
    window = 256 * 1024
    server = await new_server(upload_window=window)
    async with breaking(server, cell, chunk_size=32 * 1024) as (client, rules):
        upload = client.upload("a")
        await upload.open()
        rules.before = lambda message: isinstance(message, Chunk) and message.offset >= 500_000
        rules.receiving = lambda message: rules.cuts > 0 and isinstance(message, Opened)
        written = 0

        async def produce() -> None:
            nonlocal written
            for start in range(0, len(DATA), 1000):
                await upload.write(DATA[start : start + 1000])
                written = start + 1000

        producing = asyncio.ensure_future(produce())
        await eventually(lambda: upload.interruption is not None)
        await eventually(lambda: rules.cuts > 2)
        assert not producing.done()
        machine = upload._machine  # type: ignore[attr-defined]  # how much is kept shows there only
        assert machine.kept + machine.pending <= 2 * window + 64 * 1024 + 2 * 32 * 1024
        assert written - upload.announced.size <= 2 * window + 2 * 32 * 1024
        rules.obey()
        await producing
        assert (await upload.finish()).head == head_of(DATA)
        assert machine.kept <= 64 * 1024


# Readers

READS: dict[str, Rules] = {
    "between chunks": lambda: {"receiving": Times(Chunk, 2, 5, 9)},
    "before the first answer": lambda: {"receiving": Times(Started, 1)},
    "before the next answers": lambda: {"receiving": _either(Times(Chunk, 4), Times(Started, 2, 3))},
    "before the end": lambda: {"receiving": Times(End, 1)},
}


def _either(*rules: Times) -> Callable[[object], bool]:
    # All of them count, whichever answers first.
    return lambda message: sum(rule(message) for rule in rules) > 0


@pytest.mark.parametrize("step", READS)
@proves("DWN-5")
async def test_readers_continue_behind_the_last_byte(
    new_server: NewServer, cell: Cell, step: str, tmp_path: Path
) -> None:
    server = await new_server()
    lines = b"".join(b"line %d\n" % number for number in range(20_000))
    async with breaking(server, cell, download_window=20_000) as (client, rules):
        async with client.upload("a", lines=True) as upload:
            await upload.write(lines)

        async def collect(chunks: AsyncIterator[object]) -> bytes:
            # Large chunks are read in pieces, so that there is something between them.
            return b"".join([bytes(chunk.data) async for chunk in chunks])  # type: ignore[attr-defined]  # chunks of any kind

        resource = client.open(upload.id)
        cases: list[tuple[Callable[[], AsyncIterator[object]], bytes]] = [
            (resource.chunks, lines),
            (lambda: resource.chunks(7, 100_007), lines[7:100_007]),
            (lambda: resource.last_chunks(100_000), lines[-100_000:]),
            (lambda: resource.line_chunks(5, 15_000), b"".join(lines.splitlines(keepends=True)[5:15_005])),
            (lambda: resource.last_line_chunks(15_000), b"".join(lines.splitlines(keepends=True)[-15_000:])),
            (resource.follow_chunks, lines),
        ]
        for read, expected in cases:
            cuts = rules.cuts
            rules.obey(**READS[step]())
            assert await collect(read()) == expected
            assert rules.cuts > cuts or step in ("between chunks", "before the next answers")
        rules.obey(**READS[step]())
        status = await resource.save(tmp_path / "saved")
        assert (tmp_path / "saved").read_bytes() == lines
        assert status.head == head_of(lines)


@pytest.mark.parametrize("how", ["corrupted", "lost", "forged"])
@proves("DWN-5", "DWN-6")
async def test_chunks_that_were_changed_on_the_way_are_asked_for_again(
    new_server: NewServer, cell: Cell, how: str
) -> None:
    server = await new_server(chunk_size=4096)
    client = server.connect(cell.transport)
    data = DATA[: 8 * 4096]
    async with client.upload("a") as upload:
        await upload.write(data)
    tap = Wiretap(client.connection)
    changed = 0

    def change(message: ServerMessage) -> tuple[ServerMessage, ...]:
        nonlocal changed
        if changed or not isinstance(message, Chunk) or message.offset < 3 * 4096:
            return (message,)
        changed += 1
        other = bytes(len(message.data))
        if how == "lost":
            return ()
        if how == "corrupted":
            return (message._replace(data=other),)
        return (message._replace(data=other, hash=chunk_hash(other)),)

    tap.inbound = change
    # From the middle, where no head can tell.
    reading = tap.client(ClientSettings()).open(upload.id).read(1, len(data))
    if how == "forged":
        with pytest.raises(IntegrityError):
            await reading
    else:
        assert await reading == data[1:]
    assert changed == 1


@proves("DWN-5", "DWN-1")
async def test_questions_and_statuses_survive_a_cut(server: LocalServer, cell: Cell) -> None:
    async with breakable(server, cell) as (client, cut):
        async with client.upload("a", lines=True) as upload:
            await upload.write(b"one\ntwo\n")
            await upload.flush()
            resource = client.open(upload.id)
            async with aclosing(resource.statuses()) as statuses:
                seen = [await anext(statuses)]
                for _ in range(3):
                    cut()
                    assert (await resource.status()).size == 8
                    cut()
                    assert (await client.list_page()).statuses[0].id == upload.id
                    cut()
                    assert await resource.heads([8]) == (head_of(b"one\ntwo\n"),)
                    cut()
                    assert (await resource.locate_line(1)).offset == 4
                cut()
                await upload.finish()
                seen += [status async for status in statuses]
            assert seen[-1].state is ResourceState.COMPLETED
            assert [status.version for status in seen] == sorted({status.version for status in seen})
        cut()
        await client.delete(upload.id)


@proves("DWN-5")
async def test_a_follower_waits_for_a_server_that_is_away(server: LocalServer, cell: Cell) -> None:
    writer = server.connect(cell.transport)
    async with breaking(server, cell) as (client, rules), writer.upload("a") as upload:
        await upload.write(b"before;")
        await upload.flush()
        resource = client.open(upload.id)
        async with aclosing(resource.follow()) as pieces, aclosing(resource.interruptions()) as interruptions:
            assert await anext(pieces) == b"before;"
            rules.receiving = lambda message: isinstance(message, Started)
            waiting = asyncio.ensure_future(anext(pieces))
            rules.cut()
            assert await anext(interruptions) is not None
            await upload.write(b"meanwhile;")
            await upload.flush()
            rules.obey()
            assert await waiting == b"meanwhile;"
            assert resource.interruption is None


# Other ways: transports, addresses, restarts


@proves("UPL-9", "DWN-5")
async def test_what_began_on_one_transport_goes_on_over_another(server: LocalServer, crossing: Crossing) -> None:
    def over(*transports: Transport) -> tuple[FailoverConnection, ConnectedClient]:
        connection = FailoverConnection([server.connect(transport).connection for transport in transports])
        return connection, ConnectedClient(connection, ClientSettings())

    there, uploader = over(crossing.upload, crossing.download)
    back, reader = over(crossing.download, crossing.upload)
    async with uploader.upload("a") as upload:
        following = asyncio.ensure_future(followed(reader, upload.id))
        await upload.write(DATA[:400_000])
        await upload.flush()
        await there._connections[0].close()
        await back._connections[0].close()
        await upload.write(DATA[400_000:])
    assert upload.status.head == head_of(DATA)
    assert await following == DATA
    assert there.current is there._connections[1]
    assert uploader.connection.best_chunk_size == there._connections[1].best_chunk_size
    assert upload.epoch > 1


@pytest.mark.cells(LASTING_CELLS & WIRED_CELLS)
@proves("UPL-9", "DWN-5", "RES-5")
async def test_uploads_and_followers_survive_restarts_of_the_server(cell: Cell, server_process: ServerProcess) -> None:
    data = DATA[:300_000]
    proxy = MovableProxy(server_process.url(cell.transport))
    async with proxy:
        connect = _connect_of(cell)
        async with connect(proxy.url, ClientSettings()) as client:
            async with client.upload("a", lines=True) as upload:
                following = asyncio.ensure_future(followed(client, upload.id))
                for start in range(0, len(data), 10_000):
                    await upload.write(data[start : start + 10_000])
                    if start in (50_000, 100_000):
                        # Some of it on the way, some stored, some announced.
                        await asyncio.to_thread(server_process.kill if start == 50_000 else server_process.stop)
                        await asyncio.to_thread(server_process.start)
                        proxy.move(server_process.url(cell.transport))
            assert upload.status.head == head_of(data)
            assert await following == data
            assert await client.open(upload.id).read() == data


def _connect_of(cell: Cell) -> Callable[[str, ClientSettings], ConnectedClient]:
    if cell.transport is Transport.GRPC:
        from tailrace_impl_grpc import connect
    else:
        from tailrace_impl_websocket import connect
    return connect


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-9", "DWN-5")
async def test_a_second_address_is_turned_to(server_process: ServerProcess, cell: Cell) -> None:
    # Two ways to one server, of which one goes down for good.
    connect = _connect_of(cell)
    url = server_process.url(cell.transport)
    async with TcpProxy(url) as first, TcpProxy(url) as second:
        ways = [connect(proxy.url, ClientSettings()).connection for proxy in (first, second)]
        async with ConnectedClient(FailoverConnection(ways), ClientSettings()) as client:
            async with client.upload("a") as upload:
                following = asyncio.ensure_future(followed(client, upload.id))
                await upload.write(DATA[:500_000])
                await upload.flush()
                assert first._server is not None
                first._server.close()
                first.cut()
                await upload.write(DATA[500_000:])
            assert upload.status.head == head_of(DATA)
            assert await following == DATA


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-9")
async def test_who_was_never_there_fails_at_once_and_who_was_is_waited_for(server: LocalServer, cell: Cell) -> None:
    async with TcpProxy(server.url(cell.transport)) as proxy:
        url = proxy.url
        client = server.connect(cell.transport, url=url, reconnect_timeout=0.3)
        upload = client.upload("a")
        await upload.open()
    # The proxy is gone.
    with pytest.raises(ConnectionLost):
        await upload.finish()
    assert upload.interruption is None
    stranger = server.connect(cell.transport, url=url, reconnect_timeout=3600.0)
    with pytest.raises(ConnectionLost):
        await stranger.upload("a").open()
    with pytest.raises(ConnectionLost):
        await stranger.status(upload.id)
    with suppress(TailraceError):
        await upload.abort()


# What a server has lost


async def _lose_what_came_since(server: ServerProcess, copy: Path, proxy: MovableProxy, cell: Cell) -> None:
    """Kill the server, put back what it had when the copy was made, and start it."""
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(shutil.rmtree, server.data)
    await asyncio.to_thread(shutil.copytree, copy, server.data)
    await asyncio.to_thread(server.start)
    proxy.move(server.url(cell.transport))


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize("seekable", [False, True], ids=["gone", "read again"])
@proves("UPL-9", "DWN-5")
async def test_a_server_that_lost_what_it_had_announced(
    server_process: ServerProcess, cell: Cell, tmp_path: Path, seekable: bool
) -> None:
    asked: list[int] = []

    async def prefix(size: int) -> AsyncIterator[bytes]:
        asked.append(size)
        yield DATA[:size]

    request = UploadRequest(metadata=Metadata(name="a"), prefix=prefix if seekable else None)
    proxy = MovableProxy(server_process.url(cell.transport))
    async with proxy, _connect_of(cell)(proxy.url, ClientSettings()) as client:
        upload = client.start_upload(request)
        await upload.open()
        follower = client.open(upload.id).follow()
        await upload.write(DATA[:100_000])
        await upload.flush()
        await asyncio.to_thread(server_process.stop)
        copy = tmp_path / "copy"
        await asyncio.to_thread(shutil.copytree, server_process.data, copy)
        await asyncio.to_thread(server_process.start)
        proxy.move(server_process.url(cell.transport))
        await upload.write(DATA[100_000:500_000])
        await upload.flush()
        got = bytearray()
        while len(got) < 500_000:
            got += await anext(follower)
        await _lose_what_came_since(server_process, copy, proxy, cell)
        if seekable:
            await upload.write(DATA[500_000:])
            status = await upload.finish()
            assert (status.size, status.head) == (len(DATA), head_of(DATA))
            assert await client.open(upload.id).read() == DATA
            assert asked[0] == 100_000
            assert max(asked) <= 500_000
        else:
            with pytest.raises(DataLost) as caught:
                await upload.finish()
            assert (caught.value.announced, caught.value.size) == (500_000, 100_000)
            status = await client.status(upload.id)
            assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "data lost", 100_000)
            with pytest.raises(DataLost) as lost:
                await anext(follower)
            assert (lost.value.announced, lost.value.size) == (500_000, 100_000)
        await follower.aclose()


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-10")
async def test_what_a_zombie_has_on_the_way_changes_nothing(server: LocalServer, cell: Cell) -> None:
    proxy = MovableProxy(server.url(cell.transport))
    async with proxy:
        zombie = server.connect(cell.transport, url=proxy.url).upload("a")
        await zombie.open()
        await zombie.write(b"common;")
        await zombie.flush()
        proxy.stall()
        # It leaves the client, and stays on the way until the other session is at work.
        await zombie.write(b"of a zombie;")
        finishing = asyncio.ensure_future(zombie.finish())
        await eventually(lambda: zombie._machine.state.name == "FINISHING")  # type: ignore[attr-defined]  # the session of this transport has one
        direct = server.connect(cell.transport)
        other = await HandUpload.reopen(direct.connection, zombie.id, zombie.token, b"common;")
        await other.chunk(b"of the living")
        await other.announced(20)
        proxy.resume()
        with pytest.raises(Fenced) as caught:
            await finishing
        assert caught.value.epoch == zombie.epoch < other.opened.epoch
        await zombie.abort()
        finished = await other.finished()
        assert finished.status is not None
        assert await direct.open(zombie.id).read() == b"common;of the living"


# The commands


@pytest.mark.cells(PROCESS_CELLS)
@proves("USE-6", "UPL-9", "DWN-5")
async def test_a_pipe_and_its_follower_survive_cuts_and_restarts(
    server_process: ServerProcess, cell: Cell, tmp_path: Path
) -> None:
    proxy = MovableProxy(server_process.url(cell.transport))
    lines = [b"line %d\n" % number for number in range(30)]
    async with proxy:
        with (
            spawn(tmp_path, "upload", "-", "--server", proxy.url) as uploader,
            ExitStack() as stack,
        ):
            assert uploader.stdin is not None
            assert uploader.stdout is not None
            reference = (await asyncio.to_thread(read_line, uploader.stdout, uploader)).decode().strip()
            follower = stack.enter_context(spawn(tmp_path, "follow", reference, "--server", proxy.url))
            assert follower.stdout is not None
            for number, line in enumerate(lines):
                uploader.stdin.write(line)
                assert await asyncio.to_thread(read_line, follower.stdout, follower) == line
                if number % 10 == 9:
                    await asyncio.to_thread(server_process.kill if number == 9 else server_process.stop)
                    await asyncio.to_thread(server_process.start)
                    proxy.move(server_process.url(cell.transport))
                elif number % 3 == 0:
                    proxy.cut()
            uploader.stdin.close()
            assert await asyncio.to_thread(uploader.wait, DEADLINE) == 0
            assert await asyncio.to_thread(follower.wait, DEADLINE) == 0
            assert follower.stdout.read() == b""
        async with _connect_of(cell)(proxy.url, ClientSettings()) as client:
            status = await client.status(reference)
            assert (status.state, status.head) == (ResourceState.COMPLETED, head_of(b"".join(lines)))
