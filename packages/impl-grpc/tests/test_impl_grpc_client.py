"""The client where a server, a network or an application goes wrong; what works is in the contract tests."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from free_ports import free_port

from tailrace_client_upload_api import UploadSession
from tailrace_common_api import (
    SERVER_TRANSPORTS,
    ClientSettings,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    Deleted,
    FromOffset,
    InternalError,
    InvalidArgument,
    Metadata,
    NotFound,
    ProtocolError,
    QuotaExceeded,
    ResourceState,
    Unsupported,
    find_transport,
)
from tailrace_impl_common import ChainSender, ClientStream, ConnectedClient, chunk_hash, head_of
from tailrace_impl_common.messages import (
    Chunk,
    End,
    Finished,
    Follow,
    GetStatus,
    Opened,
    OpenUpload,
    Read,
    Started,
    Watch,
    Window,
)
from tailrace_impl_grpc import GrpcConnection, GrpcServer, connect
from tailrace_impl_grpc._codec import UPLOAD
from tailrace_impl_grpc._error_table import error_to_status
from tailrace_impl_grpc._http2_client_call import Http2ClientCall
from tailrace_impl_grpc._library_client import LibraryConnection
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_server_api import ResourceManager, TransportServerSettings

NewClient = Callable[..., ConnectedClient]
Handler = Callable[[grpc.aio.ServicerContext[bytes, bytes]], Coroutine[Any, Any, None]]


@asynccontextmanager
async def serving(handler: Handler, service: str = "tailrace.v1.Uploads", method: str = "Upload") -> AsyncIterator[str]:
    """Serve one method by ``handler`` alone, and yield the URL."""

    async def handle(_messages: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await handler(context)

    server = grpc.aio.server()
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {method: grpc.stream_stream_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(None)


def opening() -> OpenUpload:
    return OpenUpload(metadata=Metadata(name="a"))


def chunks() -> Iterator[Chunk]:
    """Yield chunks of one byte without end."""
    chain = ChainSender()
    while True:
        offset = chain.offset
        own, previous = chain.next(b"x")
        yield Chunk(offset, b"x", own, previous)


async def send_for_ever(stream: ClientStream) -> None:
    for chunk in chunks():
        await stream.send(chunk)


async def grant_for_ever(stream: ClientStream) -> None:
    while True:
        await stream.send(Window(1))


async def write_for_ever(upload: UploadSession) -> None:
    while True:
        await upload.write(bytes(10_000))


@pytest.mark.parametrize("scheme", ["grpc", "grpcs"])
def test_urls_find_this_transport(scheme: str) -> None:
    assert find_transport(scheme) is connect
    assert find_transport("grpc", group=SERVER_TRANSPORTS) is GrpcServer


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("grpc://example.org", "example.org:7070"),
        ("grpc://example.org:1/", "example.org:1"),
        ("grpcs://[::1]:9", "[::1]:9"),
    ],
)
def test_addresses_are_taken_from_urls(url: str, address: str) -> None:
    assert GrpcConnection(url, ClientSettings()).address == address


@pytest.mark.parametrize(
    "url",
    [
        "ws://example.org",
        "grpc://",
        "example.org:7070",
        "grpc://example.org/prefix",
        "grpc://user@example.org",
        "grpc://example.org:port",
        "grpc://example.org?x",
    ],
)
def test_impossible_urls_are_configuration_errors(url: str) -> None:
    with pytest.raises(ConfigurationError):
        connect(url)


@pytest.mark.parametrize("options", [{"what": "1"}, {"compression": "maybe"}, {"proxy": ""}])
def test_impossible_options_are_configuration_errors(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        connect("grpc://example.org", ClientSettings(options=options))


async def test_nobody_listens(server: GrpcServer, url: str, address: str) -> None:
    await server.close(1.0)
    async with connect(url) as client:
        for attempt in (client.status("0" * 32), client.upload("a").open(), anext(client.open("0" * 32).statuses())):
            with pytest.raises(ConnectionLost, match=address) as caught:
                await attempt
            assert "refused" in str(caught.value)


async def test_a_peer_that_does_not_answer_runs_into_the_deadline() -> None:
    # The system takes connections, and nobody ever speaks on them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"grpc://127.0.0.1:{silent.getsockname()[1]}"
        async with connect(url, ClientSettings(connect_timeout=0.2, answer_timeout=0.2)) as client:
            with pytest.raises((DeadlineExceeded, ConnectionLost)):
                await client.upload("a").open()
            with pytest.raises((DeadlineExceeded, ConnectionLost)):
                await client.status("0" * 32)


async def test_closing_ends_who_waits_for_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = ClientSettings(connect_timeout=1000.0)
        client = connect(f"grpc://127.0.0.1:{silent.getsockname()[1]}", settings)
        opening = asyncio.create_task(client.upload("a").open())
        for _ in range(10):
            await asyncio.sleep(0)
        assert client.connection._connecting  # type: ignore[attr-defined]  # that it waits shows nowhere else
        await client.close()
        with pytest.raises(ConnectionLost):
            await opening


async def test_an_answer_that_does_not_come_runs_into_the_deadline() -> None:
    async def say_nothing(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        await context.read()

    async with serving(say_nothing) as url, connect(url, ClientSettings(connect_timeout=0.2)) as client:
        with pytest.raises(DeadlineExceeded):
            await client.upload("a").open()


async def test_a_unary_answer_that_does_not_come_runs_into_the_deadline(
    manager: ResourceManager, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_args: object, **_kwargs: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(manager, "heads", never)
    client = new_client(answer_timeout=0.2)
    with pytest.raises(DeadlineExceeded) as caught:
        await client.open("0" * 32).heads([0])
    assert (caught.value.what, caught.value.seconds) == ("the answer to Heads", 0.2)


async def test_the_connection_is_made_again_after_the_server_came_back(manager: ResourceManager) -> None:
    first = GrpcServer()
    await first.start(manager, TransportServerSettings(port=free_port()))
    url = first.urls["grpc"]
    async with connect(url, ClientSettings(reconnect_timeout=0)) as client:
        async with client.upload("a") as upload:
            pass
        await first.close(1.0)
        for _ in range(3):
            with pytest.raises(ConnectionLost):
                await client.status(upload.reference)
        second = GrpcServer()
        await second.start(manager, TransportServerSettings(port=int(url.rpartition(":")[2])))
        assert (await client.status(upload.reference)).state is ResourceState.COMPLETED
        async with client.upload("b") as upload:
            await upload.write(b"x")
        await second.close(1.0)


async def test_a_closed_client_refuses_and_tells_those_who_wait(client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    following = asyncio.ensure_future(anext(client.open(upload.reference).follow()))
    statuses = client.open(upload.reference).statuses()
    await anext(statuses)
    watching = asyncio.ensure_future(anext(statuses))
    await asyncio.wait([following, watching], timeout=0.05)
    await client.close()
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await following
    with pytest.raises(ConnectionLost, match="closed by this client"):
        await watching
    for attempt in (client.status(upload.reference), client.upload("b").open(), upload.finish()):
        with pytest.raises(ConnectionLost):
            await attempt
    await upload.abort()
    await client.close()


async def test_the_reason_for_the_end_reaches_a_writer_that_only_writes(client: ConnectedClient) -> None:
    async with await client.connection.open(opening()) as stream:
        opened = await stream.receive()
        assert isinstance(opened, Opened)
        await client.delete(opened.status.id)
        with pytest.raises(Deleted):
            await send_for_ever(stream)


async def test_the_reason_for_the_end_reaches_a_writer_at_once(client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    writing = asyncio.ensure_future(write_for_ever(upload))
    async with aclosing(upload.checkpoints()) as checkpoints:
        async for checkpoint in checkpoints:
            if checkpoint.size > 100_000:
                break
    await client.delete(upload.reference)
    with pytest.raises(Deleted):
        await writing
    await upload.abort()


async def test_messages_before_the_error_are_delivered_after_a_failed_write() -> None:
    """A server that says much, and then ends the call with an error, while the client only writes."""
    error = QuotaExceeded(limit="bytes", maximum=1, actual=2)

    async def talk(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        for number in range(20):
            await context.write(UPLOAD.encode_response(Window(number)))
        await context.abort(*error_to_status(error))

    async with serving(talk) as url:
        connection = GrpcConnection(url, ClientSettings())
        stream = await connection.open(opening())
        with pytest.raises(QuotaExceeded) as caught:
            await send_for_ever(stream)
        assert caught.value.details() == error.details()
        assert [await stream.receive() for _ in range(20)] == [Window(number) for number in range(20)]
        for _ in range(2):
            with pytest.raises(QuotaExceeded):
                await stream.receive()
        await stream.close()
        await stream.close()
        await connection.close()


async def test_what_a_server_said_is_heard_even_when_it_has_hung_up(client: ConnectedClient) -> None:
    async with client.upload("a") as upload:
        await upload.write(b"data")
    async with await client.connection.open(Follow(id=upload.id, start=FromOffset(0), window=1)) as stream:
        # The server sends everything and ends the call: what is granted then comes too late.
        with pytest.raises(ConnectionLost, match="has ended the conversation"):
            await grant_for_ever(stream)
        kinds = [type(await stream.receive()) for _ in range(4)]
    assert kinds == [Started, Chunk, End, type(None)]


async def test_a_server_that_ends_in_order_too_early_is_a_lost_connection_for_a_writer() -> None:
    async def leave(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()

    async with serving(leave) as url:
        connection = GrpcConnection(url, ClientSettings())
        stream = await connection.open(opening())
        with pytest.raises(ConnectionLost, match="has ended the conversation"):
            await send_for_ever(stream)
        assert await stream.receive() is None
        assert await stream.receive() is None
        await connection.close()


async def test_bad_messages_of_a_server_are_protocol_errors() -> None:
    async def babble(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        await context.write(b"\xff")
        await context.read()

    async with serving(babble) as url, connect(url) as client:
        with pytest.raises(ProtocolError, match="malformed UploadResponse"):
            await client.upload("a").open()


DATA = b"data"
_STATUS = pb.Status(state=pb.RESOURCE_STATE_COMPLETED, size=4, head=head_of(DATA), metadata=pb.Metadata(name="a"))
STARTED = pb.DownloadResponse(started=pb.Started(end=4, status=_STATUS)).SerializeToString()
CHUNK = pb.DownloadResponse(chunk=pb.Chunk(hash=chunk_hash(DATA), data=DATA)).SerializeToString()
END = pb.DownloadResponse(end=pb.End(offset=4, previous=chunk_hash(DATA), status=_STATUS)).SerializeToString()


async def read_from(*messages: bytes) -> bytes:
    """Read from a server that says ``messages`` to everyone, and return what is handed out."""

    async def answer(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        for message in messages:
            await context.write(message)

    async with serving(answer, "tailrace.v1.Resources", "Read") as url, connect(url) as client:
        return b"".join([bytes(chunk.data) async for chunk in client.open("a" * 32).chunks()])


@pytest.mark.parametrize(
    "messages",
    [
        (STARTED, CHUNK, END),
        (STARTED + CHUNK, END),
        (STARTED, CHUNK + END),
        (STARTED + CHUNK + END,),
        (STARTED + END + CHUNK,),
        (CHUNK + END + STARTED,),
    ],
    ids=["each", "beginning", "ending", "all", "all-in-order-of-numbers", "all-the-other-way"],
)
async def test_a_server_may_put_messages_to_readers_together(messages: tuple[bytes, ...]) -> None:
    assert await read_from(*messages) == DATA


async def test_messages_that_came_together_are_received_one_by_one() -> None:
    async def answer(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        await context.read()
        await context.write(STARTED + CHUNK + END)

    async with serving(answer, "tailrace.v1.Resources", "Read") as url:
        connection = GrpcConnection(url, ClientSettings())
        async with await connection.open(Read(id="a")) as stream:
            kinds = [type(await stream.receive()) for _ in range(4)]
        await connection.close()
    assert kinds == [Started, Chunk, End, type(None)]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ((b"",), "of a kind that is unknown"),
        ((STARTED, b"\xa2\x06\x01x"), "of a kind that is unknown"),
        ((CHUNK + END,), "Chunk received while the stream is STARTING"),
        ((END,), "End received while the stream is STARTING"),
        ((STARTED, STARTED + CHUNK + END), "Started received while the stream is STREAMING"),
    ],
)
async def test_messages_to_readers_that_do_not_fit_are_protocol_errors(
    messages: tuple[bytes, ...], problem: str
) -> None:
    with pytest.raises(ProtocolError, match=problem):
        await read_from(*messages)


async def test_an_answer_without_a_message_is_a_protocol_error() -> None:
    async def say_nothing(_messages: object, _context: object) -> None:
        return

    server = grpc.aio.server()
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "GetStatus": grpc.stream_stream_rpc_method_handler(say_nothing)
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tailrace.v1.Resources", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(f"grpc://127.0.0.1:{port}") as client:
            with pytest.raises(ProtocolError):
                await client.status("0" * 32)
    finally:
        await server.stop(None)


async def test_a_server_without_these_services_is_unsupported() -> None:
    async def unused(_context: object) -> None:
        raise AssertionError

    async with serving(unused) as url, connect(url) as client:
        with pytest.raises(Unsupported, match="Method not found"):
            await client.status("0" * 32)


async def test_a_defect_of_a_server_is_an_internal_error(
    manager: ResourceManager, client: ConnectedClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(manager, "admit", lambda: 1 / 0)
    with pytest.raises(InternalError, match="log says why"):
        await client.status("0" * 32)
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]
    caplog.clear()


async def test_a_watcher_says_nothing(client: ConnectedClient) -> None:
    async with client.upload("a") as upload, await client.connection.open(Watch(id=upload.id)) as stream:
        with pytest.raises(ProtocolError, match="takes no further messages"):
            await stream.send(Window(1))


async def test_requests_that_cannot_be_encoded_never_leave(client: ConnectedClient) -> None:
    with pytest.raises(InvalidArgument):
        await client.connection.call(GetStatus(id="\ud800"))
    with pytest.raises(InvalidArgument):
        await client.connection.open(Follow(id="x", start=FromOffset(0), window=-1))


async def test_leaving_a_stream_ends_it_at_the_server(server: GrpcServer, client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    await upload.write(b"x")
    async with aclosing(client.open(upload.reference).follow()) as pieces:
        assert await anext(pieces) == b"x"
        serving = {call for call in server._running if not call.done()}
        assert len(serving) == 2
    done, pending = await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(pending)) == (1, 1)
    await upload.detach()
    await asyncio.wait(pending)


async def test_cancelling_one_request_leaves_the_others(client: ConnectedClient) -> None:
    upload = client.upload("a")
    await upload.open()
    resource = client.open(upload.reference)
    others = [asyncio.ensure_future(_collect(resource.follow())) for _ in range(5)]
    victim = asyncio.ensure_future(_collect(resource.follow()))
    await upload.write(b"one")
    await upload.flush()
    victim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await victim
    await upload.write(b"two")
    await upload.finish()
    assert await asyncio.gather(*others) == [b"onetwo"] * 5


async def test_the_end_is_waited_for_and_not_cancelled(client: ConnectedClient, server: GrpcServer) -> None:
    async with client.upload("a") as upload:
        await upload.write(b"data")
    async with await client.connection.open(Follow(id=upload.id, start=FromOffset(0))) as stream:
        kinds: list[type] = []
        while not kinds or kinds[-1] is not End:
            kinds.append(type(await stream.receive()))
        assert kinds[0] is Started
        call = stream._call  # type: ignore[attr-defined]  # of this transport's stream
    code = (await call.status()).code if isinstance(call, Http2ClientCall) else await call.code()
    assert code is grpc.StatusCode.OK


async def test_without_a_window_the_transport_sets_the_pace(new_client: NewClient) -> None:
    client = new_client(download_window=0)
    data = bytes(range(256)) * 20_000
    async with client.upload("a") as upload:
        await upload.write(data)
    async with client.open(upload.reference) as resource:
        assert await resource.read() == data
        assert await _collect(resource.follow()) == data


async def test_compression_changes_nothing_but_the_wire(new_client: NewClient) -> None:
    client = new_client(options={"compression": "true", "proxy": "false"})
    data = b"again and again " * 100_000
    async with client.upload("a") as upload:
        await upload.write(data)
    assert await client.open(upload.reference).read() == data


async def test_many_conversations_share_a_connection(client: ConnectedClient) -> None:
    async def one(number: int) -> None:
        data = bytes([number]) * (1000 + number)
        async with client.upload(f"file {number}") as upload:
            following = asyncio.ensure_future(_collect(client.open(upload.reference).follow()))
            for start in range(0, len(data), 100):
                await upload.write(data[start : start + 100])
        assert await following == data

    await asyncio.gather(*(one(number) for number in range(100)))


async def test_another_loop_in_another_thread_works_beside_this_one(
    client: ConnectedClient, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An application that uses grpc.aio itself, and the blocking interface with its loop in a thread of its own."""

    async def work(client: ConnectedClient, rounds: int) -> bytes:
        received = b""
        for number in range(rounds):
            async with client.upload("a") as upload:
                following = asyncio.ensure_future(_collect(client.open(upload.reference).follow()))
                await upload.write(bytes([number]) * 1000)
                await client.status(upload.reference)
            received += await following
        return received

    async def elsewhere() -> bytes:
        async with connect(url) as other:
            return await work(other, 60)

    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(elsewhere()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    mine = await work(client, 60)
    while any(thread.is_alive() for thread in threads):
        await client.list_page()
    for thread in threads:
        thread.join()
    assert results == [mine, mine]
    assert [record for record in caplog.records if record.name == "asyncio" and record.levelname != "DEBUG"] == []


async def test_not_found_says_so_on_every_kind_of_call(client: ConnectedClient) -> None:
    resource = client.open("0" * 32)
    attempts: list[Coroutine[Any, Any, object]] = [
        resource.status(),
        resource.read(),
        resource.read_lines(),
        _collect(resource.follow()),
        resource.wait(),
        resource.heads([0]),
        resource.locate_line(0),
        resource.delete(),
    ]
    for attempt in attempts:
        with pytest.raises(NotFound):
            await attempt


async def _collect(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def test_a_stream_that_opens_while_the_client_closes_is_none(client: ConnectedClient) -> None:
    connection: Any = client.connection
    opened = asyncio.create_task(connection.open(opening()))
    while not connection._connecting:  # noqa: ASYNC110 - each turn of the loop is looked at
        await asyncio.sleep(0)
    library = isinstance(connection, LibraryConnection)
    connecting = next(iter(connection._connecting)) if library else connection._connecting
    # The one who opens is only told in the next turn of the loop.
    while not connecting.done():  # noqa: ASYNC110 - each turn of the loop is looked at
        await asyncio.sleep(0)
    assert not opened.done()
    await client.close()
    with pytest.raises(ConnectionLost):
        await opened
    if not library:
        assert connecting.result().gone.done()


async def test_closing_that_is_cancelled_ends_every_stream() -> None:
    ended: list[asyncio.Event] = []

    async def never_ends(context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        ended.append(over := asyncio.Event())
        try:
            await context.read()
            await context.write(UPLOAD.encode_response(Finished(None)))
            await asyncio.Event().wait()
        finally:
            over.set()

    async with serving(never_ends) as url:
        connection = GrpcConnection(url, ClientSettings())
        streams = [await connection.open(opening()) for _ in range(3)]
        for stream in streams:
            assert isinstance(await stream.receive(), Finished)
        # It waits for the statuses of the calls.
        closing = asyncio.create_task(connection.close())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not closing.done()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        for over in ended:
            await over.wait()
        with pytest.raises(ConnectionLost):
            await connection.open(opening())
