"""Queries: results stream as they are produced, over every transport and over plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
import record_sources
from cells import SQLITE_RECORD_CELLS, WEBSOCKET_RECORD_CELLS, RecordCell, Transport
from manifest import proves
from record_databases import RecordDatabase, contact, eventually
from server_process import DEADLINE
from servers import LocalServer, NewServer
from soak import SOAK

from tailrace_common_api import ConnectionLost, GoingAway, InvalidArgument, QueryFailed, RecordEndNotFound
from tailrace_impl_common import ConnectedClient


@pytest.fixture(autouse=True)
def nothing_was_made() -> None:
    record_sources.made.clear()
    record_sources.ended.clear()


async def values(client: ConnectedClient, source: str, **arguments: Any) -> list[Any]:
    """Return all results of a query, parsed."""
    return [record.json() async for record in client.query(source, **arguments)]


async def has_ended() -> int:
    return len(record_sources.ended)


@proves("REC-6")
async def test_a_query_of_a_database_gives_its_rows(
    record_client: ConnectedClient, record_database: RecordDatabase
) -> None:
    async with record_client.bulk("contacts") as bulk:
        await bulk.send_all([contact(number) for number in range(30)])
    expected = sorted((contact(number) for number in range(30)), key=lambda value: str(value["email"]))
    assert await values(record_client, "contacts") == expected
    assert await values(record_client, "numbers") == [{"n": n} for n in range(1, 11)]
    assert await values(record_client, "numbers", count=3) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert await values(record_client, "numbers", count=0) == []


@proves("REC-6")
async def test_a_long_result_comes_whole_and_in_order(record_client: ConnectedClient) -> None:
    count = 10_000_000 if SOAK else 100_000
    expected = 0
    async with record_client.query("numbers", count=count) as results:
        assert results.content_type == "application/json"
        async with aclosing(results.batches()) as batches:
            async for batch in batches:
                for record in batch:
                    expected += 1
                    assert record.data == b'{"n":%d}' % expected
    assert expected == count


@proves("REC-6")
async def test_the_first_record_arrives_before_the_source_made_its_hundredth(record_client: ConnectedClient) -> None:
    async with record_client.query("ticks", count=1_000_000, pause=0.05) as results:
        async for record in results:
            assert record.json() == {"tick": 0}
            assert len(record_sources.made) < 100
            break
    await eventually(has_ended, 1)


@proves("REC-6")
async def test_a_record_does_not_wait_for_the_next(record_client: ConnectedClient) -> None:
    async with record_client.query("ticks", count=3, pause=3600.0) as results:
        async for record in results:
            assert record.json() == {"tick": 0}
            assert record_sources.made == [0]
            break
    # The source was waiting, and is ended all the same.
    await eventually(has_ended, 1)


@proves("REC-6")
@pytest.mark.parametrize("count", [1, 6, 5000])
async def test_records_before_a_silence_arrive(record_client: ConnectedClient, count: int) -> None:
    got = []
    async for record in record_client.query("burst", count=count):
        got.append(record.json()["tick"])
        if len(got) == count:
            break
    assert got == list(range(count))
    await eventually(has_ended, 1)


@proves("REC-6")
@pytest.mark.record_cells(SQLITE_RECORD_CELLS)
async def test_rows_before_a_silence_arrive(new_record_server: NewServer, record_cell: RecordCell) -> None:
    statement = (
        "WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto WHERE n < 3000), "
        "forever (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM forever) "
        "SELECT n FROM upto UNION ALL SELECT count(*) FROM forever"
    )
    server = await new_record_server(ends={"sources": {"silent": {"sql": statement}}})
    got = []
    async for record in server.connect(record_cell.transport).query("silent"):
        got.append(record.json()["n"])
        # Python's module for SQLite gives a row away when it has found the next.
        if len(got) == 2999:
            break
    assert got == list(range(1, 3000))


@proves("REC-6")
async def test_a_reader_that_leaves_the_loop_ends_the_source(record_client: ConnectedClient) -> None:
    async for record in record_client.query("ticks", count=10_000_000):
        if record.json()["tick"] == 1000:
            break
    await eventually(has_ended, 1)
    assert record_sources.ended[0] < 10_000_000 - 1


@proves("REC-6")
async def test_a_slow_reader_slows_the_source(
    record_server: LocalServer, record_cell: RecordCell, record_database: RecordDatabase
) -> None:
    client = record_server.connect(record_cell.transport, download_window=64 * 1024)
    async with client.query("ticks", count=10_000_000) as results:
        async for _ in results:
            break
        else:
            pytest.fail("there was nothing")
    await eventually(has_ended, 1)
    record_sources.made.clear()
    record_sources.ended.clear()
    stream = client.query("ticks", count=10_000_000)
    async with stream:
        batches = stream.batches()
        await anext(batches)
        made = -1
        # Whatever is on its way is bounded: the source stands still, and goes on when more is taken.
        while made != len(record_sources.made):
            made = len(record_sources.made)
            await asyncio.sleep(0.3)
        assert made < 1_000_000
        for _ in range(2000):
            if len(record_sources.made) > made:
                break
            await anext(batches)
        assert len(record_sources.made) > made
        await batches.aclose()
    await eventually(has_ended, 1)


@proves("REC-6")
async def test_a_source_that_fails_is_told_behind_what_it_gave(
    record_client: ConnectedClient, caplog: pytest.LogCaptureFixture
) -> None:
    got = []

    async def read() -> None:
        async for record in record_client.query("failing", after=5):
            got.append(record.json()["number"])  # noqa: PERF401  # what came before the error counts

    with pytest.raises(QueryFailed) as caught:
        await read()
    assert got == [0, 1, 2, 3, 4]
    assert "secret" not in str(caught.value)
    # What it was stands in the log of the server.
    assert any("secret" in str(record.exc_info) for record in caplog.records if record.exc_info)
    caplog.clear()


@proves("REC-6")
async def test_most_results_are_cut_by_the_server(record_client: ConnectedClient) -> None:
    assert len(await values(record_client, "numbers", count=1000, max_results=7)) == 7
    assert len(await values(record_client, "ticks", count=1000, max_results=5)) == 5
    assert await values(record_client, "ticks", count=1000, max_results=0) == []
    assert len(await values(record_client, "ticks", count=4, max_results=5)) == 4


@proves("REC-6")
@pytest.mark.parametrize(
    "arguments", [{"count": "many"}, {"unknown": 1}, {"max_results": -1}, {"count": 1.5}, {"count": True}]
)
async def test_bad_arguments_are_refused_before_anything_runs(
    record_client: ConnectedClient, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await values(record_client, "ticks", **arguments)
    assert next(iter(arguments)) in str(caught.value)
    assert record_sources.made == []
    with pytest.raises(RecordEndNotFound):
        await values(record_client, "nowhere")


@proves("REC-6")
async def test_queries_run_beside_one_another(record_client: ConnectedClient) -> None:
    async def one(count: int) -> None:
        assert len(await values(record_client, "numbers", count=count)) == count

    await asyncio.gather(*(one(100 * n) for n in range(1, 20)))


@proves("REC-6")
async def test_a_running_query_is_told_that_the_server_goes(
    new_record_server: NewServer, record_cell: RecordCell
) -> None:
    server = await new_record_server()
    client = server.connect(record_cell.transport, reconnect_timeout=0.0)
    async with client.query("ticks", count=2, pause=3600.0) as results:
        batches = results.batches()
        await anext(batches)
        if record_cell.wired:
            await server.stop_transports(0.0)
            with pytest.raises((GoingAway, ConnectionLost)):
                await anext(batches)
        await batches.aclose()
    await eventually(has_ended, 1)


# Over plain HTTP


def door(server: LocalServer) -> str:
    return server.url(Transport.WEBSOCKET, "http")


@proves("REC-7")
@pytest.mark.record_cells(WEBSOCKET_RECORD_CELLS)
async def test_results_come_as_lines_of_json(record_server: LocalServer) -> None:
    async with httpx.AsyncClient(timeout=DEADLINE) as http:
        answer = await http.get(f"{door(record_server)}/query/numbers", params={"count": 1000, "max_results": 700})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert answer.text.endswith("\n")
        assert [json.loads(line) for line in answer.text.splitlines()] == [{"n": n} for n in range(1, 701)]
        for path, status, code in (
            ("/query/nowhere", 404, "record_end_not_found"),
            ("/query/numbers?count=x", 400, "invalid_argument"),
            ("/query/numbers?more=1", 400, "invalid_argument"),
        ):
            answer = await http.get(door(record_server) + path)
            assert (answer.status_code, answer.json()["code"]) == (status, code)


@proves("REC-7")
@pytest.mark.record_cells(WEBSOCKET_RECORD_CELLS)
async def test_the_first_line_is_there_before_the_last_record(record_server: LocalServer) -> None:
    url = f"{door(record_server)}/query/ticks?count=2&pause=3600"
    async with httpx.AsyncClient(timeout=DEADLINE) as http, http.stream("GET", url) as answer:
        lines: AsyncGenerator[str, None] = answer.aiter_lines()  # type: ignore[assignment]  # httpx promises an iterator
        assert json.loads(await anext(lines)) == {"tick": 0}
        assert record_sources.made == [0]
    # Leaving ended it.
    await eventually(has_ended, 1)


@proves("REC-7")
@pytest.mark.record_cells(WEBSOCKET_RECORD_CELLS)
async def test_lines_before_a_silence_arrive(record_server: LocalServer) -> None:
    url = f"{door(record_server)}/query/burst?count=5000"
    async with httpx.AsyncClient(timeout=DEADLINE) as http, http.stream("GET", url) as answer:
        lines: AsyncGenerator[str, None] = answer.aiter_lines()  # type: ignore[assignment]  # httpx promises an iterator
        assert [json.loads(await anext(lines)) for _ in range(5000)] == [{"tick": number} for number in range(5000)]
    await eventually(has_ended, 1)


@proves("REC-7")
@pytest.mark.record_cells(WEBSOCKET_RECORD_CELLS)
async def test_an_answer_that_fails_half_way_does_not_look_whole(
    record_server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def read() -> list[str]:
        async with (
            httpx.AsyncClient(timeout=DEADLINE) as http,
            http.stream("GET", f"{door(record_server)}/query/failing") as answer,
        ):
            return [line async for line in answer.aiter_lines()]

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    caplog.clear()
