from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from impl_websocket_server import Raw, Running, frame, head, raw, running_server
from starlette.types import Message

from tailrace_common_api import MAX_OFFSET, GoingAway, Metadata, error_from_wire
from tailrace_impl_common import chunk_hash
from tailrace_impl_websocket._http_bodies import Bodies
from tailrace_impl_websocket._http_door import _copy
from tailrace_server_api import RequestTelemetry

DATA = b"zero\none\r\ntwo\n\nfour"
UNKNOWN = "0" * 32


@dataclass
class Growing:
    """A resource that is being uploaded, over a connection of its own."""

    client: Raw
    id: str
    size: int = 0
    previous: bytes = b""
    content: bytes = b""

    async def write(self, data: bytes) -> None:
        """Add bytes, and wait until they are announced."""
        await self.client.send(frame(1, self.size, data, self.previous))
        self.size += len(data)
        self.previous = chunk_hash(data)
        self.content += data
        while (await self.client.until("checkpoint"))["size"] < self.size:
            pass

    async def finish(self) -> None:
        await self.client.say("finish", 1, size=self.size, head=head(self.content))
        await self.client.until("finished")

    async def abort(self) -> None:
        await self.client.say("abort", 1, reason="enough")
        await self.client.until("finished")


@asynccontextmanager
async def growing(server: Running, data: bytes = b"", **metadata: Any) -> AsyncIterator[Growing]:
    async with raw(server.endpoint) as client:
        opened = await client.open_upload(1, **metadata)
        upload = Growing(client, opened["status"]["id"])
        if data:
            await upload.write(data)
        yield upload


@asynccontextmanager
async def browser(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, trust_env=False) as client:
        yield client


async def get(server: Running, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with browser(server) as client:
        return await client.request(
            method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )


def is_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    # One line, so that what a terminal shows next begins in another one.
    assert response.content.endswith(b"}\n")
    body = response.json()
    assert body["code"] == code
    assert set(body) == {"code", "message", "details"}
    assert error_from_wire(**body).code == code


# All of it


async def test_get_gives_what_the_resource_is(server: Running) -> None:
    resource = await server.upload(DATA, name="log.txt", content_type="text/plain; charset=utf-8", lines=True)
    response = await get(server, f"/r/{resource}")
    assert (response.status_code, response.content) == (200, DATA)
    headers = response.headers
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["content-length"] == str(len(DATA))
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"] == f'"{head(DATA)}"'
    assert headers["x-tailrace-state"] == "COMPLETED"
    assert headers["x-tailrace-size"] == str(len(DATA))
    assert headers["x-tailrace-lines"] == "5"
    assert headers["x-tailrace-head"] == head(DATA)
    assert "date" in headers
    assert "server" not in headers


async def test_head_gives_the_same_without_the_bytes(server: Running) -> None:
    resource = await server.upload(DATA)
    whole, only_head = await get(server, f"/r/{resource}"), await get(server, f"/r/{resource}", "HEAD")
    assert only_head.status_code == 200
    assert only_head.content == b""
    for headers in (whole.headers, only_head.headers):
        del headers["date"]
    assert only_head.headers == whole.headers


async def test_empty_resource(server: Running) -> None:
    resource = await server.upload(b"")
    response = await get(server, f"/r/{resource}")
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")


async def test_large_resource_comes_in_pieces() -> None:
    async with running_server(chunk_size=65536) as server:
        data = bytes(range(256)) * 4000
        resource = await server.upload(data)
        assert (await get(server, f"/r/{resource}")).content == data
        assert (await get(server, f"/r/{resource}", Range="bytes=65530-65545")).content == data[65530:65546]


async def test_growing_resource_gives_what_is_announced(server: Running) -> None:
    async with growing(server, b"so far") as upload:
        response = await get(server, f"/r/{upload.id}")
        assert (response.status_code, response.content) == (200, b"so far")
        assert response.headers["x-tailrace-state"] == "IN_PROGRESS"
        assert response.headers["cache-control"] == "no-store"
        assert "etag" not in response.headers


async def test_failed_resource_gives_its_bytes(server: Running) -> None:
    async with growing(server, b"so far") as upload:
        await upload.abort()
        response = await get(server, f"/r/{upload.id}")
        assert (response.status_code, response.content) == (200, b"so far")
        assert response.headers["x-tailrace-state"] == "FAILED"


# Ranges (RFC 9110, section 14)


@pytest.mark.parametrize(
    ("value", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=2-4", 2, 5),
        ("bytes=5-", 5, 19),
        ("bytes=0-18", 0, 19),
        ("bytes=0-19", 0, 19),
        ("bytes=18-99999999999999999999999999", 18, 19),
        ("bytes=-1", 18, 19),
        ("bytes=-19", 0, 19),
        ("bytes=-20", 0, 19),
        ("BYTES=1-2", 1, 3),
    ],
)
async def test_range(server: Running, value: str, start: int, end: int) -> None:
    resource = await server.upload(DATA)
    response = await get(server, f"/r/{resource}", Range=value)
    assert (response.status_code, response.content) == (206, DATA[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert response.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("value", ["bytes=19-", "bytes=19-20", "bytes=100-", "bytes=-0"])
async def test_range_outside_is_not_satisfiable(server: Running, value: str) -> None:
    resource = await server.upload(DATA)
    response = await get(server, f"/r/{resource}", Range=value)
    is_error(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(DATA)}"
    assert response.json()["details"]["size"] == len(DATA)


@pytest.mark.parametrize(
    "value",
    ["bytes=4-2", "bytes=a-b", "bytes=-", "bytes=", "bytes", "lines=0-1", "bytes=0-1,3-4", "bytes=0--1", "bytes=+0-1"],
)
async def test_range_that_is_not_understood_is_ignored(server: Running, value: str) -> None:
    resource = await server.upload(DATA)
    response = await get(server, f"/r/{resource}", Range=value)
    assert (response.status_code, response.content) == (200, DATA)


async def test_range_of_a_growing_resource_has_no_complete_length(server: Running) -> None:
    async with growing(server, b"so far") as upload:
        response = await get(server, f"/r/{upload.id}", Range="bytes=3-")
        assert (response.status_code, response.content) == (206, b"far")
        assert response.headers["content-range"] == "bytes 3-5/*"
        outside = await get(server, f"/r/{upload.id}", Range="bytes=6-")
        assert (outside.status_code, outside.headers["content-range"]) == (416, "bytes */6")


async def test_ranges_of_an_empty_resource(server: Running) -> None:
    resource = await server.upload(b"")
    assert (await get(server, f"/r/{resource}", Range="bytes=0-")).status_code == 416
    assert (await get(server, f"/r/{resource}", Range="bytes=-5")).status_code == 200


async def test_range_means_nothing_to_head(server: Running) -> None:
    resource = await server.upload(DATA)
    response = await get(server, f"/r/{resource}", "HEAD", Range="bytes=0-1")
    assert (response.status_code, response.headers["content-length"]) == (200, str(len(DATA)))


# Validators


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_known_version_is_not_sent_again(server: Running, form: str) -> None:
    resource = await server.upload(DATA)
    tag = f'"{head(DATA)}"'
    for method in ("GET", "HEAD"):
        response = await get(server, f"/r/{resource}", method, If_None_Match=form.format(tag), Range="bytes=0-1")
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == tag


async def test_other_version_is_sent(server: Running) -> None:
    resource = await server.upload(DATA)
    response = await get(server, f"/r/{resource}", If_None_Match='"other"')
    assert (response.status_code, response.content) == (200, DATA)


async def test_range_depends_on_the_version(server: Running) -> None:
    resource = await server.upload(DATA)
    tag = f'"{head(DATA)}"'
    for value, status in ((tag, 206), ('"other"', 200), (f"W/{tag}", 200), ("Sat, 01 Jan 2022 00:00:00 GMT", 200)):
        assert (await get(server, f"/r/{resource}", Range="bytes=0-1", If_Range=value)).status_code == status
    async with growing(server, DATA) as upload:
        assert (await get(server, f"/r/{upload.id}", Range="bytes=0-1", If_Range=tag)).status_code == 200


# Lines


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("0:1", b"zero\n"),
        ("1:3", b"one\r\ntwo\n"),
        ("3:", b"\nfour"),
        (":2", b"zero\none\r\n"),
        (":", DATA),
        ("4:100", b"four"),
        ("5:", b""),
        ("2:2", b""),
    ],
)
async def test_lines(server: Running, query: str, expected: bytes) -> None:
    resource = await server.upload(DATA, lines=True)
    response = await get(server, f"/r/{resource}?lines={query}")
    assert (response.status_code, response.content) == (200, expected)
    assert response.headers["content-length"] == str(len(expected))


async def test_lines_of_a_growing_resource_end_at_its_last_newline(server: Running) -> None:
    async with growing(server, DATA, lines=True) as upload:
        response = await get(server, f"/r/{upload.id}?lines=3:")
        assert (response.content, response.headers["x-tailrace-lines"]) == (b"\n", "4")


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("lines=6:", 416, "line_range_not_satisfiable"),
        ("lines=3:1", 416, "line_range_not_satisfiable"),
        ("lines=-1:", 400, "invalid_argument"),
        ("lines=5", 400, "invalid_argument"),
        ("lines=", 400, "invalid_argument"),
        ("lines=a:b", 400, "invalid_argument"),
        ("lines=1:2:3", 400, "invalid_argument"),
        ("lines=0:1&follow", 400, "invalid_argument"),
        ("from=1", 400, "invalid_argument"),
        ("follow&from=-1", 400, "invalid_argument"),
        ("follow&from=x", 400, "invalid_argument"),
        ("follow&from=9999999999999999", 400, "invalid_argument"),
        ("follow&from=20", 416, "range_not_satisfiable"),
    ],
)
async def test_query_that_cannot_be_answered(server: Running, query: str, status: int, code: str) -> None:
    resource = await server.upload(DATA, lines=True)
    is_error(await get(server, f"/r/{resource}?{query}"), status, code)


async def test_lines_need_line_access(server: Running) -> None:
    resource = await server.upload(DATA)
    is_error(await get(server, f"/r/{resource}?lines=0:1"), 409, "line_access_disabled")


async def test_other_parameters_are_ignored(server: Running) -> None:
    resource = await server.upload(DATA)
    assert (await get(server, f"/r/{resource}?utm=1&follow=0")).content == DATA


# Following


@pytest.mark.parametrize(
    ("query", "headers", "start", "content_range"),
    [
        ("follow", {}, 0, None),
        ("follow=1&from=0", {}, 0, None),
        ("follow&from=3", {}, 3, None),
        ("follow&from=6", {}, 6, None),
        ("follow", {"Range": "bytes=3-"}, 3, f"bytes 3-{MAX_OFFSET}/*"),
        ("follow", {"Range": "bytes=-2"}, 4, f"bytes 4-{MAX_OFFSET}/*"),
        ("follow", {"Range": "bytes=1-2"}, 0, None),
        ("follow&from=3", {"Range": "bytes=1-"}, 3, None),
    ],
)
async def test_follow_gives_history_and_then_what_is_added(
    server: Running, query: str, headers: dict[str, str], start: int, content_range: str | None
) -> None:
    async with (
        growing(server, b"so far") as upload,
        browser(server) as client,
        client.stream("GET", f"/r/{upload.id}?{query}", headers=headers) as response,
    ):
        assert response.status_code == (200 if content_range is None else 206)
        assert response.headers.get("content-range") == content_range
        assert "content-length" not in response.headers
        received = b""
        pieces = response.aiter_raw()
        while len(received) < 6 - start:
            received += await anext(pieces)
        assert received == b"so far"[start:]
        await upload.write(b", so good")
        # The follower has what is announced before the resource ends.
        while len(received) < 15 - start:
            received += await anext(pieces)
        await upload.finish()
        async for piece in pieces:
            received += piece
        assert received == b"so far, so good"[start:]


async def test_headers_of_a_follower_do_not_wait_for_the_first_byte(server: Running) -> None:
    async with (
        growing(server) as upload,
        browser(server) as client,
        client.stream("GET", f"/r/{upload.id}?follow") as response,
    ):
        assert (response.status_code, response.headers["x-tailrace-size"]) == (200, "0")
        await upload.write(b"late")
        await upload.finish()
        assert await response.aread() == b"late"


async def test_follower_that_begins_behind_the_end_of_the_server_is_cut_off() -> None:
    bodies, error, stays = Bodies(), GoingAway(retry_after=1.0), asyncio.Event()
    bodies.admit()
    # It was let in, and has not begun.
    assert bodies.go_away(error) == set()

    async def follow() -> None:
        await stays.wait()

    async def receive() -> Message:
        await stays.wait()
        return {"type": "http.disconnect"}

    assert await bodies.send({}, receive, follow(), endless=True, begun=lambda: False) is error


async def test_follower_that_waits_holds_nothing_of_what_it_was_sent() -> None:
    buffer, sent = bytearray(b"abc"), bytearray()

    async def pieces() -> AsyncGenerator[memoryview, None]:
        for _ in range(3):
            yield memoryview(buffer)
            # A follower waits here; an error where anybody looks at the buffer.
            buffer.append(0)
            buffer.pop()

    async def send(message: Message) -> None:
        sent.extend(message["body"])

    await _copy(pieces(), send, RequestTelemetry())
    assert sent == b"abc" * 3


async def test_follow_of_a_completed_resource_is_all_of_it(server: Running) -> None:
    resource = await server.upload(DATA)
    response = await get(server, f"/r/{resource}?follow")
    assert (response.content, response.headers["content-length"]) == (DATA, str(len(DATA)))
    assert (await get(server, f"/r/{resource}?follow&from=15")).content == DATA[15:]
    assert (await get(server, f"/r/{resource}?follow", Range="bytes=19-")).status_code == 416


@pytest.mark.parametrize("already", [False, True])
async def test_follow_of_a_failed_resource_is_cut_off_behind_its_last_byte(
    server: Running, caplog: pytest.LogCaptureFixture, already: bool
) -> None:
    received = bytearray()
    async with growing(server, b"so far") as upload, browser(server) as client:

        async def follow() -> None:
            async with client.stream("GET", f"/r/{upload.id}?follow") as response:
                assert response.status_code == 200
                async for piece in response.aiter_raw():
                    received.extend(piece)
                    if not already:
                        await upload.abort()

        if already:
            await upload.abort()
        with pytest.raises(httpx.RemoteProtocolError):
            await follow()
    assert received == b"so far"
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_follow_of_a_deleted_resource_is_cut_off(server: Running) -> None:
    async with growing(server, b"so far") as upload, browser(server) as client:

        async def follow() -> None:
            async with client.stream("GET", f"/r/{upload.id}?follow") as response:
                async for _ in response.aiter_raw():
                    await server.manager.delete(upload.id)

        with pytest.raises(httpx.RemoteProtocolError):
            await follow()
        is_error(await get(server, f"/r/{upload.id}"), 404, "not_found")


async def test_head_of_a_followed_resource_does_not_wait(server: Running) -> None:
    async with growing(server, b"so far") as upload:
        response = await get(server, f"/r/{upload.id}?follow", "HEAD")
        assert response.status_code == 200
        assert "content-length" not in response.headers


async def test_client_that_leaves_ends_its_reader(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = asyncio.Event()
    send_body = Bodies.send

    async def observed(*arguments: Any, **named: Any) -> None:
        try:
            await send_body(*arguments, **named)
        finally:
            closed.set()

    monkeypatch.setattr(Bodies, "send", observed)
    async with growing(server, b"so far") as upload:
        async with browser(server) as client, client.stream("GET", f"/r/{upload.id}?follow") as response:
            assert await anext(response.aiter_raw()) == b"so far"
            assert not closed.is_set()
        await closed.wait()


async def test_client_that_leaves_ends_all_that_it_has_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()
    send_body = Bodies.send

    async def observed(*arguments: Any, **named: Any) -> None:
        try:
            await send_body(*arguments, **named)
        finally:
            ended.set()

    monkeypatch.setattr(Bodies, "send", observed)
    async with running_server() as server:
        upload = await server.manager.create(Metadata(name="silent"))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.http.rpartition(":")[2]))
        # At once: the second one waits for the end of the first.
        writer.write(f"GET /r/{upload.id}?follow HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 2)
        await reader.readuntil(b"\r\n\r\n")
        assert not ended.is_set()
        writer.transport.abort()
        await ended.wait()


async def test_reader_that_stops_holds_nothing_up(server: Running) -> None:
    data = bytes(1024 * 1024)
    async with growing(server) as upload:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.http.rpartition(":")[2]))
        writer.write(f"GET /r/{upload.id}?follow HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        # Far more than it takes, and all of it arrives elsewhere.
        for _ in range(20):
            await upload.write(data)
        assert len((await get(server, f"/r/{upload.id}")).content) == 20 * len(data)
        writer.transport.abort()


async def test_closing_server_cuts_followers_off() -> None:
    async with running_server() as server, growing(server, b"so far") as upload, browser(server) as client:

        async def follow() -> None:
            async with client.stream("GET", f"/r/{upload.id}?follow") as response:
                pieces = response.aiter_raw()
                assert await anext(pieces) == b"so far"
                await asyncio.gather(anext(pieces), server.transport.close(5.0))

        with pytest.raises(httpx.RemoteProtocolError):
            await follow()


@pytest.mark.parametrize(
    ("query", "requests"),
    [("", 1), ("?follow", 1), ("", 2), ("?follow", 2)],
    ids=["read", "follow", "reads", "follows"],
)
async def test_closing_server_cuts_readers_that_do_not_read(query: str, requests: int) -> None:
    piece, pieces = bytes(1024 * 1024), 16
    async with running_server() as server, growing(server) as upload:
        for _ in range(pieces):
            await upload.write(piece)
        if not query:
            await upload.finish()
        # It takes no more than a little, and the system as much as it likes, which is less than there is.
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.http.rpartition(":")[2]), limit=1024)
        writer.write(f"GET /r/{upload.id}{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * requests)
        await reader.readuntil(b"\r\n\r\n")
        await server.transport.close(0.1)
        received = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(len(piece)):
                received += len(data)
        assert received < pieces * len(piece)
        writer.close()


# What is not there


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"/r/{UNKNOWN}", "not_found"),
        ("/r/abc", "invalid_reference"),
        ("/r/%00%0a", "invalid_reference"),
        ("/r/..%2f..%2fetc%2fpasswd", "not_found"),
        (f"/r/{UNKNOWN}/", "not_found"),
        ("/r/", "not_found"),
        ("/", "not_found"),
        ("/v1/connect", "not_found"),
        ("/%f0%28%8c%28", "not_found"),
    ],
)
async def test_what_is_not_there(server: Running, path: str, code: str) -> None:
    for method in ("GET", "HEAD"):
        response = await get(server, path, method)
        if method == "GET":
            is_error(response, 404, code)
        assert response.status_code == 404
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_reading_is_all_there_is(server: Running, method: str) -> None:
    resource = await server.upload(DATA)
    response = await get(server, f"/r/{resource}", method)
    is_error(response, 405, "unsupported")
    assert response.headers["allow"] == "GET, HEAD"
    assert "access-control-allow-origin" not in response.headers


async def test_prefix_of_the_public_base_is_part_of_the_path() -> None:
    async with running_server(public_base="ws://example.org/tail") as server:
        resource = await server.upload(DATA)
        assert server.http.endswith("/tail")
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{server.http}/r/{resource}")).content == DATA
            assert (await client.get(f"{server.http.removesuffix('/tail')}/r/{resource}")).status_code == 404


# Uploads are not trusted


async def test_uploaded_page_cannot_run_in_the_origin_of_the_server(server: Running) -> None:
    resource = await server.upload(b"<script>1</script>", name="page.html", content_type="text/html")
    headers = (await get(server, f"/r/{resource}")).headers
    assert headers["content-type"] == "text/html"
    assert "sandbox" in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "allow-scripts" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("name", "fallback", "extended"),
    [
        ("log.txt", "log.txt", "log.txt"),
        ('a"b\\c/d', "a_b_c_d", "a%22b%5Cc%2Fd"),
        ("naïve €.txt", "na_ve _.txt", "na%C3%AFve%20%E2%82%AC.txt"),
        ("100%.txt", "100_.txt", "100%25.txt"),
        ("x; filename=evil", "x; filename=evil", "x%3B%20filename%3Devil"),
    ],
)
async def test_file_name_is_quoted(server: Running, name: str, fallback: str, extended: str) -> None:
    resource = await server.upload(b"", name=name)
    disposition = (await get(server, f"/r/{resource}")).headers["content-disposition"]
    assert disposition == f"inline; filename=\"{fallback}\"; filename*=UTF-8''{extended}"


async def test_error_repeats_nothing_unescaped(server: Running) -> None:
    response = await get(server, "/r/%1b%5b31m%c3%bc")
    assert response.content.isascii()
    assert b"\x1b" not in response.content
    assert json.loads(response.content)["details"] == {"reference": "\x1b[31mü"}
