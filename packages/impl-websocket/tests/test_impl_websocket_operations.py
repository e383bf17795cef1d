"""What operators ask: whether the server lives, whether it is ready, and what it has counted."""

from __future__ import annotations

import asyncio
import logging
import socket

import httpx
import pytest
from impl_websocket_server import Running, raw, running_server
from prometheus_client.parser import text_string_to_metric_families

from tailrace_common_api import MEBIBYTE, GoingAway, Metadata, Overloaded, PermissionDenied, Unauthenticated
from tailrace_impl_common import HeadHasher, chunk_hash
from tailrace_impl_websocket._http_protocol import HttpProtocol
from tailrace_server_api import Credentials

UNKNOWN = "0" * 32


async def ask(server: Running, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.http, trust_env=False) as client:
        return await client.request(method, path, headers=headers)


async def counted(server: Running, sample_name: str, **labels: str) -> float:
    """Return one sample of a scrape; 0 for one that does not exist."""
    answer = await ask(server, "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return sum(
        sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.name == sample_name and all(sample.labels.get(name) == value for name, value in labels.items())
    )


async def store(server: Running, mebibytes: int) -> str:
    """Store a resource without a connection; return its id."""
    ingest = await server.manager.create(Metadata(name="large"))
    piece, hasher = bytes(MEBIBYTE), HeadHasher()
    for _ in range(mebibytes):
        hasher.update(piece)
        while (progress := ingest.progress).until < hasher.size:
            await ingest.changed(progress)
        ingest.submit(piece, hash=chunk_hash(piece))
    await ingest.finish(size=hasher.size, head=hasher.head())
    return ingest.id


async def test_a_server_that_serves_is_alive_and_ready() -> None:
    async with running_server() as server:
        for path, body in (("/healthz", "alive\n"), ("/readyz", "ready\n")):
            answer = await ask(server, path)
            assert (answer.status_code, answer.text) == (200, body)
            assert answer.headers["cache-control"] == "no-store"
            head = await ask(server, path, "HEAD")
            assert (head.status_code, head.text) == (200, "")
            assert (await ask(server, path, "POST")).status_code == 405


async def test_they_stand_below_the_prefix() -> None:
    async with running_server({"prefix": "/some/where"}) as server:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await ask(server, path)).status_code == 200
            outside = server.http.removesuffix("/some/where") + path
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.get(outside)).status_code == 404


async def test_a_server_that_is_not_ready_says_why_and_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server() as server:
        monkeypatch.setattr(type(server.manager), "unready_reason", "the storage failed")
        answer = await ask(server, "/readyz")
        assert (answer.status_code, answer.text) == (503, "not ready: the storage failed\n")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await ask(server, "/healthz")).status_code == 200
        monkeypatch.undo()
        assert (await ask(server, "/readyz")).status_code == 200


async def test_they_answer_under_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server() as server:

        def refuse() -> None:
            raise Overloaded(what="file descriptors", retry_after=1.0)

        monkeypatch.setattr(server.manager, "admit", refuse)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await ask(server, path)).status_code == 200
        assert (await ask(server, f"/r/{UNKNOWN}")).status_code == 503
        assert await counted(server, "tailrace_refused_total", transport="http", code="overloaded") == 1


async def test_they_answer_while_the_server_drains_and_who_comes_is_told_to_come_back() -> None:
    async with running_server() as server:
        resource = await store(server, 32)
        host, _, port = server.http.removeprefix("http://").rpartition(":")
        # A response that nobody reads holds the server up for its grace.
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /r/{resource} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        async with raw(server.endpoint) as client, raw(server.endpoint) as other:
            await other.say("follow", 1, id=resource)
            await other.until("started")
            closing = asyncio.ensure_future(server.transport.close(30.0))
            while (await ask(server, "/readyz")).status_code == 200:
                pass
            answer = await ask(server, "/readyz")
            assert (answer.status_code, answer.text) == (503, "not ready: shutting down\n")
            assert (await ask(server, "/healthz")).status_code == 200
            refused = await ask(server, f"/r/{resource}")
            assert (refused.status_code, refused.json()["code"]) == (503, "going_away")
            assert int(refused.headers["retry-after"]) >= 1
            # A new request on an old connection, and a new connection.
            await client.say("get_status", 1, id=resource)
            error = await client.error(1)
            assert isinstance(error, GoingAway)
            assert error.retry_after > 0
            with pytest.raises(Exception, match="503"):
                async with raw(server.endpoint):
                    pass
            assert await counted(server, "tailrace_refused_total", transport="websocket", code="going_away") == 2
            assert not closing.done()
            writer.transport.abort()
            await closing


async def test_the_system_asks_idle_clients_of_http_whether_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    real = HttpProtocol.connection_made

    def connection_made(self: HttpProtocol, transport: asyncio.Transport) -> None:
        real(self, transport)
        made.append(transport.get_extra_info("socket"))

    monkeypatch.setattr(HttpProtocol, "connection_made", connection_made)
    async with running_server(keepalive_interval=7.0, keepalive_timeout=6.0) as server:
        resource = await server.upload(b"some", finish=False)
        made.clear()
        async with (
            httpx.AsyncClient(base_url=server.http, trust_env=False) as client,
            client.stream("GET", f"/r/{resource}?follow") as answer,
        ):
            assert await anext(answer.aiter_raw()) == b"some"
            (connection,) = made
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            asked = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
            assert [connection.getsockopt(socket.IPPROTO_TCP, option) for option in asked] == [7, 2, 3]
    async with running_server(keepalive_interval=0.01, keepalive_timeout=1e9) as server:
        assert (await ask(server, "/healthz")).status_code == 200


async def test_metrics_are_for_whom_the_manager_lets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shown: list[Credentials] = []

    async def authorize(credentials: Credentials) -> None:
        shown.append(credentials)
        if credentials.token is None:
            raise Unauthenticated("a token is needed")
        if credentials.token != "operator":
            raise PermissionDenied("not for this token")

    async with running_server() as server:
        monkeypatch.setattr(server.manager, "authorize_metrics", authorize)
        nobody = await ask(server, "/metrics")
        assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
        somebody = await ask(server, "/metrics", authorization="Bearer secret-of-somebody")
        assert (somebody.status_code, somebody.json()["code"]) == (403, "permission_denied")
        operator = await ask(server, "/metrics", authorization="Bearer operator")
        assert operator.status_code == 200
        assert 'tailrace_refused_total{code="unauthenticated",transport="http"} 1.0' in operator.text
        assert "secret" not in operator.text
        assert "secret" not in caplog.text
        assert all(credentials.peer.startswith("127.0.0.1:") for credentials in shown)


async def test_connections_and_their_requests_are_counted() -> None:
    async with running_server() as server:
        await server.upload(b"x" * 1000)
        assert await counted(server, "tailrace_connections_open", transport="websocket") == 0
        async with raw(server.endpoint) as client:
            assert await counted(server, "tailrace_connections_open", transport="websocket") == 1
            await client.say("get_status", 1, id=UNKNOWN)
            await client.error(1)
        labels = {"transport": "websocket", "operation": "OpenUpload"}
        assert await counted(server, "tailrace_requests_total", **labels, code="ok") == 1
        assert await counted(server, "tailrace_received_bytes_total", **labels) == 1000
        assert await counted(server, "tailrace_requests_total", operation="GetStatus", code="not_found") == 1
        assert await counted(server, "tailrace_connections_total", transport="websocket") == 2


async def test_a_handshake_of_something_else_is_counted_as_refused() -> None:
    async with running_server() as server:
        headers = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        answer = await ask(server, "/v1/connect", **headers, **{"sec-websocket-key": "x" * 22 + "=="})
        assert answer.status_code >= 400
        assert await counted(server, "tailrace_refused_total", transport="websocket", code="unsupported") == 1
        assert await counted(server, "tailrace_connections_total") == 0


async def test_requests_over_http_are_counted_by_how_they_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tailrace_impl_common")
    async with running_server() as server:
        resource = await server.upload(b"one\ntwo\n", lines=True)
        assert (await ask(server, f"/r/{resource}")).content == b"one\ntwo\n"
        assert (await ask(server, f"/r/{resource}?lines=1:2")).content == b"two\n"
        assert (await ask(server, f"/r/{UNKNOWN}?follow")).status_code == 404
        for operation, code, sent in (("Read", "ok", 8), ("ReadLines", "ok", 4), ("Follow", "not_found", 0)):
            labels = {"transport": "http", "operation": operation}
            assert await counted(server, "tailrace_requests_total", **labels, code=code) == 1
            assert await counted(server, "tailrace_sent_bytes_total", **labels) == sent
        assert [record.getMessage() for record in caplog.records] == [f"Follow failed: no resource '{UNKNOWN}'"]
        assert vars(caplog.records[0])["code"] == "not_found"
        assert vars(caplog.records[0])["resource"] == UNKNOWN


async def test_a_response_that_is_cut_off_is_counted_with_its_reason() -> None:
    async with running_server() as server:
        resource = await server.upload(b"some", finish=False)
        async with httpx.AsyncClient(base_url=server.http, trust_env=False) as client:
            async with client.stream("GET", f"/r/{resource}?follow") as answer:
                assert await anext(answer.aiter_raw()) == b"some"
            async with client.stream("GET", f"/r/{resource}?follow") as answer:
                pieces = answer.aiter_raw()
                assert await anext(pieces) == b"some"
                await server.manager.delete(resource)
                with pytest.raises(httpx.RemoteProtocolError):
                    await anext(pieces)
        for code in ("connection_lost", "deleted"):
            while not await counted(server, "tailrace_requests_total", operation="Follow", code=code):
                pass
        assert await counted(server, "tailrace_requests_in_progress", transport="http") == 0
