"""PROTOCOL.md says what the code does: tokens and origins, played to real servers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from protocol_document import prose, quoted, table
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from tailrace_impl_grpc import GrpcServer
from tailrace_impl_grpc._error_table import ERROR_KEY, sent_error
from tailrace_impl_grpc._proto.v1 import tailrace_pb2 as pb
from tailrace_impl_server import TokenFile, create_manager
from tailrace_impl_websocket import WebSocketServer, _server_streams
from tailrace_server_api import Operation, TransportServerSettings

WRONG = "tr_0123456789abcdef_" + "x" * 43


@pytest.fixture
def token(tmp_path: Path) -> str:
    """A token that may do everything."""
    return TokenFile(tmp_path / "tokens.json").add("somebody", Operation)


@pytest.fixture
async def urls(tmp_path: Path, token: str) -> AsyncIterator[dict[str, str]]:
    """Servers that need a token."""
    async for served in serve({"tokens": str(tmp_path / "tokens.json")}):
        yield served


@pytest.fixture
async def open_urls() -> AsyncIterator[dict[str, str]]:
    """Servers that need none."""
    async for served in serve({}):
        yield served


async def serve(options: dict[str, object]) -> AsyncIterator[dict[str, str]]:
    async with create_manager(None, options) as managed:
        servers = (GrpcServer(), WebSocketServer())
        for server in servers:
            await server.start(managed.manager, TransportServerSettings())
        yield {**servers[0].urls, **servers[1].urls}
        for server in servers:
            await server.close(1.0)


def connect(urls: dict[str, str], *more: str, **arguments: Any) -> connect_websocket:
    subprotocols = [Subprotocol(name) for name in ("tailrace.v1", *more)]
    return connect_websocket(f"{urls['ws']}/v1/connect", subprotocols=subprotocols, proxy=None, **arguments)


def named(prefix: str) -> str:
    """Return the subprotocol of the document that begins like this."""
    (found,) = {name for name in quoted(prose("5.1")) if name.startswith(prefix)}
    return found


async def hear(websocket: ClientConnection) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(await websocket.recv())
    return fields


async def works(websocket: ClientConnection) -> None:
    await websocket.send('{"type":"create_context","request":1}')
    assert (await hear(websocket))["type"] == "context"


async def refused(websocket: ClientConnection) -> None:
    """See the end that an unauthenticated connection comes to."""
    error = await hear(websocket)
    assert (error["type"], error["code"], error.get("request")) == ("error", "unauthenticated", None)
    with pytest.raises(ConnectionClosed):
        await websocket.recv()
    (row,) = (row for row in table("3", "code") if quoted(row["code"]) == ["unauthenticated"])
    assert websocket.close_code == int(row["close"]) == 1008


def status_of(code: str) -> int:
    (row,) = (row for row in table("3", "code") if quoted(row["code"]) == [code])
    return int(row["HTTP"])


async def test_token_in_a_header(urls: dict[str, str], token: str) -> None:
    async with connect(urls, additional_headers={"Authorization": f"Bearer {token}"}) as websocket:
        assert (await hear(websocket))["type"] == "hello"
        await works(websocket)
    with pytest.raises(InvalidStatus) as caught:
        await connect(urls, additional_headers={"Authorization": f"Bearer {WRONG}"})
    answer = caught.value.response
    assert answer.status_code == status_of("unauthenticated")
    assert json.loads(answer.body or b"")["code"] == "unauthenticated"


async def test_token_as_a_subprotocol(urls: dict[str, str], token: str) -> None:
    def entry(text: str) -> str:
        return named("tailrace.token.") + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    async with connect(urls, entry(token)) as websocket:
        assert websocket.subprotocol == "tailrace.v1"
        assert (await hear(websocket))["type"] == "hello"
        await works(websocket)
    async with connect(urls, entry(WRONG)) as websocket:
        await refused(websocket)


async def test_token_as_the_first_message(urls: dict[str, str], token: str) -> None:
    async with connect(urls) as websocket:
        await websocket.send(json.dumps({"type": "authenticate", "token": token}))
        assert (await hear(websocket))["type"] == "hello"
        await works(websocket)
        await websocket.send(json.dumps({"type": "authenticate", "token": token}))
        assert (await hear(websocket))["code"] == "protocol"
        with pytest.raises(ConnectionClosed):
            await websocket.recv()
    for first in (
        json.dumps({"type": "authenticate", "token": WRONG}),
        '{"type":"list","request":1,"limit":1}',
        b"\x01",
    ):
        async with connect(urls) as websocket:
            await websocket.send(first)
            await refused(websocket)


async def test_a_token_is_waited_for_so_long(urls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (seconds,) = re.findall(r"it waits for it for (\d+) seconds", prose("5.1"))
    assert float(seconds) == _server_streams.AUTHENTICATION_TIMEOUT
    monkeypatch.setattr(_server_streams, "AUTHENTICATION_TIMEOUT", 0.05)
    async with connect(urls) as websocket:
        await refused(websocket)


async def test_who_has_no_token_can_say_so(urls: dict[str, str], open_urls: dict[str, str]) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(urls, named("tailrace.anonymous"))
    assert caught.value.response.status_code == status_of("unauthenticated")
    async with connect(open_urls, named("tailrace.anonymous")) as websocket:
        assert (await hear(websocket))["type"] == "hello"


@pytest.mark.parametrize("early", [True, False])
async def test_tokens_that_nobody_asked_for_are_ignored(open_urls: dict[str, str], early: bool) -> None:
    said = json.dumps({"type": "authenticate", "token": WRONG})
    async with connect(open_urls, named("tailrace.token.") + "x") as websocket:
        assert (await hear(websocket))["type"] == "hello"
        await works(websocket)
    async with connect(open_urls) as websocket:
        if early:
            await websocket.send(said)
        assert (await hear(websocket))["type"] == "hello"
        if not early:
            await websocket.send(said)
        await works(websocket)
        await websocket.send(said)
        assert (await hear(websocket))["code"] == "protocol"
        with pytest.raises(ConnectionClosed):
            await websocket.recv()
        assert websocket.close_code == 1002


async def test_origins(open_urls: dict[str, str]) -> None:
    own = open_urls["http"]
    async with connect(open_urls, origin=Origin(own)) as websocket:
        assert (await hear(websocket))["type"] == "hello"
    for foreign in ("http://example.org", own.replace("127.0.0.1", "localhost"), "null"):
        with pytest.raises(InvalidStatus) as caught:
            await connect(open_urls, origin=Origin(foreign))
        answer = caught.value.response
        assert answer.status_code == status_of("permission_denied")
        assert json.loads(answer.body or b"")["code"] == "permission_denied"


async def test_tokens_and_origins_of_the_http_door(urls: dict[str, str], token: str) -> None:
    own = urls["http"]
    async with httpx.AsyncClient(base_url=own, trust_env=False) as http:
        path = f"/r/{'0' * 32}"
        nobody = await http.get(path)
        assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
        (challenge,) = re.findall(r"401 has `WWW-Authenticate: (\w+)`", prose("6.3"))
        assert nobody.headers["www-authenticate"] == challenge
        allowed = {"authorization": f"Bearer {token}"}
        assert (await http.get(path, headers=allowed)).status_code == 404
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/metrics", headers=allowed)).status_code == 200
        foreign = await http.get(path, headers={**allowed, "origin": "http://example.org"})
        assert (foreign.status_code, foreign.json()["code"]) == (403, "permission_denied")
        answer = await http.get(path, headers={**allowed, "origin": own})
        assert answer.headers["access-control-allow-origin"] == own
        assert "Origin" in answer.headers["vary"]
        assert "access-control-expose-headers" in answer.headers
        asked = {"origin": own, "access-control-request-method": "GET"}
        preflight = await http.options(path, headers=asked)
        assert preflight.status_code == 204
        (listed,) = re.findall(r"and the request headers (.*?)\.", prose("6"))
        given = {name.strip() for name in preflight.headers["access-control-allow-headers"].lower().split(",")}
        assert given == set(quoted(listed))
        methods = {name.strip() for name in preflight.headers["access-control-allow-methods"].split(",")}
        assert methods == {"GET", "HEAD"}


async def test_tokens_over_grpc(urls: dict[str, str], token: str) -> None:
    async with grpc.aio.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel:
        create: Any = channel.unary_unary("/tailrace.v1.Contexts/Create")
        data = pb.CreateContextRequest().SerializeToString()
        answer = await create(data, metadata=(("authorization", f"Bearer {token}"),))
        assert pb.Context.FromString(answer).id
        for metadata in ((), (("authorization", f"Bearer {WRONG}"),), (("authorization", token),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await create(data, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            trailing = caught.value.trailing_metadata() or ()
            assert ERROR_KEY in [key for key, _ in trailing]
            error = sent_error(trailing)
            assert error is not None
            assert error.code == "unauthenticated"
        health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"")
