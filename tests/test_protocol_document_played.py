"""PROTOCOL.md says what the code does: its conversations are played to real servers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import httpx
import pytest
from protocol_document import FIRST, SECOND, blocks, from_hex, prose, quoted, section, table
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from tailrace_common_api import Metadata
from tailrace_impl_common import chunk_hash, head_of
from tailrace_impl_grpc import GrpcServer
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_server import create_manager
from tailrace_impl_websocket import WebSocketServer
from tailrace_server_api import ResourceManager, TransportServerSettings


@pytest.fixture
async def manager() -> AsyncIterator[ResourceManager]:
    async with create_manager(None, {}) as managed:
        yield managed.manager


@pytest.fixture
async def urls(manager: ResourceManager) -> AsyncIterator[dict[str, str]]:
    servers = (GrpcServer(), WebSocketServer())
    for server in servers:
        await server.start(manager, TransportServerSettings())
    yield {**servers[0].urls, **servers[1].urls}
    for server in servers:
        await server.close(1.0)


def connect(urls: dict[str, str], *, subprotocol: str = "tailrace.v1") -> connect_websocket:
    return connect_websocket(f"{urls['ws']}/v1/connect", subprotocols=[Subprotocol(subprotocol)], proxy=None)


# WebSocket


def with_elisions(line: str) -> Any:
    """Return a message of the document; what it leaves out is marked by a key of its own."""
    return json.loads(line.replace(",…}", ',"…":0}').replace("{…}", '{"…":0}'))


def fits(actual: Any, written: Any) -> bool:
    """Return whether a message is the one that is written, where the document does not leave something out."""
    if written == "…":
        return isinstance(actual, str) and len(actual) > 0
    if not isinstance(written, dict) or not isinstance(actual, dict):
        return bool(actual == written)
    names = set(written) - {"…"}
    complete = "…" in written or names == set(actual)
    return complete and names <= set(actual) and all(fits(actual[name], written[name]) for name in names)


def played_groups() -> list[tuple[list[str], list[str]]]:
    """Return what the client says and what the server then says, again and again."""
    groups: list[tuple[list[str], list[str]]] = []
    for line in blocks(section("5.7"), "text")[0].splitlines():
        side, said = line[0], line[1:].strip()
        if side == "C":
            if not groups or groups[-1][1]:
                groups.append(([], []))
            groups[-1][0].append(said)
        else:
            groups[-1][1].append(said)
    return groups


async def receive(websocket: ClientConnection) -> tuple[int, Any]:
    """Return the request of the next message, and its object or bytes; windows are left out."""
    while True:
        message = await websocket.recv()
        if isinstance(message, bytes):
            return int.from_bytes(message[4:8], "big"), message
        fields = json.loads(message)
        if fields["type"] != "window":
            return fields["request"], fields


async def test_conversation_message_by_message(urls: dict[str, str]) -> None:
    groups = played_groups()
    assert len(groups) == 5
    id_ = ""
    async with connect(urls) as websocket:
        assert json.loads(await websocket.recv())["type"] == "hello"
        for client, server in groups:
            for said in client:
                if said.startswith("binary "):
                    await websocket.send(bytes.fromhex(said.removeprefix("binary ")))
                else:
                    await websocket.send(said.replace('"id":"…"', f'"id":"{id_}"'))
            heard = sorted([await receive(websocket) for _ in server], key=lambda pair: pair[0])
            for (_, message), said in zip(heard, server, strict=True):
                if said.startswith("binary "):
                    assert message == bytes.fromhex(said.removeprefix("binary "))
                else:
                    assert fits(message, with_elisions(said)), (message, said)
                    id_ = id_ or message["status"]["id"]


async def test_contexts_message_by_message(urls: dict[str, str]) -> None:
    examples = {fields["type"]: fields for fields in map(json.loads, blocks(section("5.3"), "json")[0].splitlines())}
    kinds = [quoted(row["kind"])[0] for row in table("1.10", "kind")]
    async with connect(urls) as websocket:
        await websocket.recv()

        async def say(type_: str, **changed: object) -> None:
            await websocket.send(json.dumps({**examples[type_], **changed}))

        await say("create_context")
        number, created = await receive(websocket)
        assert (number, created["type"]) == (examples["create_context"]["request"], "context")
        assert created["attributes"] == examples["create_context"]["attributes"]
        named = {"id": created["id"]}
        await say("get_context", **named)
        assert (await receive(websocket))[1] == {**created, "request": examples["get_context"]["request"]}
        await say("watch_context", **named, after=0)
        metadata = {"name": "x", "context": created["id"]}
        await websocket.send(json.dumps({"type": "open_upload", "request": 1, "metadata": metadata}))
        heard: dict[int, list[Any]] = {
            1: [],
            **{examples[name]["request"]: [] for name in ("watch_context", "close_context")},
        }

        async def hear(until: Callable[[], bool]) -> None:
            while not until():
                number, message = await receive(websocket)
                heard[number].append(message)

        await hear(lambda: bool(heard[1]))
        await say("close_context", **named)
        last = {"watched", "error", "context"}
        await hear(lambda: {messages[-1]["type"] for messages in heard.values() if messages} == last)
        *events, _ = heard[examples["watch_context"]["request"]]
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert {event["kind"] for event in events} == {"CREATED", "STATUS_CHANGED", "CLOSED"} <= set(kinds)
        assert events[-1]["kind"] == "CLOSED"
        opened, ended = heard[1]
        assert (opened["type"], ended["type"], ended["code"]) == ("opened", "error", "context_closed")
        (closed,) = heard[examples["close_context"]["request"]]
        assert (closed["state"], closed["resources"]) == ("CLOSED", 1)
        await say("watch_context", **named, after=len(events))
        assert (await receive(websocket))[1]["type"] == "watched"


async def test_example_of_an_error(urls: dict[str, str], manager: ResourceManager) -> None:
    id_ = await store(manager)
    written = next(
        fields
        for fields in map(json.loads, blocks(section("5.3"), "json")[1].splitlines())
        if fields["type"] == "error"
    )
    async with connect(urls) as websocket:
        await websocket.recv()
        await websocket.send(json.dumps({"type": "read", "request": written["request"], "id": id_, "end": 100}))
        assert json.loads(await websocket.recv()) == written


async def test_refused_handshake_has_an_error(urls: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(urls, subprotocol="chat"):
            pass
    refusal = caught.value.response
    code = json.loads(refusal.body or b"")["code"]
    (row,) = (row for row in table("3", "code") if quoted(row["code"]) == [code])
    assert (code, refusal.status_code) == ("unsupported", int(row["HTTP"]))


# gRPC


async def test_grpc_examples_are_what_is_said(urls: dict[str, str]) -> None:
    first, second, read, _ = (from_hex(block) for block in blocks(section("4.2"), "hex"))
    async with grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
        upload: Any = channel.stream_stream("/tailrace.v1.Uploads/Upload")()
        opening = pb.OpenUpload(metadata=pb.Metadata(name="x", lines=True))
        await upload.write(pb.UploadRequest(open=opening).SerializeToString())
        opened = pb.UploadResponse.FromString(await upload.read()).opened
        await upload.write(first)
        assert pb.UploadResponse.FromString(await upload.read()).checkpoint.size == len(FIRST)
        follow: Any = channel.stream_stream("/tailrace.v1.Resources/Follow")()
        await follow.write(pb.FollowRequest(open=pb.OpenFollow(id=opened.status.id)).SerializeToString())
        assert pb.DownloadResponse.FromString(await follow.read()).started.status.size == len(FIRST)
        assert pb.DownloadResponse.FromString(await follow.read()).chunk.data == FIRST
        await upload.write(second)
        assert await follow.read() == read
        finish = pb.Finish(size=18, head=head_of(FIRST + SECOND))
        await upload.write(pb.UploadRequest(finish=finish).SerializeToString())
        assert pb.DownloadResponse.FromString(await follow.read()).end.status.state == pb.RESOURCE_STATE_COMPLETED
        assert await follow.code() is grpc.StatusCode.OK
        answer = pb.UploadResponse.FromString(await upload.read())
        while not answer.HasField("finished"):
            answer = pb.UploadResponse.FromString(await upload.read())
        assert answer.finished.status.size == 18
        assert await upload.read() is grpc.aio.EOF


async def test_a_small_answer_over_grpc_is_one_message(urls: dict[str, str], manager: ResourceManager) -> None:
    id_ = await store(manager)
    async with grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
        read: Any = channel.stream_stream("/tailrace.v1.Resources/Read")()
        await read.write(pb.ReadRequest(open=pb.OpenRead(id=id_)).SerializeToString())
        answer = pb.DownloadResponse.FromString(await read.read())
        assert (answer.started.end, answer.chunk.data, answer.end.offset) == (18, FIRST + SECOND, 18)
        assert await read.read() is grpc.aio.EOF
        assert await read.code() is grpc.StatusCode.OK


async def test_grpc_error_example_is_what_is_said(urls: dict[str, str], manager: ResourceManager) -> None:
    id_ = await store(manager)
    written = pb.Error.FromString(from_hex(blocks(section("4.3"), "hex")[0]))
    async with grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
        read: Any = channel.stream_stream("/tailrace.v1.Resources/Read")()
        await read.write(pb.ReadRequest(open=pb.OpenRead(id=id_, end=100)).SerializeToString())
        assert (await read.code()).name == "OUT_OF_RANGE"
        (entry,) = (value for key, value in await read.trailing_metadata() or () if key == "tailrace-error-bin")
        assert isinstance(entry, bytes)
        assert pb.Error.FromString(entry) == written


async def test_contexts_over_grpc(urls: dict[str, str]) -> None:
    async with grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:

        async def ask(method: str, request: Any) -> pb.Context:
            call: Any = channel.unary_unary(f"/tailrace.v1.Contexts/{method}")
            return pb.Context.FromString(await call(request.SerializeToString()))

        created = await ask("Create", pb.CreateContextRequest(attributes={"run": "1047"}))
        assert (dict(created.attributes), created.state) == ({"run": "1047"}, pb.CONTEXT_STATE_OPEN)
        assert await ask("Get", pb.GetContextRequest(id=created.id)) == created
        closed = await ask("Close", pb.CloseContextRequest(id=created.id))
        assert (closed.state, closed.last_event) == (pb.CONTEXT_STATE_CLOSED, 1)
        begin: Any = channel.unary_stream("/tailrace.v1.Contexts/Watch")
        watch = begin(pb.WatchContextRequest(id=created.id).SerializeToString())
        (event,) = [pb.ContextEvent.FromString(data) async for data in watch]
        assert (event.sequence, event.kind, event.at) == (1, pb.CONTEXT_EVENT_KIND_CLOSED, closed.closed_at)
        assert not event.HasField("id")
        assert await watch.code() is grpc.StatusCode.OK


# Plain HTTP


async def store(manager: ResourceManager, *, finish: bool = True) -> str:
    """Store the bytes of the examples; return the id."""
    ingest = await manager.create(Metadata(name="build.log", content_type="text/plain", lines=True))
    progress = ingest.progress
    ingest.submit(FIRST + SECOND, hash=chunk_hash(FIRST + SECOND))
    while progress.checkpoint.size < 18:
        progress = await ingest.changed(progress)
    if finish:
        await ingest.finish(size=18, head=head_of(FIRST + SECOND))
    return ingest.id


@pytest.fixture
async def http(urls: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=urls["http"], trust_env=False) as client:
        yield client


async def test_requests_of_the_http_door(http: httpx.AsyncClient, manager: ResourceManager) -> None:
    path = f"/r/{await store(manager)}"
    whole = FIRST + SECOND
    requests: tuple[tuple[str, dict[str, str], int, bytes], ...] = (
        ("GET /r/ID", {}, 200, whole),
        ("GET /r/ID", {"range": "bytes=2-5"}, 206, whole[2:6]),
        ("GET /r/ID?follow", {}, 200, whole),
        ("GET /r/ID?follow&from=3", {}, 200, whole[3:]),
        ("GET /r/ID?lines=1:9", {}, 200, SECOND),
        ("HEAD /r/ID", {"range": "bytes=2-5"}, 200, b""),
    )
    rows = table("6.1", "request")
    for row, (request, headers, status, body) in zip(rows, requests, strict=True):
        method, target = request.split()
        written = quoted(row["request"])[0].replace("N", "3").replace("A:B", "1:9")
        assert request.startswith(written)
        answer = await http.request(method, target.replace("/r/ID", path), headers=headers)
        assert (answer.status_code, answer.content) == (status, body), row
        if row["answer"][:3].isdigit():
            assert row["answer"].startswith(str(status))
    for value, body in (("bytes=2-", whole[2:]), ("bytes=-3", whole[-3:])):
        assert (await http.get(path, headers={"range": value})).content == body
    for value in ("bytes=0-1,3-4", "lines=1-2", "bytes=x"):
        assert (await http.get(path, headers={"range": value})).status_code == 200


async def test_live_follower_over_http(http: httpx.AsyncClient, manager: ResourceManager) -> None:
    path = f"/r/{await store(manager, finish=False)}?follow"
    async with http.stream("GET", path, headers={"range": "bytes=10-"}) as answer:
        assert answer.status_code == 206
        assert answer.headers["content-range"] in prose("6.1").replace("bytes N-", "bytes 10-")
        assert "content-length" not in answer.headers


async def test_headers_of_the_http_door(http: httpx.AsyncClient, manager: ResourceManager) -> None:
    path = f"/r/{await store(manager)}"
    whole, part = await http.get(path), await http.get(path, headers={"range": "bytes=0-1"})
    for row in table("6.2", "header"):
        for name in quoted(row["header"]):
            assert name in (part if name == "Content-Range" else whole).headers, name
    assert whole.headers["etag"] == f'"{head_of(FIRST + SECOND).hex()}"'
    assert whole.headers["x-tailrace-head"] == head_of(FIRST + SECOND).hex()
    assert (await http.get(path, headers={"if-none-match": whole.headers["etag"]})).status_code == 304
    growing = f"/r/{await store(manager, finish=False)}"
    answer = await http.get(growing, headers={"range": "bytes=0-1"})
    assert (answer.headers["cache-control"], answer.headers["content-range"]) == ("no-store", "bytes 0-1/*")
    assert "etag" not in answer.headers


async def test_errors_of_the_http_door(http: httpx.AsyncClient, manager: ResourceManager) -> None:
    path = f"/r/{await store(manager)}"
    answer = await http.get(path, headers={"range": "bytes=100-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */18")
    assert answer.json() == json.loads(blocks(section("6.3"), "json")[0])
    assert (await http.post(path)).status_code == 405
    for query in ("?lines=0:1&follow", "?from=1"):
        assert (await http.get(path + query)).json()["code"] == "invalid_argument"
    assert re.search(r"`follow` is on when it is there, unless its value is `0`, `false` or `no`", prose("6.1"))
    for value in ("0", "false", "no"):
        assert (await http.get(f"{path}?from=1&follow={value}")).json()["code"] == "invalid_argument"


async def test_what_operators_ask(http: httpx.AsyncClient) -> None:
    for row in table("6.4", "request"):
        method, path = quoted(row["request"])[0].split()
        answer = await http.request(method, path)
        assert row["answer"].startswith(str(answer.status_code)), row
        assert answer.content
