"""Record streams against a real server, each row with what it is to be compared with.

    python benchmarks/records.py bulk [--records 1000000] [--rounds 3]
    python benchmarks/records.py query [--records 10000000]
    python benchmarks/records.py work [--records 20000]
    python benchmarks/records.py credit [--seconds 10]

Each proves what arrived and prints one JSON object per row. PostgreSQL is started for the purpose and syncs its
commits; SQLite does so where the server's durability is `fsync`, which is what is set here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
from server import ServerProcess, Usage, usage_of

import tailrace
from tailrace_impl_common import ConnectedClient

sys.path.insert(0, str(Path(__file__).parents[1] / "integration-tests"))
from postgres_server import PostgresServer

TRANSPORTS = ("grpc", "ws")
DATABASES = ("sqlite", "postgresql")
Figures = dict[str, Any]
MEBIBYTE = 1 << 20
SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "name": {"type": "string"}, "note": {"type": "string"}},
    "required": ["id", "name"],
    "additionalProperties": False,
}
TABLE = "CREATE TABLE {name} (id BIGINT PRIMARY KEY, name TEXT NOT NULL, note TEXT)"


def record(number: int) -> bytes:
    """Return a record of about 100 bytes."""
    return b'{"id":%d,"name":"name %d","note":"%s"}' % (number, number, b"x" * (66 - len(str(number)) * 2))


def percentiles(seconds: list[float]) -> Figures:
    """Return median, 99th percentile and maximum of times, in milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    picked = {"p50": ordered[len(ordered) // 2], "p99": ordered[int(len(ordered) * 0.99)], "max": ordered[-1]}
    return {name: round(value * 1e3, 2) for name, value in picked.items()}


class Bench:
    """One database, and a server with ends on it."""

    def __init__(self, database: str, folder: Path, postgres: PostgresServer) -> None:
        """Make the tables and the settings; nothing runs yet."""
        self.database = database
        self._folder = folder / database
        self._folder.mkdir()
        self.path = self._folder / "bench.sqlite"
        self.url = f"sqlite:{self.path}" if database == "sqlite" else postgres.create_database()
        numbers = (
            "WITH RECURSIVE upto (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM upto WHERE n < :count) SELECT n FROM upto"
            if database == "sqlite"
            else "SELECT generate_series(1, :count) AS n"
        )
        schema = self._folder / "schema.json"
        schema.write_text(json.dumps(SCHEMA))
        self.config = self._folder / "tailrace.toml"
        self.config.write_text(
            f"""
[storage]
durability = "fsync"
max_bulk_records = 100000000
[databases.bench]
url = "{self.url}"
[collections.people]
database = "bench"
table = "people"
columns = ["id", "name", "note"]
schema = "{schema}"
[sources.numbers]
database = "bench"
sql = "{numbers}"
parameters = {{ count = "integer" }}
[queues.tasks]
database = "bench"
[queues.grpc]
database = "bench"
[queues.ws]
database = "bench"
"""
        )

    async def make_tables(self) -> None:
        """Make the tables of the comparison."""
        for name in ("people", "plain"):
            await self.execute(TABLE.format(name=name))

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own."""
        if self.database == "sqlite":
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as file:
                file.execute("PRAGMA journal_mode = WAL")
                return file.execute(statement).fetchall()
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    @contextmanager
    def server(self, log: Path | None = None) -> Iterator[ServerProcess]:
        """Run the server; what it says goes to a file, or to standard error."""
        with ServerProcess(self._folder / "data", config=self.config, log=log) as server:
            yield server

    async def plain(self, count: int) -> float:
        """Load records as a program does that has the database to itself; return the seconds."""
        rows = [(number, f"name {number}", "x" * 60) for number in range(count)]
        begin = time.perf_counter()
        if self.database == "sqlite":
            await asyncio.to_thread(self._plain_insert, rows)
        else:
            connection = await asyncpg.connect(self.url)
            try:
                await connection.copy_records_to_table("plain", records=rows, columns=["id", "name", "note"])
            finally:
                await connection.close()
        seconds = time.perf_counter() - begin
        await self.execute("DELETE FROM plain")
        return seconds

    def _plain_insert(self, rows: list[tuple[int, str, str]]) -> None:
        with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as file:
            file.execute("PRAGMA synchronous = FULL")
            file.execute("BEGIN IMMEDIATE")
            file.executemany("INSERT INTO plain VALUES (?, ?, ?)", rows)
            file.execute("COMMIT")


async def bulk(client: ConnectedClient, count: int) -> tuple[float, float]:
    """Send records in one bulk; return when it began and when its commit did."""
    begin = time.perf_counter()
    async with client.bulk("people") as stream:
        for number in range(count):
            await stream.send(record(number))
        committing = time.perf_counter()
    assert stream.result is not None
    assert stream.result.records == count
    return begin, committing


@asynccontextmanager
async def one_call_per_record(bench: Bench) -> AsyncIterator[str]:
    """Run a unary service that inserts one record a call, each call a transaction of its own; yield its address."""
    pool = None if bench.database == "sqlite" else await asyncpg.create_pool(bench.url, min_size=8, max_size=8)
    file = sqlite3.connect(bench.path, isolation_level=None) if pool is None else None
    if file is not None:
        file.execute("PRAGMA synchronous = FULL")

    async def insert(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        value = json.loads(request)
        row = (value["id"], value["name"], value.get("note"))
        if pool is not None:
            await pool.execute("INSERT INTO plain VALUES ($1, $2, $3)", *row)
        elif file is not None:
            file.execute("INSERT INTO plain VALUES (?, ?, ?)", row)
        return b""

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Insert": grpc.unary_unary_rpc_method_handler(insert)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.People", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
        if pool is not None:
            await pool.close()
        if file is not None:
            file.close()
        await bench.execute("DELETE FROM plain")


async def call_per_record(address: str, count: int, concurrency: int) -> float:
    """Send records in calls of their own, so many at a time; return the seconds."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bench.People/Insert")
        numbers = iter(range(count))

        async def caller() -> None:
            for number in numbers:
                await call(record(number))

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(concurrency)))
        return time.perf_counter() - begin


class Neighbours:
    """What others do on the same server meanwhile: listings, a queue of one record, a live upload and its follower.

    They run in a process of their own, so that they wait for the server and not for the one who sends the bulk.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.times: dict[str, list[tuple[float, float]]] = {"catalog": [], "queue": [], "live_upload": []}
        """When each began, and how long it took."""

    async def run(self) -> None:
        """Go on until cancelled."""
        async with tailrace.connect(self._url) as client:
            await asyncio.gather(self._list(client), self._queue(client), self._upload(client))

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Run in a process of its own while the block does; the times are there behind it."""
        command = (sys.executable, __file__, "neighbours", "--url", self._url)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**26)
        assert process.stdout is not None
        await process.stdout.readline()
        try:
            yield
        finally:
            said, _ = await process.communicate(b"")
        self.times = json.loads(said)

    def between(self, begin: float, end: float) -> Figures:
        """Return the percentiles of what ran within a span of time."""
        return {
            name: percentiles([seconds for at, seconds in times if at + seconds >= begin and at <= end])
            for name, times in self.times.items()
        }

    async def _list(self, client: ConnectedClient) -> None:
        while True:
            begin = time.perf_counter()
            await client.list_page(limit=10)
            self.times["catalog"].append((begin, time.perf_counter() - begin))
            await asyncio.sleep(0.02)

    async def _queue(self, client: ConnectedClient) -> None:
        async with client.work("tasks", credit=1) as consumer:
            deliveries = aiter(consumer)
            while True:
                begin = time.perf_counter()
                async with client.bulk("tasks") as feed:
                    await feed.send(b"{}")
                await (await anext(deliveries)).ack()
                self.times["queue"].append((begin, time.perf_counter() - begin))
                await asyncio.sleep(0.02)

    async def _upload(self, client: ConnectedClient) -> None:
        async with (
            client.upload("live.log", lines=True) as upload,
            client.open(upload.reference) as resource,
            aclosing(resource.follow_chunks()) as chunks,
        ):
            while True:
                begin = time.perf_counter()
                await upload.write(b"a line\n")
                await anext(chunks)
                self.times["live_upload"].append((begin, time.perf_counter() - begin))
                await asyncio.sleep(0.02)


async def run_bulk(bench: Bench, arguments: argparse.Namespace) -> None:
    """Bulks beside a plain load of the same database, and beside one call for each record, round by round."""
    count = arguments.records
    rates: dict[str, list[float]] = {}
    neighbours: Figures = {}
    commits: list[float] = []
    with bench.server() as server:
        for _ in range(arguments.rounds):
            rates.setdefault("plain load", []).append(count / await bench.plain(count))
            for transport in TRANSPORTS:
                async with tailrace.connect(server.urls[transport]) as client:
                    others = Neighbours(server.urls[transport])
                    async with others.beside():
                        await asyncio.sleep(1.0)
                        idle = time.perf_counter()
                        begin, committing = await bulk(client, count)
                        end = time.perf_counter()
                    seconds = end - begin
                    commits.append(end - committing)
                    neighbours[transport] = {
                        "before": others.between(idle - 1.0, idle),
                        "while staging": others.between(begin, committing),
                        "while committing": others.between(committing, end),
                    }
                    seen = await bench.execute("SELECT count(*) FROM people")
                    assert seen == [(count,)], seen
                    await bench.execute("DELETE FROM people")
                rates.setdefault(f"bulk, {transport}", []).append(count / seconds)
            single = max(200, count // 500)
            for concurrency in (1, 16):
                async with one_call_per_record(bench) as address:
                    name = f"a call per record, {concurrency} at a time"
                    rates.setdefault(name, []).append(single / await call_per_record(address, single, concurrency))
        usage = server.usage()
    own = usage_of(os.getpid())
    show(
        "bulk",
        bench,
        records=count,
        per_second={name: round(statistics.median(values)) for name, values in rates.items()},
        commit_seconds=round(statistics.median(commits), 2),
        others_ms=neighbours,
        **memory(usage, own),
    )


async def run_query(bench: Bench, arguments: argparse.Namespace) -> None:
    """Streamed results: rate, time to the first record, memory of both sides."""
    for transport in TRANSPORTS:
        with bench.server() as server:
            async with tailrace.connect(server.urls[transport]) as client:
                before = usage_of(os.getpid()).peak
                begin = time.perf_counter()
                first = 0.0
                seen = 0
                results = client.query("numbers", count=arguments.records)
                async with results, aclosing(results.batches()) as batches:
                    async for batch in batches:
                        first = first or time.perf_counter() - begin
                        seen += len(batch)
                seconds = time.perf_counter() - begin
                assert seen == arguments.records
                one_by_one = time.perf_counter()
                async for _ in client.query("numbers", count=arguments.records // 10):
                    pass
                one_by_one = time.perf_counter() - one_by_one
                left = await time_to_leave(bench, client)
            show(
                "query",
                bench,
                transport=transport,
                records=seen,
                per_second={
                    "in batches": round(seen / seconds),
                    "one by one": round(arguments.records // 10 / one_by_one),
                },
                first_record_ms=round(first * 1e3, 2),
                statement_ended_after_leaving_ms=left,
                client_grew_mebibytes=(usage_of(os.getpid()).peak - before) // MEBIBYTE,
                **memory(server.usage(), usage_of(os.getpid())),
            )


async def time_to_leave(bench: Bench, client: ConnectedClient) -> float | None:
    """Return how long a statement runs after its reader has left, in milliseconds; PostgreSQL only."""
    if bench.database == "sqlite":
        return None
    running = "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle' AND query LIKE '%generate_series%' "
    running += "AND pid <> pg_backend_pid() AND datname = current_database()"
    async for _ in client.query("numbers", count=1_000_000_000):
        break
    begin = time.perf_counter()
    while (await bench.execute(running))[0][0]:  # noqa: ASYNC110  # what is counted is the database's
        await asyncio.sleep(0.005)
    return round((time.perf_counter() - begin) * 1e3, 1)


async def run_work(bench: Bench, arguments: argparse.Namespace) -> None:
    """Deliveries by credit; a late consumer; a record of high priority behind very many."""
    for transport in TRANSPORTS:
        with bench.server() as server:
            rates: dict[str, int] = {}
            for credit in (1, 10, 50, 500):
                count = min(arguments.records, 400 * credit)
                rates[f"credit {credit}"] = round(
                    count / await work_through(server.urls[transport], transport, count, credit)
                )
            async with tailrace.connect(server.urls[transport]) as client:
                await feed(client, transport, 100_000)
                late, urgent = [], []
                async with client.work(transport, credit=10) as slow:
                    deliveries = aiter(slow)
                    held = [await anext(deliveries) for _ in range(10)]
                    for _ in range(20):
                        begin = time.perf_counter()
                        async with client.work(transport, credit=1) as joined:
                            await anext(aiter(joined))
                            late.append(time.perf_counter() - begin)
                        async with client.bulk(transport, priority=9) as bulk:
                            await bulk.send(b'{"urgent":true}')
                        begin = time.perf_counter()
                        await held.pop().ack()
                        delivery = await anext(deliveries)
                        urgent.append(time.perf_counter() - begin)
                        assert delivery.json() == {"urgent": True}
                        held.append(delivery)
            show(
                "work",
                bench,
                transport=transport,
                deliveries_per_second=rates,
                late_consumer_has_work_ms=percentiles(late),
                urgent_behind_100000_ms=percentiles(urgent),
                **memory(server.usage(), usage_of(os.getpid())),
            )


async def feed(client: ConnectedClient, queue: str, count: int) -> None:
    """Put so many records into a queue."""
    async with client.bulk(queue) as stream:
        for number in range(count):
            await stream.send(record(number))


async def work_through(
    url: str, queue: str, count: int, credit: int, meter: AbstractContextManager[object] | None = None
) -> float:
    """Work on so many records with one consumer that answers as fast as it can; return the seconds.

    The meter, if there is one, is around the work, and not around what feeds the queue.
    """
    async with tailrace.connect(url) as client:
        await feed(client, queue, count)
        answers: set[asyncio.Task[None]] = set()
        begin = time.perf_counter()
        with meter or nullcontext():
            await _work_on(client, queue, count, credit, answers)
        return time.perf_counter() - begin


async def _work_on(
    client: ConnectedClient, queue: str, count: int, credit: int, answers: set[asyncio.Task[None]]
) -> None:
    async with client.work(queue, credit=credit) as consumer:
        left = count
        async for delivery in consumer:
            task = asyncio.create_task(delivery.ack())
            answers.add(task)
            task.add_done_callback(answers.discard)
            left -= 1
            if not left:
                break
        await asyncio.gather(*answers)


async def run_credit(bench: Bench, arguments: argparse.Namespace) -> None:
    """A consumer of ten records a second: how many more have left the server, with credit and without."""
    shown: Figures = {}
    with bench.server() as server:
        for transport in TRANSPORTS:
            async with tailrace.connect(server.urls[transport]) as client:
                await feed(client, transport, 50_000)
                most = 0
                async with client.work(transport, credit=10) as consumer:
                    deadline = time.perf_counter() + arguments.seconds
                    async for delivery in consumer:
                        await asyncio.sleep(0.1)
                        most = max(most, (await client.queue_figures(transport)).in_flight)
                        await delivery.ack()
                        if time.perf_counter() > deadline:
                            break
                shown[f"credit 10, {transport}"] = most
    shown["HTTP/2 flow control alone"] = await without_credit(arguments.seconds)
    show("credit", bench, most_records_in_flight=shown)


async def without_credit(seconds: float) -> int:
    """Return how many records a plain gRPC stream has let out beyond those that its slow reader has taken."""
    written = 0

    async def hand_out(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        nonlocal written
        while True:
            await context.write(record(written))
            written += 1

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Work": grpc.unary_stream_rpc_method_handler(hand_out)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Work", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    most = taken = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/bench.Work/Work")
        call = method(b"")
        deadline = time.perf_counter() + seconds
        async for _ in call:
            taken += 1
            await asyncio.sleep(0.1)
            most = max(most, written - taken)
            if time.perf_counter() > deadline:
                break
        call.cancel()
    await server.stop(None)
    return most


def memory(server: Usage, client: Usage) -> Figures:
    """Return the largest memory of both sides."""
    return {"peak_mebibytes": {"server": server.peak // MEBIBYTE, "client": client.peak // MEBIBYTE}}


def show(what: str, bench: Bench, **figures: Any) -> None:
    """Print one row."""
    print(json.dumps({"what": what, "database": bench.database, **figures}), flush=True)


RUNS = {"bulk": run_bulk, "query": run_query, "work": run_work, "credit": run_credit}


async def run_neighbours(url: str) -> None:
    """Be the neighbours until standard input ends; then print what was measured."""
    neighbours = Neighbours(url)
    running = asyncio.create_task(neighbours.run())
    print("running", flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    print(json.dumps(neighbours.times), flush=True)


async def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*RUNS, "neighbours"])
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--records", type=int, default=0, help="records of each row; 0 for the row's own number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--database", choices=DATABASES, action="append")
    arguments = parser.parse_args()
    if arguments.what == "neighbours":
        await run_neighbours(arguments.url)
        return
    arguments.records = arguments.records or {"bulk": 1_000_000, "query": 10_000_000}.get(arguments.what, 20_000)
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as folder, PostgresServer() as postgres:
        for database in arguments.database or DATABASES:
            bench = Bench(database, Path(folder), postgres)
            await bench.make_tables()
            await RUNS[arguments.what](bench, arguments)


if __name__ == "__main__":
    asyncio.run(main())
