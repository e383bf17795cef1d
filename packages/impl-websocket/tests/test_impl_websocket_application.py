"""The application within somebody else's, run by nothing of this package."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from impl_websocket_server import Running, raw, running_server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope

from tailrace_common_api import ConfigurationError
from tailrace_impl_server import create_manager
from tailrace_impl_websocket import WebSocketServer, create_application
from tailrace_server_api import ResourceManager


def websocket_scope(*subprotocols: str) -> Scope:
    return {
        "type": "websocket",
        "path": "/v1/connect",
        "root_path": "",
        "headers": [],
        "query_string": b"",
        "subprotocols": list(subprotocols),
    }


class AnnouncedServer(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@asynccontextmanager
async def foreign_server(manager: ResourceManager, prefix: str = "") -> AsyncIterator[Running]:
    """Run an application of its own, with ours mounted at ``/files``, as somebody's uvicorn would."""
    application = Starlette(
        routes=[
            Route("/hello", hello),
            Mount("/files", create_application(manager, base="wss://example.org/files", prefix=prefix)),
        ]
    )
    server = AnnouncedServer(
        uvicorn.Config(application, port=0, ws="websockets-sansio", log_config=None, lifespan="off")
    )
    serving = asyncio.create_task(server.serve())
    await server.listening.wait()
    address = f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield Running(WebSocketServer(), manager, f"ws://{address}/files{prefix}", f"http://{address}/files{prefix}")
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize("prefix", ["", "/deep"])
async def test_application_is_mounted_under_a_prefix(prefix: str) -> None:
    async with create_manager(None, {}) as managed, foreign_server(managed.manager, prefix) as server:
        resource = await server.upload(b"data")
        async with raw(server.endpoint) as client:
            await client.say("get_status", 1, id=resource)
            status = (await client.until("status"))["status"]
            assert status["reference"] == f"wss://example.org/files/r/{resource}"
            assert status["alternatives"] == [status["reference"]]
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{server.http}/r/{resource}")).content == b"data"
            assert (await client.get(f"{server.http}/other")).json()["code"] == "not_found"
            outside = server.http.partition("/files")[0]
            assert (await client.get(f"{outside}/hello")).text == "hello"


@pytest.mark.usefixtures("errors_are_logged")
async def test_response_is_cut_off_by_any_server() -> None:
    async with create_manager(None, {}) as managed, foreign_server(managed.manager) as server:
        resource = await server.upload(b"so far", finish=False)

        async def follow() -> None:
            async with (
                httpx.AsyncClient(trust_env=False) as client,
                client.stream("GET", f"{server.http}/r/{resource}?follow") as response,
            ):
                async for _ in response.aiter_raw():
                    await managed.manager.delete(resource)

        with pytest.raises(httpx.RemoteProtocolError):
            await follow()


async def test_server_that_cannot_answer_a_handshake_refuses_it_plainly() -> None:
    """A server without the extension for denials is only asked to close."""
    async with create_manager(None, {}) as managed:
        application = create_application(managed.manager, base="ws://example.org")
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await application(websocket_scope(), receive, send)
        assert sent == [{"type": "websocket.close"}]


async def test_client_that_is_gone_before_it_is_accepted_leaves_nothing() -> None:
    async with create_manager(None, {}) as managed:
        application = create_application(managed.manager, base="ws://example.org")

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            raise OSError("gone")

        before = asyncio.all_tasks()
        await application(websocket_scope("tailrace.v1"), receive, send)
        assert asyncio.all_tasks() == before


async def test_many_conversations_of_a_stopped_reader_wait_with_one_frame() -> None:
    """What cannot be sent is not encoded: a connection that does not read costs one chunk, not one per request."""
    async with running_server() as server:
        data = bytes(1024 * 1024)
        resource = await server.upload(data)
        application = create_application(server.manager, base="ws://example.org")
        inbound: asyncio.Queue[Message] = asyncio.Queue()
        inbound.put_nowait({"type": "websocket.connect"})
        frames: list[int] = []
        told: asyncio.Queue[str] = asyncio.Queue()

        async def send(message: Message) -> None:
            if message.get("bytes"):
                frames.append(len(message["bytes"]))
                await asyncio.get_running_loop().create_future()
            elif message.get("text"):
                told.put_nowait(json.loads(message["text"])["type"])

        def ask(**message: object) -> None:
            inbound.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

        async def hear(type: str) -> None:
            while await told.get() != type:
                pass

        receive: Receive = inbound.get
        running = asyncio.ensure_future(application(websocket_scope("tailrace.v1"), receive, send))
        for number in range(1, 20):
            ask(type="read", request=number, id=resource)
        for _ in range(1, 20):
            await hear("started")
        # Neither reading nor control messages wait for the reader.
        for number in range(20, 30):
            ask(type="get_status", request=number, id=resource)
            await hear("status")
        # The first may have been sent while it was the only one.
        assert 1 <= len(frames) <= 2
        inbound.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await running


PAGE = "https://app.example"


@pytest.mark.parametrize(
    ("origins", "let_in", "refused"),
    [
        ("", ["https://example.org"], [PAGE, "http://example.org", "https://example.org:444", "null", "*"]),
        (f"{PAGE} http://other.example:8080", [PAGE, "http://other.example:8080"], ["http://other.example", "null"]),
        (f"{PAGE},http://other.example", [PAGE, "http://other.example"], ["https://app.example.evil", "app.example"]),
        ("*", [PAGE, "null", "https://evil.example"], []),
    ],
)
async def test_pages_of_origins_that_the_application_lists_are_let_in(
    origins: str, let_in: list[str], refused: list[str]
) -> None:
    async with create_manager(None, {}) as managed:
        application = create_application(managed.manager, base="wss://example.org/files", origins=origins)
        transport = httpx.ASGITransport(application)
        # It runs behind a name that no page has.
        async with httpx.AsyncClient(transport=transport, base_url="http://inner.example", trust_env=False) as client:
            for origin in let_in:
                answer = await client.get(f"/r/{'0' * 32}", headers={"Origin": origin})
                assert answer.status_code == 404
                assert answer.headers["access-control-allow-origin"] == origin
            for origin in refused:
                answer = await client.get(f"/r/{'0' * 32}", headers={"Origin": origin})
                assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
                assert "access-control-allow-origin" not in answer.headers
            assert (await client.get(f"/r/{'0' * 32}")).status_code == 404
        for origin, accepted in (*((origin, True) for origin in let_in), *((origin, False) for origin in refused)):
            assert await _handshake(application, origin) is accepted


async def _handshake(application: Starlette, origin: str) -> bool:
    """Return whether a WebSocket of a page of ``origin`` is accepted."""
    events: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
    sent: list[str] = []

    async def receive() -> Message:
        return events.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    scope = websocket_scope("tailrace.v1")
    scope["headers"] = [(b"host", b"inner.example"), (b"origin", origin.encode())]
    await application(scope, receive, send)
    return sent[0] == "websocket.accept"


@pytest.mark.parametrize("origins", ["app.example", "https://app.example/path", "ftp://app.example", "https://"])
async def test_what_is_no_origin_is_refused(origins: str) -> None:
    async with create_manager(None, {}) as managed:
        with pytest.raises(ConfigurationError) as refused:
            create_application(managed.manager, base="wss://example.org", origins=origins)
        assert refused.value.field == "origins"
