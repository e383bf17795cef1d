"""Verification on the way: the chunk chain in both directions, chunk sizes, heads, and foreign messages."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cells import Cell
from conversations import Conversation, HandUpload, eventually
from google.protobuf.any_pb2 import Any as Envelope
from manifest import proves
from server_process import run
from servers import NewServer
from wiretap import Wiretap

from tailrace_common_api import (
    ClientSettings,
    ConfigurationError,
    IntegrityError,
    ProtocolError,
    ResourceState,
    TailraceError,
    WrongOffset,
)
from tailrace_impl_common import MAX_CHUNK_SIZE, ConnectedClient, chunk_hash, head_of
from tailrace_impl_common.messages import Chunk, End, Finish, Read, ServerMessage, Started
from tailrace_impl_grpc._poller import keep_poller
from tailrace_impl_grpc.chunk_chain import ChunkChain
from tailrace_impl_grpc.chunk_chain.aio import ChunkChain as AioChunkChain

PIECES = [bytes([number]) * 1000 for number in range(1, 5)]
GOOD = b"".join(PIECES)


async def _chunks_of(upload: HandUpload) -> list[Chunk]:
    """Return the chunks that a good client would send of the pieces."""
    chunks = []
    for piece in PIECES:
        chunks.append(upload.make(piece))
        upload.offset += len(piece)
        upload.previous = chunks[-1].hash
    return chunks


FAULTS: dict[str, tuple[Callable[[list[Chunk]], list[Chunk]], int, type[TailraceError]]] = {
    "first corrupted": (lambda c: [c[0]._replace(data=b"?" + c[0].data[1:]), *c[1:]], 0, IntegrityError),
    "middle corrupted": (lambda c: [c[0], c[1]._replace(data=b"?" + c[1].data[1:]), *c[2:]], 1000, IntegrityError),
    "last corrupted": (lambda c: [*c[:3], c[3]._replace(data=b"?" + c[3].data[1:])], 3000, IntegrityError),
    "last truncated": (lambda c: [*c[:3], c[3]._replace(data=c[3].data[:-1])], 3000, IntegrityError),
    "hash corrupted": (lambda c: [c[0], c[1]._replace(hash=bytes(8)), *c[2:]], 1000, IntegrityError),
    "first lost": (lambda c: c[1:], 0, WrongOffset),
    "lost": (lambda c: [c[0], *c[2:]], 1000, WrongOffset),
    "lost, offset made to fit": (lambda c: [c[0], c[2]._replace(offset=1000)], 1000, IntegrityError),
    "repeated": (lambda c: [c[0], c[1], c[1], *c[2:]], 2000, WrongOffset),
    "repeated, offset made to fit": (lambda c: [c[0], c[0]._replace(offset=1000)], 1000, IntegrityError),
    "exchanged": (lambda c: [c[0], c[2], c[1], c[3]], 1000, WrongOffset),
    "first with a previous one": (lambda c: [c[0]._replace(previous=bytes(8))], 0, IntegrityError),
    "later one without": (lambda c: [c[0], c[1]._replace(previous=b"")], 1000, IntegrityError),
}
"""What arrives of the chunks, how far it is good, and the error."""


@proves("INT-2", "INT-1")
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_bad_chunk_ends_the_upload_and_is_neither_stored_nor_shown(
    client: ConnectedClient, second_client: ConnectedClient, fault: str
) -> None:
    spoil, good, expected = FAULTS[fault]
    upload = await HandUpload.open(client.connection)
    shown = bytearray()

    async def follow() -> None:
        async with aclosing(second_client.open(upload.id).follow()) as pieces:
            async for piece in pieces:
                shown.extend(piece)

    following = asyncio.create_task(follow())
    try:
        for chunk in spoil(await _chunks_of(upload)):
            await upload.send(chunk)
        # The last chunk is followed by nothing but the end, which is right about what should have arrived.
        await upload.send(Finish(len(GOOD), head_of(GOOD)))
    except TailraceError:
        # The server has ended the transfer while more was still to be sent; its reason is there to be received.
        pass
    error = await upload.error()
    await upload.close()
    assert isinstance(error, expected)
    if isinstance(error, IntegrityError):
        assert error.offset == good
    elif isinstance(error, WrongOffset):
        assert error.expected == good
    again = await HandUpload.reopen(client.connection, upload.id, upload.token, GOOD[:good])
    assert again.opened.offset == good
    assert again.opened.head == head_of(GOOD[:good])
    status = await second_client.status(upload.id)
    assert status.state is (ResourceState.IN_PROGRESS if good else ResourceState.INITIATED)
    for piece in PIECES[good // 1000 :]:
        await again.chunk(piece)
    finished = await again.finished()
    assert finished.status is not None
    assert finished.status.head == head_of(GOOD)
    await following
    assert shown == GOOD


@proves("INT-2")
async def test_a_transfer_that_loses_its_end_does_not_complete(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    chunks = await _chunks_of(upload)
    for chunk in chunks[:-1]:
        await upload.send(chunk)
    await upload.send(Finish(len(GOOD), head_of(GOOD)))
    error = await upload.error()
    await upload.close()
    assert isinstance(error, IntegrityError)
    assert error.offset == 3000
    assert not (await client.status(upload.id)).state.terminal


@proves("INT-2", "UPL-5")
async def test_an_empty_transfer_has_a_verified_end_in_both_directions(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.finish(head=head_of(b"not empty"))
    assert isinstance(await upload.error(), IntegrityError)
    await upload.close()
    assert (await client.status(upload.id)).state is ResourceState.FAILED
    async with client.upload("empty") as empty:
        pass
    conversation = await Conversation.begin(client.connection, Read(id=empty.id))
    started, end = await conversation.rest()
    await conversation.close()
    assert isinstance(started, Started)
    assert isinstance(end, End)
    assert started.status.metadata.name == "empty"
    assert (end.offset, end.previous, end.status.head) == (0, b"", head_of(b""))
    tap = Wiretap(client.connection)

    def lie(message: ServerMessage) -> tuple[ServerMessage, ...]:
        if isinstance(message, End):
            return (End(offset=0, previous=bytes(8), status=message.status),)
        return (message,)

    tap.inbound = lie
    with pytest.raises(IntegrityError):
        await tap.client().open(empty.id).read()


@proves("INT-1")
async def test_the_same_fault_is_found_alike_in_both_directions(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(chunk_size=1024)
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"a" * 1024)
    bad = upload.make(b"b" * 1024)._replace(data=b"?" + b"b" * 1023)
    await upload.send(bad)
    sending = await upload.error()
    await upload.close()
    async with client.upload("good") as good:
        await good.write(b"a" * 1024 + b"b" * 1024)
    tap = Wiretap(client.connection)

    def spoil(message: ServerMessage) -> tuple[ServerMessage, ...]:
        if isinstance(message, Chunk) and message.offset == 1024:
            return (message._replace(data=bad.data, hash=bad.hash),)
        return (message,)

    tap.inbound = spoil
    with pytest.raises(IntegrityError) as receiving:
        await tap.client().open(good.id).read()
    assert isinstance(sending, IntegrityError)
    assert receiving.value.details() == sending.details()


# Sizes of chunks


@proves("INT-3")
async def test_chunks_are_of_one_size_but_the_last_of_a_burst(new_server: NewServer, cell: Cell) -> None:
    limit = 16 * 1024
    server = await new_server(chunk_size=limit)
    data = os.urandom(100_000)
    for wanted, used in ((None, limit), (7000, 7000), (10 * limit, limit)):
        client = server.connect(cell.transport)
        tap = Wiretap(client.connection)
        async with tap.client(ClientSettings(chunk_size=wanted)).upload("a") as upload:
            await upload.write(data)
        sizes = [len(message.data) for message in tap.log if isinstance(message, Chunk)]
        assert sizes == [used] * (len(data) // used) + [len(data) % used]
        conversation = await Conversation.begin(client.connection, Read(id=upload.id))
        read = [len(message.data) for message in await conversation.rest() if isinstance(message, Chunk)]
        await conversation.close()
        assert max(read) <= limit
        assert sum(read) == len(data)
    with pytest.raises(ConfigurationError):
        server.connect(cell.transport, chunk_size=4 * 1024 * 1024)


@proves("INT-3")
async def test_the_largest_chunk_passes(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(
        chunk_size=MAX_CHUNK_SIZE, upload_window=2 * MAX_CHUNK_SIZE, transport_settings={"chunk_size": MAX_CHUNK_SIZE}
    )
    client = server.connect(cell.transport, chunk_size=MAX_CHUNK_SIZE)
    data = os.urandom(4096) * (MAX_CHUNK_SIZE // 4096)
    upload = await HandUpload.open(client.connection)
    await upload.chunk(data)
    finished = await upload.finished()
    assert finished.status is not None
    assert finished.status.size == len(data) == MAX_CHUNK_SIZE
    assert await client.open(upload.id).read() == data


@proves("INT-2", "CON-2")
async def test_a_chunk_without_bytes_is_refused(client: ConnectedClient) -> None:
    upload = await HandUpload.open(client.connection)
    await upload.chunk(b"some")
    # A transport may refuse to carry it at all.
    try:
        await upload.send(Chunk(4, b"", chunk_hash(b""), upload.previous))
        error = await upload.error()
    except TailraceError as refused:
        error = refused
    assert isinstance(error, ProtocolError)
    await upload.close()
    await eventually(lambda: _has_announced(client, upload.id, 4))


async def _has_announced(client: ConnectedClient, id: str, size: int) -> bool:
    return (await client.status(id)).size == size


# Heads for everyone


def _vectors() -> list[tuple[int, str]]:
    text = (Path(__file__).parents[1] / "PROTOCOL.md").read_text()
    rows = re.findall(r"^\| (\d+) \| \d+ \| `[0-9a-f]{32}` \| (?:–|`[0-9a-f]{32}`) \| `([0-9a-f]{32})` \|$", text, re.M)
    assert len(rows) >= 6
    return [(int(size), head) for size, head in rows]


@proves("INT-4")
def test_the_command_prints_the_heads_that_the_protocol_lists(tmp_path: Path) -> None:
    for size, head in _vectors():
        data = bytes(number % 251 for number in range(size))
        path = tmp_path / str(size)
        path.write_bytes(data)
        assert head_of(data).hex() == head
        printed = run(tmp_path, "head", path)
        assert (printed.returncode, printed.stdout) == (0, f"{head}\n".encode())
    piped = run(tmp_path, "head", "-", stdin=data)
    assert piped.stdout == printed.stdout


# People's own methods and messages


class Foreign:
    """A transfer in messages of a type that was not made for it: a URL holds the hash, a value the bytes."""

    @staticmethod
    def build(data: bytes, previous: bytes) -> Envelope:
        return Envelope(type_url=previous.hex(), value=data)

    @staticmethod
    def read(message: Envelope) -> tuple[bytes, bytes]:
        return message.value, bytes.fromhex(message.type_url)


SIZE = 700
CONTENT = bytes(range(256)) * 11
FOREIGN_FAULTS: dict[str, Callable[[list[Envelope]], list[Envelope]]] = {
    "lost": lambda parts: [*parts[:1], *parts[2:]],
    "last lost": lambda parts: [*parts[:-2], parts[-1]],
    "exchanged": lambda parts: [parts[0], parts[2], parts[1], *parts[3:]],
    "corrupted": lambda parts: [parts[0], _changed(parts[1], b"?" + parts[1].value[1:]), *parts[2:]],
    "last corrupted": lambda parts: [*parts[:-2], _changed(parts[-2], b"?" + parts[-2].value[1:]), parts[-1]],
    "last truncated": lambda parts: [*parts[:-2], _changed(parts[-2], parts[-2].value[:-1]), parts[-1]],
    "without end": lambda parts: parts[:-1],
    "nothing at all": lambda _: [],
}


def _changed(part: Envelope, value: bytes) -> Envelope:
    return Envelope(type_url=part.type_url, value=value)


BLOCKING = ChunkChain(build=Foreign.build, read=Foreign.read, chunk_size=SIZE)
AIO = AioChunkChain(build=Foreign.build, read=Foreign.read, chunk_size=SIZE)


def _spoilt(name: str) -> list[Envelope]:
    parts = list(BLOCKING.messages(CONTENT))
    return FOREIGN_FAULTS[name](parts) if name in FOREIGN_FAULTS else parts


def _handlers(put: Any, get: Any) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "somebody.Store",
        {
            "Put": grpc.stream_unary_rpc_method_handler(put, Envelope.FromString, Envelope.SerializeToString),
            "Get": grpc.unary_stream_rpc_method_handler(get, Envelope.FromString, Envelope.SerializeToString),
        },
    )


def _methods(channel: Any) -> tuple[Any, Any]:
    return (
        channel.stream_unary("/somebody.Store/Put", Envelope.SerializeToString, Envelope.FromString),
        channel.unary_stream("/somebody.Store/Get", Envelope.SerializeToString, Envelope.FromString),
    )


class _Spoiling(ChunkChain[Envelope]):
    """Sends what a fault makes of a transfer."""

    def __init__(self, fault: str) -> None:
        super().__init__(build=Foreign.build, read=Foreign.read, chunk_size=SIZE)
        self._fault = fault

    def messages(self, source: Any) -> Generator[Envelope, None, None]:
        yield from _spoilt(self._fault)


class _AioSpoiling(AioChunkChain[Envelope]):
    def __init__(self, fault: str) -> None:
        super().__init__(build=Foreign.build, read=Foreign.read, chunk_size=SIZE)
        self._fault = fault

    async def messages(self, source: Any) -> Any:
        for message in _spoilt(self._fault):
            yield message


@pytest.fixture
def foreign_store() -> Iterator[tuple[Any, Any, list[bytes]]]:
    """The blocking methods of a server that knows nothing of Tailrace's services, and what it has taken."""
    taken: list[bytes] = []

    def put(requests: Iterator[Envelope], context: grpc.ServicerContext) -> Envelope:
        sink = io.BytesIO()
        try:
            return Envelope(type_url=str(BLOCKING.accept(requests, sink, context)))
        finally:
            taken.append(sink.getvalue())

    def get(request: Envelope, context: grpc.ServicerContext) -> Iterator[Envelope]:
        if request.type_url:
            return iter(_spoilt(request.type_url))
        return BLOCKING.messages(io.BytesIO(request.value))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers([_handlers(put, get)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield (*_methods(channel), taken)
        server.stop(1.0).wait()


@proves("INT-5")
@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "tiny", "large"])
def test_foreign_methods_carry_verified_transfers(foreign_store: tuple[Any, Any, list[bytes]], content: bytes) -> None:
    put, get, taken = foreign_store
    for source in (content, io.BytesIO(content), [content[:1000], content[1000:]]):
        assert BLOCKING.upload(put, source).type_url == str(len(content))
        assert taken.pop() == content
    sink = io.BytesIO()
    assert BLOCKING.download(get(Envelope(value=content)), sink) == len(content)
    assert sink.getvalue() == content


@proves("INT-5")
@pytest.mark.parametrize("fault", FOREIGN_FAULTS)
def test_foreign_methods_notice_what_goes_wrong(foreign_store: tuple[Any, Any, list[bytes]], fault: str) -> None:
    put, get, taken = foreign_store
    with pytest.raises(IntegrityError):
        _Spoiling(fault).upload(put, b"ignored")
    sink = io.BytesIO()
    with pytest.raises(IntegrityError):
        BLOCKING.download(get(Envelope(type_url=fault)), sink)
    # What came out is true, and less than everything.
    assert CONTENT.startswith(sink.getvalue())
    assert len(sink.getvalue()) < len(CONTENT)
    assert all(CONTENT.startswith(content) for content in taken)


@proves("INT-5")
def test_a_foreign_upload_that_is_refused_ends_before_its_source(
    foreign_store: tuple[Any, Any, list[bytes]],
) -> None:
    put, _, _ = foreign_store
    taken = itertools.count()

    class Endless(_Spoiling):
        def messages(self, source: Any) -> Generator[Envelope, None, None]:
            yield from _spoilt("lost")[:-1]
            while True:
                next(taken)
                yield Envelope(type_url="00" * 8, value=b"more")

    with pytest.raises(IntegrityError):
        Endless("lost").upload(put, b"ignored")


@proves("INT-5")
@pytest.mark.parametrize("fault", ["none", "empty", *FOREIGN_FAULTS])
async def test_foreign_asynchronous_methods(fault: str) -> None:
    taken: list[bytes] = []

    async def put(requests: AsyncIterator[Envelope], context: Any) -> Envelope:
        sink = io.BytesIO()
        try:
            return Envelope(type_url=str(await AIO.accept(requests, sink, context)))
        finally:
            taken.append(sink.getvalue())

    async def get(request: Envelope, context: Any) -> AsyncIterator[Envelope]:
        if request.type_url in FOREIGN_FAULTS:
            for message in _spoilt(request.type_url):
                yield message
        else:
            async for message in AIO.messages(request.value):
                yield message

    content = b"" if fault == "empty" else CONTENT
    # As our own do: what comes for the event loop of a test before this one is not reported by gRPC in this one.
    keep_poller()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([_handlers(put, get)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            upload, download = _methods(channel)
            sink = io.BytesIO()
            if fault not in FOREIGN_FAULTS:
                assert (await AIO.upload(upload, content)).type_url == str(len(content))
                assert taken == [content]
                assert await AIO.download(download(Envelope(value=content)), sink) == len(content)
                assert sink.getvalue() == content
                return
            with pytest.raises(IntegrityError):
                await _AioSpoiling(fault).upload(upload, b"ignored")
            with pytest.raises(IntegrityError):
                await AIO.download(download(Envelope(type_url=fault)), sink)
            assert CONTENT.startswith(sink.getvalue())
            assert all(CONTENT.startswith(part) for part in taken)
    finally:
        await server.stop(1.0)
