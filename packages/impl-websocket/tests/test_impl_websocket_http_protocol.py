"""What is bounded before a request is one: its size, its time, and the number of connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

import httpx
import pytest
from impl_websocket_server import head, raw, running_server
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tailrace_common_api import Metadata
from tailrace_impl_common import chunk_hash
from tailrace_impl_websocket import _http_protocol


async def _exchange(url: str, data: bytes) -> bytes:
    """Send bytes on a connection of their own, and return all that comes back until its end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(data)
        await writer.drain()
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def _error(response: bytes) -> dict[str, object]:
    body: dict[str, object] = json.loads(response.partition(b"\r\n\r\n")[2])
    return body


async def test_headers_without_an_end_are_refused_with_a_typed_error() -> None:
    async with running_server() as server:
        request = b"GET /r/x HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 16 * _http_protocol.MAX_HEADERS
        response = await _exchange(server.http, request)
        assert response.startswith(b"HTTP/1.1 431 ")
        assert _error(response)["code"] == "message_too_large"
        # The next one is served all the same.
        response = await _exchange(server.http, b"GET /r/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert _error(response)["code"] == "invalid_reference"


async def test_headers_up_to_the_limit_are_read_however_they_arrive() -> None:
    async with running_server() as server:
        parts = urlsplit(server.http)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        request = b"GET /r/x HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 40_000 + b"\r\nConnection: close\r\n\r\n"
        for start in range(0, len(request), 7_001):
            writer.write(request[start : start + 7_001])
            await writer.drain()
        assert _error(await reader.read())["code"] == "invalid_reference"
        writer.close()


async def test_several_requests_on_one_connection_each_have_the_limit() -> None:
    async with running_server() as server:
        request = b"GET /r/x HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 40_000 + b"\r\n\r\n"
        last = b"GET /r/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        response = await _exchange(server.http, request * 3 + last)
        assert response.count(b"HTTP/1.1 404") == 4


async def test_a_request_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http_protocol, "HEADERS_TIMEOUT", 0.05)
    async with running_server() as server:
        for beginning in (b"", b"GET /r/x HT", b"GET /r/x HTTP/1.1\r\nHost: x\r\n"):
            response = await _exchange(server.http, beginning)
            assert response.startswith(b"HTTP/1.1 408 ")
            assert _error(response)["code"] == "deadline_exceeded"


async def test_a_slow_request_behind_a_good_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Enough for the good one, on a busy machine, too.
    monkeypatch.setattr(_http_protocol, "HEADERS_TIMEOUT", 0.5)
    async with running_server() as server:
        response = await _exchange(server.http, b"GET /r/x HTTP/1.1\r\nHost: x\r\n\r\nGET /r/")
        assert response.startswith(b"HTTP/1.1 404 ")
        assert b"HTTP/1.1 408 " in response


async def test_a_request_that_has_arrived_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Enough for it to arrive, on a busy machine, too.
    monkeypatch.setattr(_http_protocol, "HEADERS_TIMEOUT", 0.5)
    fired = asyncio.Event()
    real = _http_protocol.HttpProtocol._too_slow

    def too_slow(self: _http_protocol.HttpProtocol) -> None:
        fired.set()
        real(self)

    monkeypatch.setattr(_http_protocol.HttpProtocol, "_too_slow", too_slow)
    async with running_server() as server:
        parts = urlsplit(server.http)
        upload = await server.manager.create(Metadata(name="growing"))
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(f"GET /r/{upload.id}?follow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        # Somebody else's time runs out meanwhile.
        assert (await _exchange(server.http, b"GET")).startswith(b"HTTP/1.1 408 ")
        assert fired.is_set()
        data = b"all of it"
        upload.submit(data, hash=chunk_hash(data))
        await upload.finish(size=len(data), head=bytes.fromhex(head(data)))
        assert b"all of it" in await reader.read()
        writer.close()


async def test_more_connections_than_allowed_are_told_so() -> None:
    async with running_server(max_connections=2) as server:
        async with raw(server.endpoint), raw(server.endpoint):
            with pytest.raises(InvalidStatus) as caught:
                async with raw(server.endpoint):
                    pass
            response = caught.value.response
            assert response.status_code == 503
            assert json.loads(response.body)["code"] == "overloaded"
            assert "Retry-After" in response.headers
        # There is room again.
        async with raw(server.endpoint) as client:
            assert (await client.open_upload(1))["type"] == "opened"


async def test_websockets_and_requests_over_http_are_bounded_together() -> None:
    async with (
        running_server(max_connections=2) as server,
        httpx.AsyncClient(base_url=server.http, trust_env=False) as client,
        raw(server.endpoint),
    ):
        upload = await server.manager.create(Metadata(name="growing"))
        async with client.stream("GET", f"/r/{upload.id}?follow") as following:
            assert following.status_code == 200
            refused = await client.get(f"/r/{upload.id}")
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            with pytest.raises(InvalidStatus) as caught:
                async with raw(server.endpoint):
                    pass
            assert caught.value.response.status_code == 503
            assert json.loads(caught.value.response.body)["code"] == "overloaded"
            # Who asks how the server is gets an answer all the same.
            assert (await client.get("/healthz")).status_code == 200
            await upload.finish(size=0, head=bytes.fromhex(head(b"")))
            assert await following.aread() == b""
        # There is room again as soon as the client has its answer, for either.
        for _ in range(20):
            assert (await client.get(f"/r/{upload.id}")).status_code == 200
        async with raw(server.endpoint):
            pass


async def test_requests_that_are_refused_take_no_room() -> None:
    async with (
        running_server(max_connections=1) as server,
        httpx.AsyncClient(base_url=server.http, trust_env=False) as client,
    ):
        for path, status in (("/r/nobody", 404), ("/r/x?lines=y", 400), ("/query/nobody", 404)) * 3:
            assert (await client.get(path)).status_code == status
        for _ in range(3):
            with pytest.raises(InvalidStatus) as caught:
                async with connect(server.endpoint, proxy=None):
                    pass
            assert json.loads(caught.value.response.body)["code"] == "unsupported"
        async with raw(server.endpoint):
            pass


async def test_far_too_many_connections_are_cut() -> None:
    async with running_server(max_connections=1) as server:
        parts = urlsplit(server.http)
        idle = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        for _, other in [*idle, (reader, writer)]:
            other.transport.abort()
