"""Connections: mistakes end their own request alone, errors arrive as they were, and nothing hostile gets anywhere."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from cells import EVERY_CELL, WEBSOCKET_CELLS, Cell, Transport
from certificates import Certificates
from conversations import Conversation, HandUpload
from manifest import proves
from servers import LocalServer, NewServer
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tailrace_common_api import (
    BulkRefused,
    EncodingError,
    FromOffset,
    IntegrityError,
    InvalidArgument,
    InvalidReference,
    ListFilter,
    MessageTooLarge,
    Metadata,
    NotFound,
    ProblemKind,
    ProtocolError,
    RecordProblem,
    TailraceError,
    Unsupported,
    error_classes,
    error_from_wire,
    refused_records,
)
from tailrace_impl_common import ConnectedClient
from tailrace_impl_common.messages import (
    Abort,
    Chunk,
    ClientMessage,
    CloseContext,
    CreateContext,
    Delete,
    Finish,
    Follow,
    GetContext,
    GetHeads,
    GetStatus,
    List,
    Locate,
    OpenUpload,
    Read,
    ReadLines,
    ReopenUpload,
    Request,
    Started,
    Watch,
    WatchContext,
    Window,
)

MISSING = "0" * 32


class Bystanders:
    """An upload and its follower on one connection, which must not be harmed by what others do there."""

    def __init__(self, upload: HandUpload, follower: Conversation) -> None:
        self.upload = upload
        self.follower = follower

    @classmethod
    async def begin(cls, client: ConnectedClient) -> Bystanders:
        """Begin both."""
        upload = await HandUpload.open(client.connection, "bystander")
        follower = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=2**20))
        await follower.receive(Started)
        return cls(upload, follower)

    async def go_on(self) -> None:
        """Prove that both still work."""
        offset = self.upload.offset
        await self.upload.chunk(b"unharmed")
        chunk = await self.follower.receive(Chunk)
        assert (chunk.offset, bytes(chunk.data)) == (offset, b"unharmed")

    async def end(self) -> None:
        """End both in order."""
        finished = await self.upload.finished()
        assert finished.status is not None
        assert finished.status.size == self.upload.offset
        await self.follower.rest()
        await self.follower.close()


async def error_of(client: ConnectedClient, request: Request, *messages: ClientMessage) -> TailraceError:
    """Return the error that ends a conversation in which a client says this, whichever side notices it."""
    conversation = await Conversation.begin(client.connection, request)
    try:
        await conversation.stream.receive()
        for message in messages:
            await conversation.send(message)
    except InvalidArgument as refused:
        # The transport has no way to say that in this conversation.
        return ProtocolError(refused.message) if messages else refused
    except TailraceError:
        pass
    try:
        return await conversation.error()
    finally:
        await conversation.close()


CHUNK = Chunk(0, b"data", b"\0" * 8, b"")


@proves("CON-2")
async def test_mistakes_end_their_own_request_with_a_typed_error(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(upload_window=64 * 1024)
    client = server.connect(cell.transport)
    bystanders = await Bystanders.begin(client)
    id_ = bystanders.upload.id
    opening = OpenUpload(metadata=Metadata(name="mistaken"))
    follow = Follow(id=id_, start=FromOffset(), window=1)
    mistakes: list[tuple[type[TailraceError], Request, tuple[ClientMessage, ...]]] = [
        # In the wrong state.
        (ProtocolError, opening, (Window(1),)),
        (ProtocolError, opening, (opening,)),
        (ProtocolError, follow, (CHUNK,)),
        (ProtocolError, follow, (Finish(0, b"\0" * 16),)),
        (ProtocolError, follow, (Abort("no"),)),
        (ProtocolError, follow, (follow,)),
        # What does not hold.
        (IntegrityError, opening, (CHUNK,)),
        (IntegrityError, opening, (Finish(1, b"\0" * 16),)),
        (InvalidArgument, Follow(id=id_, start=FromOffset(), window=2**40), ()),
        (NotFound, ReopenUpload(id=MISSING, token="token"), ()),
        (NotFound, Watch(id=MISSING), ()),
    ]
    for expected, request, messages in mistakes:
        error = await error_of(client, request, *messages)
        assert isinstance(error, expected), (error, request, messages)
        await bystanders.go_on()
    with pytest.raises(InvalidArgument):
        await client.connection.call(GetHeads(id=id_, sizes=(0,) * 1001))
    await bystanders.go_on()
    await bystanders.end()


# A stream of gRPC carries one type of messages: there the client refuses to send this.
@pytest.mark.cells(frozenset(cell for cell in EVERY_CELL if cell.transport is not Transport.GRPC))
@proves("CON-2")
async def test_a_mistake_of_a_reader_whose_window_is_used_up_is_told_as_such(server: LocalServer, cell: Cell) -> None:
    client = server.connect(cell.transport)
    upload = await HandUpload.open(client.connection)
    reader = await Conversation.begin(client.connection, Follow(id=upload.id, start=FromOffset(), window=1))
    await upload.chunk(b"sent")
    await reader.receive(Chunk)
    await upload.chunk(b"not granted")
    await upload.announced(15)
    await reader.send(Abort("no"))
    error = await reader.error()
    assert isinstance(error, ProtocolError)
    assert "Abort" in error.message
    await reader.close()
    await upload.finished()


@proves("CON-2")
async def test_an_overdrawn_window_and_a_chunk_that_is_too_large_are_refused(new_server: NewServer, cell: Cell) -> None:
    server = await new_server(upload_window=64 * 1024, chunk_size=32 * 1024)
    client = server.connect(cell.transport)
    bystanders = await Bystanders.begin(client)
    for data in (bytes(64 * 1024 + 1), bytes(48 * 1024)):
        upload = await HandUpload.open(client.connection)
        await upload.send(upload.make(data))
        error = await upload.error()
        assert isinstance(error, ProtocolError)
        await upload.close()
        # Nothing of it was taken.
        assert (await client.status(upload.id)).size == 0
        await bystanders.go_on()
    await bystanders.end()


# On the wire


@asynccontextmanager
async def raw_websocket(server: LocalServer) -> AsyncIterator[ClientConnection]:
    """Connect as somebody who knows no more than the protocol document, and take the greeting."""
    endpoint = f"{server.url(Transport.WEBSOCKET)}/v1/connect"
    async with connect_websocket(endpoint, subprotocols=[Subprotocol("tailrace.v1")], proxy=None) as websocket:
        assert json.loads(await websocket.recv())["type"] == "hello"
        yield websocket


async def next_message(websocket: ClientConnection, request: int | None, *types: str) -> dict[str, Any]:
    """Return the next control message of a request, of one of some types."""
    while True:
        received = await websocket.recv()
        if isinstance(received, bytes):
            continue
        message: dict[str, Any] = json.loads(received)
        if message.get("request") == request and message["type"] in types:
            return message


def error_in(message: dict[str, Any]) -> TailraceError:
    """Return the error that a message carries."""
    return error_from_wire(message["code"], message["message"], message["details"])


@pytest.mark.cells(WEBSOCKET_CELLS)
@proves("CON-2")
async def test_frames_that_name_a_request_end_no_other_one(server: LocalServer, cell: Cell) -> None:
    async with raw_websocket(server) as websocket:

        async def say(**fields: object) -> None:
            await websocket.send(json.dumps(fields))

        await say(type="open_upload", request=1, metadata={"name": "bystander", "content_type": "text/plain"})
        opened = await next_message(websocket, 1, "opened")
        # Each under a number of its own: what comes late for a request that has ended is no mistake.
        mistakes: list[tuple[dict[str, object] | bytes, type[TailraceError]]] = [
            ({"type": "unheard_of", "request": 10}, Unsupported),
            ({"type": "read", "request": 11, "id": 5}, ProtocolError),
            ({"type": "read", "request": 12}, ProtocolError),
            ({"type": "finish", "request": 13, "size": 0, "head": "00" * 16}, ProtocolError),
            ({"type": "follow", "request": 14, "id": MISSING, "start": {"up": 1}}, TailraceError),
            ({"type": "get_status", "request": 15, "id": "../../etc/passwd"}, InvalidReference),
            (b"\x01\x01\x00\x00" + (16).to_bytes(4, "big") + bytes(24) + b"data", ProtocolError),
        ]
        for number, (mistake, expected) in enumerate(mistakes, 10):
            await websocket.send(mistake if isinstance(mistake, bytes) else json.dumps(mistake))
            error = error_in(await next_message(websocket, number, "error"))
            assert isinstance(error, expected), (mistake, error)
            await say(type="get_status", request=number, id=opened["status"]["id"])
            answer = await next_message(websocket, number, "status")
            assert answer["status"]["state"] == "INITIATED"
        await say(type="finish", request=1, size=0, head=opened["head"])
        assert (await next_message(websocket, 1, "finished"))["status"]["state"] == "COMPLETED"


NO_REQUEST: list[tuple[str, str | bytes, type[TailraceError], int]] = [
    ("no json", "{", ProtocolError, 1002),
    ("no object", "[1]", ProtocolError, 1002),
    ("no request", '{"type": "read"}', ProtocolError, 1002),
    ("text that is too large", " " * (2**20 + 1), MessageTooLarge, 1009),
    ("a short frame", b"\x01\x01", ProtocolError, 1002),
    ("an unknown layout", b"\x07" + bytes(40), Unsupported, 1002),
]


@pytest.mark.cells(WEBSOCKET_CELLS)
@pytest.mark.parametrize(
    ("message", "expected", "code"), [case[1:] for case in NO_REQUEST], ids=[c[0] for c in NO_REQUEST]
)
@proves("CON-2", "CON-3")
async def test_frames_that_name_no_request_end_their_connection_and_no_other(
    server: LocalServer, client: ConnectedClient, message: str | bytes, expected: type[TailraceError], code: int
) -> None:
    bystanders = await Bystanders.begin(client)
    async with raw_websocket(server) as websocket:
        await websocket.send(message)
        # The error comes as a message, in front of the close.
        error = error_in(await next_message(websocket, None, "error"))
        assert type(error) is expected
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        assert len(closed.value.rcvd.reason.encode()) <= 123
    await bystanders.go_on()
    await bystanders.end()


BAD_FRAMES: list[tuple[str, bytes, type[TailraceError], int]] = [
    ("text that is no UTF-8", b"\x81\x82\0\0\0\0\xff\xfe", ProtocolError, 1007),
    ("a message far above the limit", b"\x82\xff" + (2**40).to_bytes(8, "big"), MessageTooLarge, 1009),
    ("a reserved bit", b"\xc1\x80\0\0\0\0", ProtocolError, 1002),
]


@pytest.mark.cells(WEBSOCKET_CELLS)
@pytest.mark.parametrize(
    ("sent", "expected", "code"), [case[1:] for case in BAD_FRAMES], ids=[case[0] for case in BAD_FRAMES]
)
@proves("CON-2", "CON-3")
async def test_frames_that_no_application_sees_are_answered_with_a_typed_error_too(
    server: LocalServer, client: ConnectedClient, sent: bytes, expected: type[TailraceError], code: int
) -> None:
    bystanders = await Bystanders.begin(client)
    async with raw_websocket(server) as websocket:
        websocket.transport.write(sent)
        error = error_in(await next_message(websocket, None, "error"))
        assert type(error) is expected
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
        assert len(closed.value.rcvd.reason.encode()) <= 123
    await bystanders.go_on()
    await bystanders.end()


@pytest.mark.cells(WEBSOCKET_CELLS)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@proves("CON-2", "CON-3")
async def test_a_client_that_goes_on_sending_still_reads_why_it_was_refused(
    new_server: NewServer, tmp_path: Path, cell: Cell, secure: bool
) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.create_default_context(cafile=certificates.ca_file) if secure else None
    server = await new_server(transport_settings=certificates.issue("127.0.0.1") if secure else {})
    parts = urlsplit(server.url(cell.transport, "wss" if secure else "ws"))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    writer.write(
        b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        b"Sec-WebSocket-Protocol: tailrace.v1\r\n\r\n"
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    writer.write(b"\x82\xff" + (64 * 2**20).to_bytes(8, "big") + bytes(4))
    # Nothing is read before all of this is sent: a connection that was reset would have lost what the server said.
    for _ in range(8):
        writer.write(bytes(2**20))
        await writer.drain()
    said = await reader.read()
    assert b'"message_too_large"' in said
    assert (1009).to_bytes(2, "big") in said
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@pytest.mark.cells(WEBSOCKET_CELLS)
@pytest.mark.parametrize("text", ["ä" * 300, "x" + "€" * 300, "x" * 122 + "😀", "short"])
@proves("CON-3", "CON-4")
async def test_close_reasons_are_cut_on_a_code_point(
    server: LocalServer, cell: Cell, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from tailrace_impl_websocket import _server_streams as module
    from tailrace_impl_websocket._codec import Malformed

    def refuse(frame: str) -> object:
        raise Malformed(None, EncodingError(encoding="ä", offset=1, problem=text))

    monkeypatch.setattr(module, "decode_from_client", refuse)
    async with raw_websocket(server) as websocket:
        await websocket.send("{}")
        error = error_in(await next_message(websocket, None, "error"))
        assert isinstance(error, EncodingError)
        assert (error.message, error.details()["encoding"]) == (f"source is not valid ä at byte 1: {text}", "ä")
        with pytest.raises(ConnectionClosed) as closed:
            await websocket.recv()
        assert closed.value.rcvd is not None
        reason = closed.value.rcvd.reason
        assert len(reason.encode()) <= 123
        assert error.message.startswith(reason)
        # As much as there is room for.
        assert reason == error.message or len(reason.encode()) > 123 - 4


@pytest.mark.cells(frozenset({Cell(Transport.GRPC, cell.storage) for cell in WEBSOCKET_CELLS}))
@proves("CON-2")
async def test_bad_messages_end_their_own_call(server: LocalServer, client: ConnectedClient) -> None:
    from tailrace_impl_grpc._call_status import CallStatus
    from tailrace_impl_grpc._error_table import sent_error

    bystanders = await Bystanders.begin(client)
    # On the very connection of the bystanders.
    address = server.url(Transport.GRPC).removeprefix("grpc://")
    async with grpc.aio.insecure_channel(address) as channel:
        mistakes: list[tuple[str, bytes, grpc.StatusCode, type[TailraceError] | None]] = [
            ("/tailrace.v1.Resources/Follow", b"\x0a\x80", grpc.StatusCode.INVALID_ARGUMENT, ProtocolError),
            ("/tailrace.v1.Resources/ReadLines", b"", grpc.StatusCode.UNIMPLEMENTED, Unsupported),
            ("/tailrace.v1.Resources/Read", b"\xa2\x06\x01x", grpc.StatusCode.UNIMPLEMENTED, Unsupported),
            ("/tailrace.v1.Uploads/Upload", b"\xff", grpc.StatusCode.INVALID_ARGUMENT, ProtocolError),
            ("/tailrace.v1.Uploads/Upload", bytes(9 * 2**20), grpc.StatusCode.RESOURCE_EXHAUSTED, None),
            ("/tailrace.v1.Uploads/Unheard", b"", grpc.StatusCode.UNIMPLEMENTED, None),
        ]
        for path, message, status, expected in mistakes:
            multicallable: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path)
            call = multicallable()
            ended = CallStatus(call)
            # The call may have its answer before the message is out, which may hide its status, too.
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(message)
            found = await ended.known()
            assert found.code() is status, path
            if expected is not None:
                assert type(sent_error(found.trailing_metadata() or ())) is expected
            await bystanders.go_on()
    await bystanders.end()


# Errors


def sample(cls: type[TailraceError], number: int) -> TailraceError:
    """Return an error of a class with telling values."""
    values: dict[str, object] = {
        "str": f'{number} "quoted" ünï \\ \u2028 文\U0001f600',
        "int": 2**53 - 1 - number,
        "float": number + 0.25,
        "int | None": None if number % 2 else number,
    }
    parameters = inspect.signature(cls).parameters.values()
    build: Callable[..., TailraceError] = cls
    if cls is BulkRefused:
        problem = RecordProblem(index=number, kind=ProblemKind.DUPLICATE, field=str(values["str"]), problem="is twice")
        return refused_records([problem], total=number + 1)
    if not cls.fields:
        return build(values["str"])
    return build(**{parameter.name: values[str(parameter.annotation)] for parameter in parameters})


@proves("CON-4")
async def test_every_error_arrives_as_it_was_raised(
    server: LocalServer, client: ConnectedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[TailraceError] = []

    async def fail(*_: object, **__: object) -> Any:
        raise raised[-1]

    async def fail_later(*_: object, **__: object) -> AsyncGenerator[Any, None]:
        if raised:
            raise raised[-1]
        yield

    bystanders = await Bystanders.begin(client)
    asked = ("open_reader", "create", "reopen", "list", "heads", "delete")
    for name in (*asked, "create_context", "get_context", "close_context"):
        monkeypatch.setattr(server.manager, name, fail)
    for name in ("statuses", "context_events"):
        monkeypatch.setattr(server.manager, name, fail_later)
    streams: list[Request] = [
        OpenUpload(metadata=Metadata(name="a")),
        ReopenUpload(id=MISSING, token="token"),
        Read(id=MISSING),
        Follow(id=MISSING, start=FromOffset()),
        ReadLines(id=MISSING),
        Watch(id=MISSING),
        WatchContext(id=MISSING),
    ]
    unary = (
        GetStatus(id=MISSING),
        GetHeads(id=MISSING, sizes=(0,)),
        Locate(id=MISSING, line=0),
        List(filter=ListFilter(), limit=1),
        Delete(id=MISSING),
        CreateContext(attributes={}),
        GetContext(id=MISSING),
        CloseContext(id=MISSING),
    )
    for number, cls in enumerate(error_classes()):
        raised.append(sample(cls, number))
        arrived = [await Conversation.refused(client.connection, request) for request in streams]
        for question in unary:
            with pytest.raises(TailraceError) as caught:
                await client.connection.call(question)
            arrived.append(caught.value)
        for error in arrived:
            assert type(error) is cls
            assert (error.code, error.message, str(error)) == (cls.code, raised[-1].message, str(raised[-1]))
            assert error.details() == raised[-1].details()
    assert len({error.code for error in raised}) == len(raised) > 30
    monkeypatch.undo()
    await bystanders.go_on()
    await bystanders.end()


@proves("CON-4", "CON-2")
async def test_every_error_arrives_in_the_middle_of_a_stream(
    server: LocalServer, client: ConnectedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace_impl_server._ingest import UploadSession
    from tailrace_impl_server._reader import LiveReader

    raised: list[TailraceError] = []

    async def fail(*_: object) -> Any:
        raise raised[-1]

    source = await HandUpload.open(client.connection)
    await source.chunk(b"here")
    await source.announced(4)
    monkeypatch.setattr(LiveReader, "changed", fail)
    for number, cls in enumerate(error_classes()):
        raised.append(sample(cls, number))
        follower = await Conversation.begin(client.connection, Follow(id=source.id, start=FromOffset(), window=100))
        assert bytes((await follower.receive(Chunk)).data) == b"here"
        error = await follower.error()
        assert (type(error), error.message, error.details()) == (cls, raised[-1].message, raised[-1].details())
        await follower.close()
    monkeypatch.undo()
    await source.finished()
    monkeypatch.setattr(UploadSession, "finish", fail_finish(raised))
    for number, cls in enumerate(error_classes()):
        raised.append(sample(cls, number))
        if isinstance(raised[-1], IntegrityError):
            # Nothing is proven of an upload without bytes, whatever an error says.
            raised[-1].offset = 0
        upload = await HandUpload.open(client.connection)
        await upload.finish()
        error = await upload.error()
        assert (type(error), error.message, error.details()) == (cls, raised[-1].message, raised[-1].details())
        await upload.close()


def fail_finish(raised: list[TailraceError]) -> Callable[..., Awaitable[Any]]:
    """Return an end of uploads that fails."""

    async def finish(*_: object, **__: object) -> Any:
        raise raised[-1]

    return finish


# What others send


HOSTILE_IDS = (
    "",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "resources/../../x",
    "x\ny",
    "\x1b[31mred",
    "0" * 31 + "\n",
    "0" * 31 + "\x00",
    "0" * 31 + "/",
    "0" * 33,
    "\u202e" * 32,
    "A" * 32,
    "$(touch pwned)",
    "'; rm -rf ~; '",
)
HOSTILE_NAMES = (
    "../../../../pwned",
    "/pwned",
    "..",
    "~/pwned",
    "C:\\pwned",
    "$(touch pwned) `touch pwned`; touch pwned",
    "-rf",
    "pwned%00.log",
    "%s%s%s%n {0} {name}",
    "\u202egpj.exe",
    "x" * 1024,
)


def files_below(folder: Path) -> set[str]:
    """Return the names of all files and folders."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_nothing_was_injected(caplog: pytest.LogCaptureFixture) -> None:
    """No message of the product's own log has a character that ends a line or controls a terminal."""
    for record in caplog.records:
        if record.name.startswith(("tailrace", "uvicorn")):
            assert record.getMessage().isprintable(), record.getMessage()


@proves("ACC-3", "RES-7")
async def test_hostile_ids_reach_no_path_and_no_line_of_the_log(
    server: LocalServer, client: ConnectedClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with client.upload("good") as upload:
        await upload.write(b"data")
    before = files_below(tmp_path)
    for id_ in HOSTILE_IDS:
        requests = (Read(id=id_), Follow(id=id_, start=FromOffset()), ReadLines(id=id_), Watch(id=id_))
        for request in (*requests, ReopenUpload(id=id_, token="token")):
            error = await error_of(client, request)
            assert isinstance(error, InvalidReference), (id_, error)
            assert error.message.isprintable()
        for unary in (GetStatus(id=id_), GetHeads(id=id_, sizes=(0,)), Locate(id=id_, line=0), Delete(id=id_)):
            with pytest.raises(InvalidReference) as caught:
                await client.connection.call(unary)
            assert str(caught.value).isprintable()
    assert files_below(tmp_path) == before
    assert_nothing_was_injected(caplog)


@proves("ACC-3", "RES-2")
async def test_hostile_names_are_data_and_nothing_else(
    server: LocalServer, client: ConnectedClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ids = set()
    for name in HOSTILE_NAMES:
        async with client.upload(name, labels={name[:100]: name}, idempotency_key=ascii(name)[:200]) as upload:
            await upload.write(b"data")
        ids.add(upload.id)
        status = await client.status(upload.id)
        assert (status.metadata.name, dict(status.metadata.labels)) == (name, {name[:100]: name})
        failing = client.upload(name)
        await failing.open()
        failed = await failing.abort(f"\x1b[31m\n{name}")
        assert failed is not None
        ids.add(failing.id)
        page = await client.list_page(ListFilter(labels={name[:100]: name}))
        assert [each.id for each in page.statuses] == [upload.id]
    if server.data is not None:
        assert {path.name for path in (server.data / "resources").iterdir()} == ids
        assert {path.name for path in (server.data / "resources").rglob("*") if path.is_file()} == {
            "data",
            "journal",
            "resource.json",
        }
    assert not [path for path in files_below(tmp_path) if "pwned" in path]
    assert not Path("pwned").exists()
    assert_nothing_was_injected(caplog)


@pytest.mark.cells(WEBSOCKET_CELLS)
@proves("ACC-3")
async def test_hostile_paths_and_headers_are_answered_and_not_written_down(
    server: LocalServer, client: ConnectedClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with client.upload('a"b\\c; filename=pwned\u20ac', content_type='text/plain; x="a\\"b"') as upload:
        await upload.write(b"data")
    before = files_below(tmp_path)
    host, _, port = server.url(Transport.WEBSOCKET).removeprefix("ws://").rpartition(":")

    async def request(target: str, *headers: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [f"GET {target} HTTP/1.1".encode(), b"Host: x", b"Connection: close", *headers, b"", b""]
        writer.write(b"\r\n".join(lines))
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    for path in ("..%2f..%2fetc%2fpasswd", "%0a%1b%5b31m", "../../etc/passwd", "%00", "%ff%fe", "'%22%3b"):
        answer = await request(f"/r/{path}")
        assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")), path
        assert b"\x1b" not in answer
        assert b"root:" not in answer
    good = await request(f"/r/{upload.id}", b"X-Trap: \xff\xfe \t$(touch pwned)", b"Range: bytes=%0a-\x7f")
    head, _, body = good.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400", b"HTTP/1.1 416"))
    plain = await request(f"/r/{upload.id}")
    head, _, body = plain.partition(b"\r\n\r\n")
    assert body == b"data"
    # Whatever the name says: it is one header, and one value in it.
    names = [line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    assert len(names) == len(set(names))
    assert files_below(tmp_path) == before
    assert_nothing_was_injected(caplog)
