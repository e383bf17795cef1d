"""Uploading: handshake, sources, windows, the end of an upload, and what is declared of it."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import os
import threading
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from cells import LASTING_CELLS, WEBSOCKET_CELLS, WIRED_CELLS, Cell
from clock import Clock
from conversations import HandUpload, eventually
from manifest import proves
from servers import LocalServer, NewServer
from tcp_proxy import TcpProxy
from websockets.asyncio.client import connect as connect_websocket
from websockets.typing import Subprotocol
from wiretap import Wiretap

from tailrace_client_upload_api import UploadSession
from tailrace_common_api import (
    ConnectionLost,
    DeadlineExceeded,
    DigestMismatch,
    EncodingError,
    GoingAway,
    IntegrityError,
    LengthMismatch,
    MessageTooLarge,
    ProtocolError,
    QuotaExceeded,
    ResourceState,
    SourceChanged,
    StorageFull,
    TailraceError,
    UploadAborted,
    WrongOffset,
)
from tailrace_impl_common import (
    EMPTY_HEAD,
    ConnectedClient,
    DirectoryClient,
    DiscardingClient,
    GrowingFile,
    RotationPolicy,
    SourceRestarted,
    Transcoder,
    head_of,
    iter_source,
)
from tailrace_impl_common.messages import Chunk, Opened, OpenUpload, Window
from tailrace_impl_server import _filesystem_writer
from tailrace_impl_server._positional_io import write_all

SMALL = {"upload_window": 64 * 1024, "chunk_size": 16 * 1024}
"""Settings with which little data meets every limit."""


# The handshake


@proves("UPL-1")
async def test_reference_token_window_and_limits_come_before_any_byte_leaves(client: ConnectedClient) -> None:
    tap = Wiretap(client.connection)
    tap.hold()
    upload = tap.client().upload("a", labels={"k": "v"})
    opening = asyncio.create_task(upload.open())
    await eventually(lambda: tap.log != [])
    assert not opening.done()
    with pytest.raises(RuntimeError):
        await upload.write(b"too early")
    tap.release()
    await opening
    await upload.write(b"data")
    await upload.finish()
    assert [type(message) for message in tap.log[:3]] == [OpenUpload, Opened, Chunk]
    opened = tap.log[1]
    assert isinstance(opened, Opened)
    assert opened.token
    assert opened.until > 0
    assert opened.limits == upload.limits
    assert opened.status.reference == upload.reference
    limits = opened.limits
    assert min(limits.chunk_size, limits.upload_window, limits.max_download_window, limits.max_resource_size) > 0
    assert min(limits.max_page_size, limits.max_heads) > 0
    assert limits.upload_grace == 60.0


@proves("UPL-1", "RES-4")
async def test_a_reader_is_there_before_the_first_byte(client: ConnectedClient) -> None:
    async with client.upload("a") as upload, client.open(upload.reference) as resource:
        follower = resource.follow()
        first = asyncio.ensure_future(anext(follower))
        assert await resource.read() == b""
        await upload.write(b"first")
        assert await first == b"first"
        await follower.aclose()


# Sources


@proves("UPL-2")
async def test_bytes_come_from_files_and_iterators_of_every_kind(client: ConnectedClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    path = tmp_path / "file"
    path.write_bytes(data)

    def pieces() -> Iterator[bytes]:
        return (data[start : start + 999] for start in range(0, len(data), 999))

    def generator() -> Generator[bytes, None, None]:
        yield from pieces()

    async def asynchronous() -> AsyncGenerator[bytes, None]:
        for piece in pieces():
            yield piece

    read_end, write_end = os.pipe()

    def fill() -> None:
        with open(write_end, "wb") as pipe:
            pipe.write(data)

    filling = asyncio.create_task(asyncio.to_thread(fill))
    with open(path, "rb") as file, open(read_end, "rb", buffering=0) as pipe:
        sources: list[Any] = [data, bytearray(data), memoryview(data), list(pieces()), generator(), asynchronous()]
        for source in [*sources, io.BytesIO(data), file, pipe]:
            async with client.upload("a") as upload, aclosing(iter_source(source)) as items:
                assert await upload.send_all(items) == len(data)
            assert upload.status.head == head_of(data)
    await filling
    async with client.upload("direct") as upload:
        await upload.send_all(pieces())
        await upload.send_all(asynchronous())
    assert upload.status.head == head_of(data + data)


@proves("UPL-2")
@pytest.mark.parametrize("notify", [True, False], ids=["notified", "polled"])
async def test_a_file_is_followed_from_before_it_exists(client: ConnectedClient, tmp_path: Path, notify: bool) -> None:
    path = tmp_path / "late.log"
    file = GrowingFile(path, poll_interval=0.01, notify=notify)
    upload = client.upload("late.log", lines=True)
    await upload.open()
    sending = asyncio.create_task(_send_file(upload, file))
    assert upload.announced.size == 0
    with open(path, "wb", buffering=0) as writer:
        for number in range(5):
            writer.write(b"line %d\n" % number)
            await eventually(lambda: upload.announced.newlines > number)  # noqa: B023 - called at once
        writer.write(b"rest")
        file.stop()
    await sending
    final = await upload.finish()
    assert (final.size, final.lines) == (39, 6)
    assert final.head == head_of(path.read_bytes())


async def _send_file(upload: UploadSession, file: GrowingFile) -> None:
    async with aclosing(file.pieces()) as pieces:
        async for piece in pieces:
            assert isinstance(piece, bytes)
            await upload.write(piece)


@proves("UPL-2")
@pytest.mark.parametrize("change", ["truncated", "replaced"])
@pytest.mark.parametrize("policy", list(RotationPolicy), ids=lambda policy: policy.value)
async def test_a_file_that_is_rotated_behaves_as_chosen(
    client: ConnectedClient, tmp_path: Path, policy: RotationPolicy, change: str
) -> None:
    path = tmp_path / "rotated.log"
    path.write_bytes(b"the first file\n")
    file = GrowingFile(path, rotation=policy, poll_interval=0.01)
    uploads = [client.upload("rotated.log")]
    await uploads[0].open()

    async def send() -> None:
        async with aclosing(file.pieces()) as pieces:
            async for piece in pieces:
                if isinstance(piece, SourceRestarted):
                    await uploads[-1].finish()
                    following = client.upload("rotated.log")
                    await following.open()
                    uploads.append(following)
                else:
                    await uploads[-1].write(piece)

    sending = asyncio.create_task(send())
    await eventually(lambda: uploads[0].announced.size == 15)
    if change == "truncated":
        os.truncate(path, 0)
    else:
        (tmp_path / "new").write_bytes(b"")
        (tmp_path / "new").rename(path)
    if policy is RotationPolicy.ERROR:
        with pytest.raises(SourceChanged):
            await sending
        status = await uploads[0].abort("SourceChanged")
        assert status is not None
        assert status.state is ResourceState.FAILED
        return
    expected = 2 if policy is RotationPolicy.RESTART else 1
    if expected == 2:
        await eventually(lambda: len(uploads) == 2)
    with open(path, "ab") as writer:
        writer.write(b"second\n")
    await eventually(lambda: uploads[-1].offset == (7 if expected == 2 else 22))
    file.stop()
    await sending
    await uploads[-1].finish()
    contents = [await client.open(upload.id).read() for upload in uploads]
    assert contents == ([b"the first file\n", b"second\n"] if expected == 2 else [b"the first file\nsecond\n"])


# The end of an upload


@proves("UPL-3")
async def test_leaving_with_an_exception_fails_the_resource_and_keeps_what_was_announced(
    client: ConnectedClient,
) -> None:
    upload = client.upload("a", lines=True)

    async def produce() -> None:
        async with upload:
            await upload.write(b"kept\nand this")
            await upload.flush()
            raise ValueError("the producer broke")

    with pytest.raises(ValueError, match="the producer broke"):
        await produce()
    status = await client.status(upload.id)
    assert (status.state, status.reason) == (ResourceState.FAILED, "ValueError: the producer broke")
    assert (status.size, status.lines) == (13, 2)
    assert await client.open(upload.id).read() == b"kept\nand this"
    with pytest.raises(TailraceError):
        await upload.write(b"more")


@proves("UPL-3")
async def test_abort_is_an_end_without_completion(client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    await upload.write(b"x" * 1000)
    await upload.flush()
    status = await upload.abort("enough")
    assert status is not None
    assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "enough", 1000)
    with pytest.raises(UploadAborted):
        await upload.finish()
    assert (await client.status(upload.id)).state is ResourceState.FAILED


@proves("UPL-3")
async def test_cancelling_takes_effect_in_the_middle_of_a_source_that_never_ends(client: ConnectedClient) -> None:
    upload = client.upload("a")
    sent = asyncio.Event()

    async def source() -> AsyncGenerator[bytes, None]:
        yield b"some"
        sent.set()
        await asyncio.Event().wait()

    async def produce() -> None:
        async with upload, aclosing(source()) as pieces:
            await upload.send_all(pieces)

    producing = asyncio.create_task(produce())
    await sent.wait()
    await upload.flush()
    producing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await producing
    status = await client.status(upload.id)
    assert (status.state, status.reason, status.size) == (ResourceState.FAILED, "cancelled", 4)


@proves("UPL-3", "UPL-7")
async def test_cancelling_takes_effect_while_the_window_is_used_up(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(**SMALL)
    tap = Wiretap(server.connect(cell.transport).connection)
    upload = tap.client().upload("a")
    await upload.open()
    tap.hold()

    async def produce() -> None:
        try:
            while True:
                await upload.write(b"x" * 1000)
        except asyncio.CancelledError:
            tap.release()
            await upload.abort("cancelled")
            raise

    producing = asyncio.create_task(produce())
    await eventually(lambda: _sent(tap) == SMALL["upload_window"])
    producing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await producing
    status = await tap.client().status(upload.id)
    assert (status.state, status.reason) == (ResourceState.FAILED, "cancelled")
    assert status.size <= SMALL["upload_window"]


def _sent(tap: Wiretap) -> int:
    return sum(len(message.data) for message in tap.log if isinstance(message, Chunk))


@proves("UPL-4")
async def test_completion_needs_both_sides_to_agree(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"data")
    await upload.finish(size=5)
    error = await upload.error()
    assert isinstance(error, IntegrityError)
    assert error.offset == 4
    await upload.close()
    # With another size, chunks are missing: the upload goes on where it stands.
    assert (await client.status(upload.id)).state is ResourceState.IN_PROGRESS
    again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"data")
    await again.chunk(b"!")
    finished = await again.finished()
    assert finished.status is not None
    assert (finished.status.state, finished.status.size) == (ResourceState.COMPLETED, 5)
    assert finished.status.head == head_of(b"data!")
    assert await client.open(upload.id).read() == b"data!"

    broken = await HandUpload.open(client.connection)
    await broken.chunk(b"data")
    await broken.finish(head=head_of(b"date"))
    assert isinstance(await broken.error(), IntegrityError)
    await broken.close()
    status = await client.status(broken.id)
    assert status.state is ResourceState.FAILED
    assert status.reason is not None
    assert "head" in status.reason


@pytest.mark.cells(LASTING_CELLS)
@proves("UPL-4")
async def test_data_and_journal_are_synced_before_completion_is_answered(
    client: ConnectedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fdatasync = os.fdatasync

    def recording(descriptor: int) -> None:
        fdatasync(descriptor)
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))

    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"x" * 200_000)
    await upload.announced(200_000)
    monkeypatch.setattr(os, "fdatasync", recording)
    assert synced == []
    finished = await upload.finished()
    assert finished.status is not None
    # Data, then records, then the slot that says COMPLETED.
    assert synced[0] == "data"
    assert synced[1:] == ["journal", "journal"]


@proves("UPL-5")
async def test_nothing_is_a_resource_too(client: ConnectedClient) -> None:
    async with client.upload("empty", lines=True, length=0, sha256=hashlib.sha256().digest()) as upload:
        await upload.write(b"")
    status = upload.status
    assert (status.state, status.size, status.lines, status.head) == (ResourceState.COMPLETED, 0, 0, EMPTY_HEAD)
    assert status.metadata.name == "empty"
    assert [chunk async for chunk in client.open(upload.id).follow()] == []
    by_hand = await HandUpload.open(client.connection, "by hand")
    finished = await by_hand.finished()
    assert finished.status is not None
    assert finished.status.metadata.name == "by hand"


@proves("UPL-5")
async def test_a_declared_length_that_is_exceeded_is_an_error_at_once(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection, length=5)
    await upload.chunk(b"123")
    await upload.announced(3)
    await upload.send(upload.make(b"456"))
    error = await upload.error()
    await upload.close()
    assert isinstance(error, LengthMismatch)
    assert (error.declared, error.actual) == (5, 6)
    status = await client.status(upload.id)
    assert (status.state, status.size) == (ResourceState.FAILED, 3)


@proves("UPL-5")
async def test_a_declared_length_that_is_missed_is_an_error(client: ConnectedClient) -> None:
    upload = client.upload("a", length=5)
    await upload.open()
    await upload.write(b"1234")
    with pytest.raises(LengthMismatch) as caught:
        await upload.finish()
    assert (caught.value.declared, caught.value.actual) == (5, 4)
    assert (await client.status(upload.id)).state is ResourceState.FAILED
    async with client.upload("a", length=5) as kept:
        await kept.write(b"12345")
    assert kept.status.size == 5


@proves("UPL-5")
async def test_a_declared_sha256_is_checked(client: ConnectedClient) -> None:
    data = os.urandom(300_000)
    async with client.upload("good", sha256=hashlib.sha256(data).digest()) as upload:
        await upload.write(data)
    assert upload.status.state is ResourceState.COMPLETED
    bad = client.upload("bad", sha256=hashlib.sha256(b"other").digest())
    await bad.open()
    await bad.write(data)
    with pytest.raises(DigestMismatch) as caught:
        await bad.finish()
    assert caught.value.actual == hashlib.sha256(data).hexdigest()
    assert (await client.status(bad.id)).state is ResourceState.FAILED


# Progress and windows


@proves("UPL-6", "CHK-2")
async def test_the_uploader_learns_what_is_announced(client: ConnectedClient) -> None:
    data = b"".join(b"piece %d\n" % number for number in range(50))
    seen = []
    async with client.upload("a", lines=True) as upload:

        async def watch() -> None:
            async with aclosing(upload.checkpoints()) as checkpoints:
                seen.extend([checkpoint async for checkpoint in checkpoints])

        watching = asyncio.create_task(watch())
        for start in range(0, len(data), 100):
            await upload.write(data[start : start + 100])
            checkpoint = await upload.flush()
            # What the uploader may forget is what everyone may read.
            assert (await client.status(upload.id)).size == checkpoint.size == upload.announced.size == upload.offset
        await upload.finish()
        await watching
    assert [checkpoint.size for checkpoint in seen] == sorted({checkpoint.size for checkpoint in seen})
    assert seen[-1].size == len(data)
    for checkpoint in seen:
        assert checkpoint.head == head_of(data[: checkpoint.size])
        assert checkpoint.newlines == data[: checkpoint.size].count(b"\n")


@proves("UPL-7")
async def test_a_slow_server_slows_the_writer(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(**SMALL)
    window = SMALL["upload_window"]
    tap = Wiretap(server.connect(cell.transport).connection)
    client = tap.client()
    async with client.upload("a") as upload:
        tap.hold()
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(300):
                await upload.write(b"x" * 1000)
                written += 1000

        writing = asyncio.create_task(write())
        await eventually(lambda: _sent(tap) == window)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not writing.done()
        # Unacknowledged and unannounced together stay below two windows, and no byte is sent that was not granted.
        assert _sent(tap) == window
        assert written <= 2 * window
        tap.release()
        await writing
    assert upload.status.size == 300_000
    until = 0
    sent = 0
    for message in tap.log:
        if isinstance(message, Opened):
            until = message.until
        elif isinstance(message, Window):
            until = max(until, message.until)
        elif isinstance(message, Chunk):
            sent = message.end
            assert sent <= until
            assert len(message.data) <= SMALL["chunk_size"]
    assert sent == 300_000


@proves("UPL-7", "CON-2")
async def test_an_upload_that_overdraws_its_window_is_ended(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(upload_window=8 * 1024, chunk_size=16 * 1024)
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection)
    assert upload.until == 8 * 1024
    await upload.send(upload.make(b"x" * (8 * 1024 + 1)))
    error = await upload.error()
    assert type(error) is ProtocolError
    assert "window" in str(error)
    await upload.close()
    assert (await client.status(upload.id)).size == 0
    again = await HandUpload.reopen(client.connection, upload.id, upload.token)
    assert again.opened.offset == 0
    await again.chunk(b"x" * 8 * 1024)
    await again.granted(9 * 1024)
    await again.chunk(b"fits")
    finished = await again.finished()
    assert finished.status is not None
    assert finished.status.size == 8 * 1024 + 4


@proves("UPL-7", "INT-3")
async def test_a_chunk_above_the_limit_is_refused(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(**SMALL)
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"y" * 100)
    await upload.send(upload.make(b"x" * (SMALL["chunk_size"] + 1)))
    error = await upload.error()
    await upload.close()
    assert isinstance(error, MessageTooLarge)
    assert error.maximum == SMALL["chunk_size"]
    await eventually(lambda: _has_size(client, upload.id, 100))


async def _has_size(client: ConnectedClient, id: str, size: int) -> bool:
    return (await client.status(id)).size == size


@proves("UPL-17")
async def test_many_uploads_share_one_client(client: ConnectedClient) -> None:
    async def produce(number: int) -> None:
        data = b"%d\n" % number * 5000
        async with client.upload(f"{number}", lines=True) as upload:
            for start in range(0, len(data), 7000):
                await upload.write(data[start : start + 7000])
        assert (upload.status.lines, upload.status.head) == (5000, head_of(data))

    async with asyncio.TaskGroup() as group:
        for number in range(30):
            group.create_task(produce(number))
    assert len((await client.list_page()).statuses) == 30


@proves("UPL-17")
async def test_uploads_share_threads(client: ConnectedClient) -> None:
    async with client.upload("first") as first:
        await first.write(b"x")
        await first.flush()
    before = threading.active_count()
    uploads = [client.upload(f"{number}") for number in range(60)]
    for upload in uploads:
        await upload.open()
        await upload.write(b"x" * 200_000)
    for upload in uploads:
        await upload.flush()
    # The server's pool of writers and the loop's executor may grow to their sizes, whatever the number of uploads.
    writers, executor = 4, min(32, (os.cpu_count() or 1) + 4)
    assert threading.active_count() - before < writers + executor + 5 < len(uploads)
    for upload in uploads:
        await upload.finish()


# Deadlines and dead peers


@proves("UPL-8")
async def test_the_time_between_start_and_completion_has_no_deadline(client: ConnectedClient, clock: Clock) -> None:
    upload = client.upload("a")
    await upload.open()
    await upload.write(b"before")
    await upload.flush()
    for _ in range(3):
        await clock.advance(3600.0)
        await upload.write(b"-after")
        await upload.flush()
    final = await upload.finish()
    assert (final.state, final.size) == (ResourceState.COMPLETED, 24)


@proves("UPL-8")
async def test_a_handshake_and_an_answer_that_do_not_come_have_deadlines(
    server: LocalServer, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        await never.wait()

    for operation in ("create", "open_reader", "list"):
        monkeypatch.setattr(server.manager, operation, hang)
    # What is measured begins with the connection, which exists already.
    client = server.connect(cell.transport, connect_timeout=2.0, answer_timeout=0.2)
    with pytest.raises(DeadlineExceeded):
        await client.list_page()
    with pytest.raises(DeadlineExceeded):
        await client.open("0" * 32).read()
    hasty = server.connect(cell.transport, connect_timeout=1.0)
    with pytest.raises(DeadlineExceeded):
        await hasty.upload("a").open()


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-8", "UPL-9")
async def test_a_dead_uploader_is_found_by_keep_alive(new_server: NewServer, cell: Cell) -> None:
    # Who lives on a busy machine must not be taken for dead.
    quick = {"keepalive_interval": 0.2, "keepalive_timeout": 2.0}
    server = await new_server(upload_grace=0.05, transport_settings=quick)
    async with TcpProxy(server.url(cell.transport)) as proxy:
        client = server.connect(cell.transport, url=proxy.url, reconnect_timeout=0.0)
        upload = client.upload("a")
        await upload.open()
        await upload.write(b"kept")
        await upload.flush()
        proxy.stall()
        async with aclosing(server.manager.statuses(upload.id)) as statuses:
            async for status in statuses:
                last = status
        assert (last.state, last.reason, last.size) == (ResourceState.FAILED, "uploader lost", 4)
        proxy.cut()
        with pytest.raises(TailraceError):
            await upload.finish()


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-8")
async def test_a_dead_server_is_found_by_keep_alive(server: LocalServer, cell: Cell) -> None:
    async with TcpProxy(server.url(cell.transport)) as proxy:
        client = server.connect(
            cell.transport, url=proxy.url, keepalive_interval=0.2, keepalive_timeout=2.0, reconnect_timeout=0.0
        )
        upload = client.upload("a")
        await upload.open()
        follower = client.open(upload.id).follow()
        waiting = asyncio.ensure_future(anext(follower))
        proxy.stall()
        with pytest.raises(ConnectionLost):
            await waiting
        with pytest.raises(ConnectionLost):
            await upload.flush() if upload.offset else await anext(_later_checkpoints(upload))
        await upload.abort()


async def _later_checkpoints(upload: UploadSession) -> AsyncGenerator[int, None]:
    async with aclosing(upload.checkpoints()) as checkpoints:
        async for checkpoint in checkpoints:
            if checkpoint.size:
                yield checkpoint.size


@pytest.mark.cells(WEBSOCKET_CELLS)
@proves("UPL-8")
async def test_a_client_that_cannot_send_protocol_pings_has_one_of_the_application(
    server: LocalServer, cell: Cell
) -> None:
    async with connect_websocket(
        f"{server.url(cell.transport)}/v1/connect", subprotocols=[Subprotocol("tailrace.v1")], ping_interval=None
    ) as websocket:
        hello = json.loads(await websocket.recv())
        assert (hello["type"], hello["keepalive_interval"]) == ("hello", 20.0)
        for _ in range(3):
            await websocket.send('{"type":"ping"}')
            assert json.loads(await websocket.recv()) == {"type": "pong"}


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-8")
async def test_nobody_at_the_address_is_told_with_the_address(server: LocalServer, cell: Cell) -> None:
    url = server.url(cell.transport)
    await server.stop_transports()
    client = server.connect(cell.transport, url=url, connect_timeout=5.0)
    with pytest.raises(ConnectionLost, match=url.split("//")[1]):
        await client.list_page()
    with pytest.raises(ConnectionLost):
        await client.upload("a").open()


# Offsets


@proves("UPL-12", "INT-2")
@pytest.mark.parametrize("offset", [0, 3, 9], ids=["repeated", "overlapping", "ahead"])
async def test_an_append_elsewhere_is_refused_with_the_right_offset(client: ConnectedClient, offset: int) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"12345")
    await upload.send(upload.make(b"67", offset=offset))
    error = await upload.error()
    await upload.close()
    assert isinstance(error, WrongOffset)
    assert (error.offset, error.expected) == (offset, 5)
    again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"12345")
    assert again.opened.offset == error.expected
    await again.chunk(b"67")
    finished = await again.finished()
    assert finished.status is not None
    assert finished.status.head == head_of(b"1234567")


# Text in any encoding


TEXTS: list[tuple[str, str, bytes, bytes | None]] = [
    ("utf-8 passes unchanged", "utf-8", "grün\r\n".encode(), "grün\r\n".encode()),
    ("latin-1", "latin-1", "grün".encode("latin-1"), "grün".encode()),
    ("utf-16 with its mark", "utf-16", "a\u20ac".encode("utf-16"), "a\u20ac".encode()),
    ("a mark of utf-8 is removed", "utf-8", b"\xef\xbb\xbfx", b"x"),
    ("only a mark", "utf-8", b"\xef\xbb\xbf", b""),
    ("only a mark of utf-16", "utf-16", b"\xff\xfe", b""),
    ("a contradicting mark", "utf-8", "x".encode("utf-16"), None),
    ("invalid", "utf-8", b"ok\xff", None),
    ("cut off", "utf-8", "ü".encode()[:1], None),
]


@proves("UPL-14")
@pytest.mark.parametrize(
    ("encoding", "source", "expected"), [text[1:] for text in TEXTS], ids=[text[0] for text in TEXTS]
)
async def test_text_is_uploaded_as_utf8(
    client: ConnectedClient, encoding: str, source: bytes, expected: bytes | None
) -> None:
    upload = client.upload("text", content_type="text/plain; charset=utf-8", lines=True)

    async def send() -> None:
        async with upload:
            transcoder = Transcoder(encoding)
            # One byte at a time: no character is cut.
            for number in range(len(source)):
                await upload.write(transcoder.feed(source[number : number + 1]))
            await upload.write(transcoder.finish())

    if expected is None:
        with pytest.raises(EncodingError):
            await send()
        assert (await client.status(upload.id)).state is ResourceState.FAILED
        replacing = Transcoder(encoding, errors="replace")
        if not source.startswith(b"\xff\xfe"):
            assert "\ufffd" in (replacing.feed(source) + replacing.finish()).decode()
        return
    await send()
    assert upload.status.head == head_of(expected)
    assert await client.open(upload.id).read() == expected


@proves("UPL-14")
async def test_text_that_trickles_is_forwarded_as_it_comes(client: ConnectedClient) -> None:
    transcoder = Transcoder("utf-16-le")
    async with client.upload("text") as upload:
        for character in "aä€":
            await upload.write(transcoder.feed(character.encode("utf-16-le")))
            await upload.flush()
            assert (await client.open(upload.id).read()).decode()[-1] == character


# Without a server


@proves("UPL-15")
@pytest.mark.parametrize("kind", ["directory", "discarding"])
async def test_uploads_work_without_a_server(tmp_path: Path, kind: str) -> None:
    client = DirectoryClient(tmp_path) if kind == "directory" else DiscardingClient()
    async with client.upload("build.log", lines=True) as upload:
        await upload.write(b"one\n")
        assert (await upload.flush()).newlines == 1
        await upload.write(b"two")
    assert (upload.status.state, upload.status.lines) == (ResourceState.COMPLETED, 2)
    assert upload.status.head == head_of(b"one\ntwo")
    contents = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and b"one" in path.read_bytes()]
    assert contents == ([b"one\ntwo"] if kind == "directory" else [])
    failing = client.upload("failing", length=1)
    await failing.open()
    with pytest.raises(LengthMismatch):
        await failing.write(b"12")


# Failures of the server


@proves("UPL-16")
async def test_a_quota_reaches_the_uploader_in_the_middle(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(max_resource_size=10_000)
    client = server.connect(cell.transport)
    upload = client.upload("a")
    await upload.open()
    await upload.write(b"x" * 10_000)
    await upload.flush()
    assert upload.limits.max_resource_size == 10_000
    greedy = client.upload("a")
    await greedy.open()
    with pytest.raises(QuotaExceeded) as caught:
        await _write_for_ever(greedy, 999)
    assert (caught.value.maximum, caught.value.actual > 10_000) == (10_000, True)
    await greedy.abort()
    assert (await client.status(greedy.id)).size <= 10_000
    with pytest.raises(QuotaExceeded):
        await client.upload("declared", length=10_001).open()
    assert (await upload.finish()).size == 10_000


async def _write_for_ever(upload: UploadSession, size: int) -> None:
    """Write without ever saying that the input ends: an error must not wait for that."""
    while True:
        await upload.write(b"x" * size)
        await upload.flush()


@proves("UPL-16")
async def test_a_full_store_reaches_the_uploader_at_once_and_leaves_the_upload_resumable(
    new_server: NewServer, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await new_server(memory_bytes=150_000)
    client = server.connect(cell.transport)
    if server.data is not None:

        def full(descriptor: int, buffers: list[bytes], offset: int) -> None:
            # No journal is that long.
            if offset >= 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write_all(descriptor, buffers, offset)

        monkeypatch.setattr(_filesystem_writer, "write_all", full)
    filler = client.upload("filler")
    upload = client.upload("a")
    await upload.open()
    await upload.write(b"x" * 100_000)
    await upload.flush()
    await filler.open()
    with pytest.raises(StorageFull):
        await _write_for_ever(upload, 60_000)
    await upload.abort()
    status = await client.status(upload.id)
    assert (status.state, status.size) == (ResourceState.IN_PROGRESS, 100_000)
    monkeypatch.undo()
    again = await HandUpload.reopen(client.connection, upload.id, upload.token, b"x" * 100_000)
    assert again.opened.offset == 100_000
    finished = await again.finished()
    assert finished.status is not None
    assert finished.status.head == head_of(b"x" * 100_000)
    await filler.finish()


@proves("UPL-16")
async def test_a_shutdown_reaches_the_uploader_at_once(server: LocalServer, cell: Cell) -> None:
    client = server.connect(cell.transport, reconnect_timeout=0.0)
    upload = client.upload("a")
    await upload.open()
    await upload.write(b"kept")
    await upload.flush()
    waiting = asyncio.ensure_future(anext(_later(upload, 4)))
    await asyncio.sleep(0)
    await server.stop_transports(grace=30.0)
    await server.manager.close()  # type: ignore[attr-defined]  # the manager of this package has it
    with pytest.raises((GoingAway, ConnectionLost)) as caught:
        await waiting
    assert isinstance(caught.value, GoingAway)
    assert caught.value.retry_after > 0
    await upload.abort()


async def _later(upload: UploadSession, size: int) -> AsyncGenerator[int, None]:
    async with aclosing(upload.checkpoints()) as checkpoints:
        async for checkpoint in checkpoints:
            if checkpoint.size > size:
                yield checkpoint.size
