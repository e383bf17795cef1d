"""Results over plain HTTP, as curl and programs that read lines see them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from impl_websocket_ends import giving, source
from impl_websocket_server import Running, running_server
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Scope

from tailrace_common_api import Argument, Overloaded, QueryFailed, RecordBatch, error_from_wire
from tailrace_impl_server import TokenFile, create_manager
from tailrace_impl_websocket import create_application
from tailrace_server_api import Operation

Batches = AsyncGenerator[RecordBatch, None]


@asynccontextmanager
async def client_of(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, trust_env=False, timeout=None) as client:
        yield client


async def ask(server: Running, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with client_of(server) as client:
        return await client.request(method, path, headers=headers)


def is_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert error_from_wire(**response.json()).code == code


async def squares(arguments: Mapping[str, Argument]) -> Batches:
    count = arguments["count"]
    assert isinstance(count, int)
    for number in range(count):
        yield RecordBatch([json.dumps({"n": number, "square": number * number}).encode()], [f"k{number}"])


async def test_each_record_is_a_line() -> None:
    async with running_server(records=source(squares, count=int)) as server:
        response = await ask(server, "/query/numbers?count=1000")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "content-length" not in response.headers
        lines = response.content.split(b"\n")
        assert lines.pop() == b""
        assert [json.loads(line) for line in lines] == [{"n": n, "square": n * n} for n in range(1000)]


async def test_server_cuts_the_results_where_it_was_asked_to() -> None:
    async with running_server(records=source(squares, count=int)) as server:
        response = await ask(server, "/query/numbers?count=1000000&max_results=3")
        assert len(response.content.splitlines()) == 3
        assert (await ask(server, "/query/numbers?count=0")).content == b""


async def test_record_is_sent_before_the_next_one_exists() -> None:
    taken = asyncio.Semaphore(0)

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        for number in range(3):
            yield RecordBatch([b"%d" % number])
            await taken.acquire()

    async with running_server(records=source(produce)) as server, client_of(server) as client:
        async with client.stream("GET", "/query/numbers") as response:
            received = []
            async for line in response.aiter_lines():
                received.append(line)
                taken.release()
        assert received == ["0", "1", "2"]


async def test_records_before_a_silence_are_sent() -> None:
    ended = asyncio.Event()

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        try:
            for number in range(1000):
                yield RecordBatch([b"%d" % number])
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running_server(records=source(produce)) as server, client_of(server) as client:
        async with client.stream("GET", "/query/numbers") as response:
            lines = response.aiter_lines()
            assert [await anext(lines) for _ in range(1000)] == [str(number) for number in range(1000)]
            assert not ended.is_set()
        await ended.wait()


async def test_arguments_arrive_as_what_they_are() -> None:
    seen: list[Mapping[str, Argument]] = []

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        seen.append(arguments)
        yield RecordBatch([b"{}"])

    ends = source(produce, text=str, whole=int, part=float, flag=bool, optional=str)
    async with running_server(records=ends) as server:
        response = await ask(server, "/query/numbers?text=a%20b%2Bc+%C3%BC&whole=-7&part=0.5&flag=true")
        assert response.status_code == 200
        assert (await ask(server, "/query/numbers?text=&whole=1&part=1&flag=false&optional=x")).status_code == 200
    assert [dict(each) for each in seen] == [
        {"text": "a b+c ü", "whole": -7, "part": 0.5, "flag": True},
        {"text": "", "whole": 1, "part": 1.0, "flag": False, "optional": "x"},
    ]


# One record, one line


async def test_json_of_several_lines_becomes_one() -> None:
    value = {"text": "a\nb\r\n", "list": [1, 2.50], "ü": None}
    pretty = json.dumps(value, indent=2).encode()
    records = [pretty, b'{"plain":1}', pretty.replace(b"\n", b"\r\n") + b"\n", pretty.replace(b"\n", b"\r")]
    async with running_server(records=giving(*records)) as server:
        content = (await ask(server, "/query/numbers")).content
    assert content.count(b"\n") == 4
    assert b"\r" not in content
    assert [json.loads(line) for line in content.splitlines()] == [value, {"plain": 1}, value, value]
    # Not parsed on the way: numbers stay as they were written.
    assert content.count(b"2.5") == 3


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/vnd.contact+json"])
async def test_every_kind_of_json_is_json(content_type: str) -> None:
    async with running_server(records=giving(b"{}", content_type=content_type)) as server:
        response = await ask(server, "/query/numbers")
        assert (response.headers["content-type"], response.content) == ("application/x-ndjson", b"{}\n")


async def test_text_comes_in_lines() -> None:
    async with running_server(records=giving(b"one", b"", "drei ü".encode(), content_type="text/html")) as server:
        response = await ask(server, "/query/numbers")
        # A source is no more trusted than an upload: nothing of it runs in a browser.
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.content == "one\n\ndrei ü\n".encode()


@pytest.mark.parametrize("record", [b"two\nlines", b"two\rlines", b"line\n"])
async def test_text_that_is_no_line_is_an_error(record: bytes) -> None:
    async with running_server(records=giving(record, content_type="text/plain")) as server:
        is_error(await ask(server, "/query/numbers"), 500, "query_failed")


async def test_empty_record_is_no_json() -> None:
    async with running_server(records=giving(b"", b"{}")) as server:
        is_error(await ask(server, "/query/numbers"), 500, "query_failed")


@pytest.mark.parametrize(
    "content_type", ["application/x-protobuf", "application/jsonx", "application/octet-stream", "image/png"]
)
async def test_records_that_are_no_lines_are_refused(content_type: str) -> None:
    async with running_server(records=giving(b"\x00", content_type=content_type)) as server:
        response = await ask(server, "/query/numbers")
        is_error(response, 400, "unsupported")
        assert content_type in response.json()["message"]


# Errors before the first record


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/query/others", 404, "record_end_not_found"),
        ("/query/%f0%28", 404, "record_end_not_found"),
        ("/query/", 404, "not_found"),
        ("/query/numbers/", 404, "not_found"),
        ("/query/numbers", 400, "invalid_argument"),
        ("/query/numbers?count=many", 400, "invalid_argument"),
        ("/query/numbers?count=1&colour=red", 400, "invalid_argument"),
        ("/query/numbers?count=1&count=1", 400, "invalid_argument"),
        ("/query/numbers?count=1&=2", 400, "invalid_argument"),
        ("/query/numbers?count=1&a%20b=2", 400, "invalid_argument"),
        ("/query/numbers?count=%ff", 400, "invalid_argument"),
        ("/query/numbers?count=1&max_results=-1", 400, "invalid_argument"),
        ("/query/numbers?" + "&".join(f"x{n}=1" for n in range(65)), 400, "invalid_argument"),
    ],
)
async def test_what_cannot_be_asked(path: str, status: int, code: str) -> None:
    async with running_server(records=source(squares, count=int)) as server:
        is_error(await ask(server, path), status, code)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
async def test_asking_is_all_there_is(method: str) -> None:
    async with running_server(records=source(squares, count=int)) as server:
        response = await ask(server, "/query/numbers?count=1", method)
        assert (response.status_code, response.headers["allow"]) == (405, "GET")
        if method != "HEAD":
            is_error(response, 405, "unsupported")


async def test_source_that_fails_before_its_first_record_gives_an_error() -> None:
    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        if not arguments:
            raise QueryFailed("the database is away")
        yield RecordBatch([b"{}"])

    async with running_server(records=source(produce)) as server:
        response = await ask(server, "/query/numbers")
        is_error(response, 500, "query_failed")
        assert "the database is away" in response.json()["message"]


@pytest.mark.usefixtures("errors_are_logged")
async def test_defect_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server(records=giving(b"{}")) as server:

        async def query(*arguments: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(type(server.manager.records), "query", query)
        is_error(await ask(server, "/query/numbers"), 500, "internal")


# Ends


async def read_until_cut(client: httpx.AsyncClient, path: str) -> list[str]:
    """Return the lines of a response that is cut off."""
    lines: list[str] = []

    async def read() -> None:
        async with client.stream("GET", path) as response:
            assert response.status_code == 200
            # One by one: those before the cut are to be seen.
            async for line in response.aiter_lines():
                lines.append(line)  # noqa: PERF401

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    return lines


async def test_source_that_fails_later_cuts_the_response_off() -> None:
    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        yield RecordBatch([b"1"])
        yield RecordBatch([b"2"])
        raise QueryFailed("the database is away")

    async with running_server(records=source(produce)) as server, client_of(server) as client:
        # Nothing but records is in the lines.
        assert await read_until_cut(client, "/query/numbers") in (["1"], ["1", "2"])


@pytest.mark.usefixtures("errors_are_logged")
async def test_any_server_cuts_the_response_off() -> None:
    """Without the extension of this package's own server, the application fails, and the server notices."""

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        yield RecordBatch([b"1"])
        raise QueryFailed("the database is away")

    async with create_manager(None, {}, records=source(produce)) as managed:
        application = create_application(managed.manager, base="http://example.org")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://x") as client:
            with pytest.raises(Exception, match="the database is away"):
                await client.get("/query/numbers")


async def test_reader_that_leaves_ends_the_query() -> None:
    ended = asyncio.Event()

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        try:
            yield RecordBatch([b"1"])
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async with running_server(records=source(produce)) as server, client_of(server) as client:
        async with client.stream("GET", "/query/numbers") as response:
            assert await anext(response.aiter_lines()) == "1"
            assert not ended.is_set()
        await ended.wait()


async def test_reader_that_leaves_before_the_first_record_ends_the_query() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
            yield RecordBatch([b"1"])
        finally:
            ended.set()

    async with running_server(records=source(produce)) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", int(server.http.rpartition(":")[2]))
        writer.write(b"GET /query/numbers HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        writer.transport.abort()
        await ended.wait()


async def test_reader_that_stops_stops_the_source() -> None:
    produced = 0
    large = json.dumps("x" * 100_000).encode()

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        nonlocal produced
        for _ in range(10_000):
            produced += 1
            yield RecordBatch([large])

    async with create_manager(None, {}, records=source(produce)) as managed:
        application = create_application(managed.manager, base="http://example.org")
        sent: list[bytes] = []
        stopped = asyncio.Event()
        gone = asyncio.get_running_loop().create_future()
        requested: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            return requested.pop() if requested else await gone

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                sent.append(message["body"])
                if len(sent) == 5:
                    stopped.set()
                    await asyncio.get_running_loop().create_future()

        scope: Scope = {
            "type": "http",
            "method": "GET",
            "path": "/query/numbers",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"example.org")],
        }
        answering = asyncio.create_task(application(scope, receive, send))
        await stopped.wait()
        # Whatever could go on without the reader has had its turn by then.
        for _ in range(500):
            await asyncio.sleep(0)
        taken = sum(piece.count(b"\n") for piece in sent)
        assert taken >= 5
        # What was taken, what waits in the next message, and the one that found no room there.
        assert produced <= taken + 4
        gone.set_result({"type": "http.disconnect"})
        await answering


async def test_closing_server_cuts_queries_off() -> None:
    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        yield RecordBatch([b"1"])
        await asyncio.get_running_loop().create_future()

    async with running_server(records=source(produce)) as server, client_of(server) as client:

        async def read() -> None:
            async with client.stream("GET", "/query/numbers") as response:
                lines = response.aiter_lines()
                assert await anext(lines) == "1"
                await asyncio.gather(anext(lines), server.transport.close(5.0))

        with pytest.raises(httpx.RemoteProtocolError):
            await read()


async def test_closing_server_says_so_before_the_first_record() -> None:
    begun = asyncio.Event()

    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        begun.set()
        await asyncio.get_running_loop().create_future()
        yield RecordBatch([b"1"])

    async with running_server(records=source(produce)) as server:
        asking = asyncio.create_task(ask(server, "/query/numbers"))
        await begun.wait()
        await server.transport.close(5.0)
        response = await asking
        is_error(response, 503, "going_away")
        assert int(response.headers["retry-after"]) >= 1


# Who may ask


async def test_queries_count_among_the_requests_of_the_server() -> None:
    async def produce(arguments: Mapping[str, Argument]) -> Batches:
        yield RecordBatch([b"1"])
        await asyncio.get_running_loop().create_future()

    async with (
        running_server(records=source(produce), max_connections=1) as server,
        client_of(server) as client,
        client.stream("GET", "/query/numbers") as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "1"
        for path in ("/query/numbers", f"/r/{'0' * 32}"):
            refused = await ask(server, path)
            is_error(refused, 503, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1


async def test_server_that_is_too_busy_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server(records=giving(b"{}")) as server:

        def admit(self: object) -> None:
            raise Overloaded(what="requests", retry_after=1.0)

        monkeypatch.setattr(type(server.manager), "admit", admit)
        is_error(await ask(server, "/query/numbers"), 503, "overloaded")


async def test_pages_of_other_origins_are_refused() -> None:
    page, other = "https://app.example", "https://evil.example"
    async with running_server({"origins": page}, records=giving(b"{}")) as server:
        response = await ask(server, "/query/numbers", Origin=page)
        assert (response.text, response.headers["access-control-allow-origin"]) == ("{}\n", page)
        is_error(await ask(server, "/query/numbers", Origin=other), 403, "permission_denied")


async def test_only_who_may_use_records_gets_any(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    others = [operation for operation in Operation if operation is not Operation.RECORDS]

    def add() -> tuple[str, str, str]:
        tenant = file.add("tenant", [Operation.RECORDS], context="0pgcc09k4q89u71bf92d1q2jcaov0v2q")
        return file.add("reader", [Operation.RECORDS]), file.add("other", others), tenant

    reader, other, tenant = await asyncio.to_thread(add)
    async with running_server(records=giving(b"{}"), manager_options={"tokens": str(file.path)}) as server:
        assert (await ask(server, "/query/numbers", Authorization=f"Bearer {reader}")).text == "{}\n"
        for token, refused in ((other, 403), (tenant, 404), ("unknown", 401), (None, 401)):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            # Nobody learns in this way which sources there are.
            for name in ("numbers", "nowhere"):
                answer = await ask(server, f"/query/{name}", **headers)
                assert answer.status_code == refused, name
                assert answer.json()["code"] in ("permission_denied", "not_found", "unauthenticated")


async def test_queries_are_counted_with_what_they_send() -> None:
    async with running_server(records=giving(b"{}", b"{}")) as server:
        await ask(server, "/query/numbers")
        await ask(server, "/query/others")
        exposition = (await ask(server, "/metrics")).text
    samples = [
        (sample.name, sample.value)
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if "Query" in sample.labels.values() and sample.labels.get("transport") == "http"
    ]
    assert sum(value for name, value in samples if name.endswith("requests_total")) == 2
