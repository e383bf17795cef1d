"""Rows of record streams: bulks beside a plain load of the same database, streamed results, deliveries of work."""

from __future__ import annotations

import time
from contextlib import aclosing
from functools import partial

import records
from cases import DATABASES, RECORDS, TITLES, TRANSPORTS, Meter, Run, Sample, case
from postgres_server import PostgresServer
from processes import OURSELVES
from server import ServerProcess

import tailrace

CREDITS = (1, 10, 50, 500)


def _bench(run: Run, database: str) -> tuple[records.Bench, ServerProcess]:
    """Return a database with its tables, and a server on it."""

    def start() -> PostgresServer:
        return run.stack.enter_context(PostgresServer())

    def make() -> tuple[records.Bench, ServerProcess]:
        bench = records.Bench(database, run.scratch, run.keep("records.postgres", start))
        run.wait(bench.make_tables())
        return bench, run.stack.enter_context(bench.server(log=run.scratch / "log"))

    return run.keep(f"records.{database}", make)


def _meter(server: ServerProcess) -> Meter:
    return Meter((server.pid,), OURSELVES)


def _plain(database: str, run: Run) -> Sample:
    bench, _ = _bench(run, database)
    count = run.scale.records
    with Meter((), OURSELVES) as meter:
        seconds = run.wait(bench.plain(count))
    return meter.sample(count / seconds / 1e3, count=count)


def _bulk(database: str, transport: str, run: Run) -> Sample:
    bench, server = _bench(run, database)
    count, meter = run.scale.records, _meter(server)

    async def send() -> float:
        async with tailrace.connect(server.urls[transport]) as client:
            await client.list_page(limit=1)
            with meter:
                _, committing = await records.bulk(client, count)
                ended = time.perf_counter()
        seen = await bench.execute("SELECT count(*), sum(id) FROM people")
        if [tuple(map(int, row)) for row in seen] != [(count, count * (count - 1) // 2)]:
            raise AssertionError(f"{seen} is stored instead of {count} records")
        await bench.execute("DELETE FROM people")
        return ended - committing

    commit = run.wait(send())
    return meter.rate(count, more={"commit_ms": commit * 1e3})


def _query(database: str, transport: str, run: Run) -> Sample:
    _, server = _bench(run, database)
    count, meter = run.scale.results, _meter(server)

    async def read() -> float:
        seen, first = 0, 0.0
        async with tailrace.connect(server.urls[transport]) as client:
            await client.list_page(limit=1)
            begin = time.perf_counter()
            results = client.query("numbers", count=count)
            with meter:
                async with results, aclosing(results.batches()) as batches:
                    async for batch in batches:
                        first = first or time.perf_counter() - begin
                        seen += len(batch)
        if seen != count:
            raise AssertionError(f"{seen} records of {count} came")
        return first

    first = run.wait(read())
    return meter.rate(count, more={"first_record_ms": first * 1e3})


def _work(database: str, transport: str, credit: int, run: Run) -> Sample:
    _, server = _bench(run, database)
    count, meter = min(run.scale.deliveries, 200 * credit), _meter(server)
    run.wait(records.work_through(server.urls[transport], transport, count, credit, meter))
    return meter.rate(count, 1)


for _database, _name in DATABASES.items():
    _tool = "one executemany" if _database == "sqlite" else "one COPY"
    case(
        f"{_database}.plain",
        f"{_name}: {_tool}, without Tailrace",
        group=RECORDS,
        unit="thousand/s",
        slow=True,
    )(partial(_plain, _database))
    for _transport in TRANSPORTS:
        case(
            f"{_database}.bulk.{_transport}",
            f"{_name}: bulk over {TITLES[_transport]}, staged, validated, committed",
            group=RECORDS,
            unit="thousand/s",
            slow=True,
            floor=f"{_database}.plain",
        )(partial(_bulk, _database, _transport))
    for _transport in TRANSPORTS:
        case(
            f"{_database}.query.{_transport}",
            f"{_name}: streamed results over {TITLES[_transport]}",
            group=RECORDS,
            unit="thousand/s",
            slow=True,
        )(partial(_query, _database, _transport))
    for _transport in TRANSPORTS:
        for _credit in CREDITS:
            case(
                f"{_database}.work.{_transport}.{_credit}",
                f"{_name}: work over {TITLES[_transport]}, one consumer, credit {_credit}",
                group=RECORDS,
                unit="deliveries/s",
                slow=True,
            )(partial(_work, _database, _transport, _credit))
