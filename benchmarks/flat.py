"""Whether cost stays flat: what a server does with much, beside the same with little.

    python benchmarks/flat.py start [--counts 1000,100000] [--unfinished 100] [--data DIR] [--rounds 5]
    python benchmarks/flat.py list [--counts 1000,100000] [--data DIR]
    python benchmarks/flat.py lines [--counts 1000,1000000,200000000]
    python benchmarks/flat.py sizes [--sizes 10MiB,1GiB,20GiB]
    python benchmarks/flat.py uploads [--counts 1,8,64] [--sizes 512MiB]
    python benchmarks/flat.py restart [--rounds 5]
    python benchmarks/flat.py reopen [--sizes 1MiB,1GiB,100GiB,1TiB]

Each starts the real server in a process of its own, proves what it got, and prints a table, or rows as JSON. Folders
with many resources are made by the server's own code (`stored_resources.py`); with --data they are kept under DIR for
the next time. Uploads beyond any disk are sparse (`interrupted_uploads.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import workloads
from cases import MEBIBYTE, TRANSPORTS, Meter
from floor import write_seconds
from interrupted_uploads import enlarge
from loops import run_coroutine
from processes import OURSELVES, resident
from server import ServerProcess, keep_byte_code
from stored_resources import RARE, SHARDS, content, make_resources

import tailrace
from tailrace._grpc_core import tune_grpc
from tailrace._malloc import tune_malloc
from tailrace_client_download_api import EVERYTHING
from tailrace_common_api import Checkpoint, ListFilter, ResourceState, Status
from tailrace_impl_common import ConnectedClient, chunk_hash
from tailrace_impl_common.messages import Chunk, Opened, ReopenUpload, ServerMessage

Row = dict[str, Any]

_LINES_AT_ONCE = 100_000
_LOOKUPS = 200
_LOOKED_UP = 10
_OPEN_END = 1000
"""Bytes of the open block of an interrupted upload."""


def server_on(data: Path, scratch: Path) -> ServerProcess:
    """Return a server that is not started, as one that is installed: its byte code is kept from one start to the next.

    Args:
        data: Its folder.
        scratch: Folder for its log and its byte code.
    """
    settings = {
        **keep_byte_code(scratch),
        "TAILRACE_STORAGE_MAX_CONTEXT_RESOURCES": "1000000",
        "TAILRACE_STORAGE_MAX_UPLOADS": "1000000",
        "TAILRACE_STORAGE_MAX_RESOURCE_SIZE": str(1 << 42),
        # What was left unfinished is so in the next round, too.
        "TAILRACE_STORAGE_UPLOAD_GRACE": "1000000",
    }
    return ServerProcess(data, settings=settings, log=scratch / "log")


def quantiles(times: list[float]) -> Row:
    """Return the median and the 99th percentile of seconds, in milliseconds."""
    ordered = sorted(times)
    picked = {"p50_ms": ordered[len(ordered) // 2], "p99_ms": ordered[int(len(ordered) * 0.99)]}
    return {name: round(value * 1e3, 3) for name, value in picked.items()}


# Many resources.


def stored(folder: Path, count: int, unfinished: int) -> Path:
    """Return a server's folder with ``count`` resources below ``folder``; it is made if it is not there."""
    data = folder / f"resources-{count}-{unfinished}"
    whole = data.with_suffix(".whole")
    if not whole.exists():
        make_resources(data, count, unfinished=unfinished)
        whole.touch()
    return data


async def _check_some(url: str, count: int, unfinished: int) -> None:
    """Read resources anywhere in the listing, and compare their bytes and states with what was stored."""
    async with tailrace.connect(url) as client:
        for number in random.sample(range(count), min(count, 20)):
            page = await client.list_page(ListFilter(labels={"number": str(number)}))
            (status,) = page.statuses
            state = ResourceState.COMPLETED if number < count - unfinished else ResourceState.IN_PROGRESS
            if status.state is not state or await client.open(status.reference).read() != content(number):
                raise AssertionError(f"resource {number} is not what was stored")


def start_up(data: Path, scratch: Path, count: int, unfinished: int, rounds: int) -> Row:
    """Start a server on many resources, again and again, from the start of the process until it is ready."""
    server = server_on(data, scratch)
    seconds, processor = [], []
    for number in range(rounds + 1):
        begin = time.perf_counter()
        server.start()
        try:
            if number:  # The first one compiles.
                seconds.append(time.perf_counter() - begin)
                processor.append(server.usage().cpu)
            if number == rounds:
                memory = resident(server.pid)
                run_coroutine(_check_some(server.urls["grpc"], count, unfinished))
        finally:
            server.stop()
    return {
        "resources": count,
        "unfinished": unfinished,
        "start_s": round(statistics.median(seconds), 3),
        "longest_s": round(max(seconds), 3),
        "cpu_s": round(statistics.median(processor), 3),
        "resident_mib": memory // MEBIBYTE,
    }


async def page_times(client: ConnectedClient, filter: ListFilter, expected: int, limit: int = 100) -> dict[str, Row]:
    """Walk a listing from its first page to its last, and return what pages take at its begin, middle and end.

    Raises:
        AssertionError: There are more or fewer than ``expected`` resources in it, or they come out of order.
    """
    times: list[float] = []
    ids: list[str] = []
    token: str | None = None
    while True:
        begin = time.perf_counter()
        page = await client.list_page(filter, limit=limit, page_token=token)
        times.append(time.perf_counter() - begin)
        ids += [status.id for status in page.statuses]
        token = page.next_token
        if token is None:
            break
    if len(ids) != expected or ids != sorted(set(ids)):
        raise AssertionError(f"{len(set(ids))} resources of {expected} are listed by {filter}, or out of order")
    share = max(1, len(times) // 10)
    middle = (len(times) - share) // 2
    parts = {"first": times[:share], "middle": times[middle : middle + share], "last": times[-share:]}
    return {"pages": {"number": len(times)}, **{name: quantiles(part) for name, part in parts.items()}}


async def listings(url: str, count: int, unfinished: int) -> list[Row]:
    """Walk listings of many resources by all that can be filtered by."""
    rows: list[Row] = []
    async with tailrace.connect(url) as client:
        everything: list[Status] = [status async for status in client.list(EVERYTHING)]
        context = everything[0].metadata.context
        assert context is not None
        of_context = sum(status.metadata.context == context for status in everything)
        late = everything[-count // 100].created_at
        is_rare = sum(number % RARE == 0 for number in range(count))
        alone = everything[count // 2]
        filters: list[tuple[str, ListFilter, int]] = [
            ("everything", EVERYTHING, count),
            ("COMPLETED", ListFilter(state=ResourceState.COMPLETED), count - unfinished),
            ("IN_PROGRESS", ListFilter(state=ResourceState.IN_PROGRESS), unfinished),
            ("FAILED: none", ListFilter(state=ResourceState.FAILED), 0),
            ("a label that all have", ListFilter(labels={"all": "yes"}), count),
            (f"a label that one in {SHARDS} has", ListFilter(labels={"shard": "3"}), len(range(3, count, SHARDS))),
            ("a label that one alone has", ListFilter(labels={"number": alone.metadata.labels["number"]}), 1),
            ("a label that all and one that few have", ListFilter(labels={"all": "yes", "rare": "yes"}), is_rare),
            ("labels that none has together", ListFilter(labels={"all": "yes", "shard": "1", "rare": "yes"}), 0),
            ("context", ListFilter(context=context), of_context),
            ("context, FAILED: none", ListFilter(context=context, state=ResourceState.FAILED), 0),
            (
                "context and a label that few have",
                ListFilter(context=context, labels={"rare": "yes"}),
                sum(s.metadata.context == context and "rare" in s.metadata.labels for s in everything),
            ),
            (
                "COMPLETED, with a label that all have",
                ListFilter(state=ResourceState.COMPLETED, labels={"all": "yes"}),
                count - unfinished,
            ),
            (
                "FAILED: none, with a label that all have",
                ListFilter(state=ResourceState.FAILED, labels={"all": "yes"}),
                0,
            ),
            ("the newest hundredth", ListFilter(created_from=late), count // 100),
            ("what is older than all", ListFilter(created_before=everything[0].created_at), 0),
            (
                "the newest hundredth, with a label that all have",
                ListFilter(created_from=late, labels={"all": "yes"}),
                count // 100,
            ),
        ]
        for name, selected, expected in filters:
            found = await page_times(client, selected, expected)
            row: Row = {"resources": count, "filter": name, "found": expected, "pages": found.pop("pages")["number"]}
            rows.append({**row, **{f"{part}_{unit}": v for part, q in found.items() for unit, v in q.items()}})
    return rows


# Large resources.


async def _upload_lines(url: str, count: int) -> str:
    async with tailrace.connect(url) as client, client.upload("many.txt", lines=True) as upload:
        for first in range(0, count, _LINES_AT_ONCE):
            below = min(count, first + _LINES_AT_ONCE)
            await upload.write(b"".join([b"%09d\n" % number for number in range(first, below)]))
    if upload.status.state is not ResourceState.COMPLETED or upload.status.lines != count:
        raise AssertionError(f"{upload.status.lines} lines of {count} are stored")
    return upload.reference


async def line_times(
    url: str, reference: str, count: int, meter: Meter, calls: Meter, lookups: int = _LOOKUPS
) -> list[float]:
    """Return what it takes to read ten lines anywhere among ``count``, each being its number.

    Args:
        url: The server.
        reference: The resource.
        count: Its lines.
        meter: Is put around all of it.
        calls: Is put around as many calls that look nothing up.
        lookups: How often.
    """
    times = []
    async with workloads.connected(url) as client, client.open(reference) as resource:
        with calls:
            for _ in range(lookups):
                await resource.status()
        with meter:
            for _ in range(lookups):
                first = random.randrange(count - _LOOKED_UP)
                begin = time.perf_counter()
                lines = await resource.read_lines(first, _LOOKED_UP)
                times.append(time.perf_counter() - begin)
                if lines != [b"%09d\n" % number for number in range(first, first + _LOOKED_UP)]:
                    raise AssertionError("the lines are wrong")
    return times


def find_lines(server: ServerProcess, count: int) -> list[Row]:
    """Look up lines in a resource of ``count`` lines, over each transport; processor time is that of the server."""
    reference = run_coroutine(_upload_lines(server.urls["grpc"], count))
    rows = []
    for transport in TRANSPORTS:
        meter, calls = Meter((server.pid,), OURSELVES), Meter((server.pid,), OURSELVES)
        times = run_coroutine(line_times(server.urls[transport], reference, count, meter, calls))
        lookup, call = (taken.sample(0).server_cpu / len(times) * 1e3 for taken in (meter, calls))
        row = {"lines": count, "transport": transport, **quantiles(times)}
        rows.append({**row, "server_cpu_ms": round(lookup, 3), "status_server_cpu_ms": round(call, 3)})
    run_coroutine(workloads.delete(server.urls["grpc"], [reference]))
    return rows


def transfer(server: ServerProcess, transport: str, size: int) -> list[Row]:
    """Upload a resource, compare its head, and download it: throughput, processor time and memory of the server."""
    url = server.urls[transport]
    rows = []
    meter = Meter((server.pid,), OURSELVES)
    reference = run_coroutine(workloads.timed_upload(url, size, meter))
    rows.append(_transfer_row("upload", transport, size, meter))
    meter = Meter((server.pid,), OURSELVES)
    run_coroutine(workloads.timed_download(url, reference, size, meter))
    rows.append(_transfer_row("download", transport, size, meter))
    run_coroutine(workloads.delete(url, [reference]))
    return rows


def plain_write(folder: Path, size: int) -> Row:
    """Write a file and sync it: what of a transfer is the system's, which may have memory for the file or not."""
    path, meter = folder / "plain", Meter((), OURSELVES)
    with meter:
        write_seconds(path, size, sync=True)
    path.unlink()
    return _transfer_row("plain write", "none", size, meter)


def _transfer_row(what: str, transport: str, size: int, meter: Meter) -> Row:
    sample = meter.throughput(size)
    return {
        "what": what,
        "transport": transport,
        "mib": size // MEBIBYTE,
        "gb_per_s": round(sample.value, 3),
        "server_s_per_gb": round(sample.server_cpu / size * 1e9, 3),
        "client_s_per_gb": round(sample.client_cpu / size * 1e9, 3),
        "server_peak_mib": sample.server_peak // MEBIBYTE,
        "client_peak_mib": sample.client_peak // MEBIBYTE,
    }


def upload_at_once(server: ServerProcess, transport: str, size: int, number: int) -> Row:
    """Upload ``size`` bytes in all over ``number`` connections at the same time."""
    url, meter = server.urls[transport], Meter((server.pid,), OURSELVES)
    size = size // MEBIBYTE // number * number * MEBIBYTE
    references = run_coroutine(workloads.timed_uploads(url, size, number, meter))
    run_coroutine(workloads.delete(url, references))
    return {"uploads": number, **_transfer_row("upload", transport, size, meter)}


# Interruptions.


async def restart_times(server: ServerProcess, transport: str, *, crash: bool) -> Row:
    """Restart a server under an upload that goes on, and return when the next byte reaches its follower.

    The time runs from the signal that ends the old server, and from when the new one says that it is ready.
    """
    url = server.urls[transport]
    # Each alone in time: what was written before the restart and what after it must not be mistaken for one another.
    async with workloads.connected(url) as writer, workloads.connected(url) as reader:
        session = writer.upload("restarted.log", lines=True)
        await session.open()
        written = 0
        running = True

        async def write() -> None:
            nonlocal written
            while running:
                await session.write(b"%09d\n" % written)
                written += 1
                await asyncio.sleep(0.001)
            await session.finish()

        async with reader.open(session.reference) as resource, aclosing(resource.follow()) as arriving:
            writing = asyncio.create_task(write())
            received = bytearray()
            while len(received) < 1000:
                received += await anext(arriving)
            begin = time.perf_counter()
            if crash:
                await asyncio.to_thread(server.kill)
            else:
                await asyncio.to_thread(server.stop)
            ended = time.perf_counter()
            # What had arrived before the end of the server is taken before it is there again.
            before = asyncio.create_task(_next(arriving))
            await asyncio.sleep(0)
            restarting = asyncio.create_task(asyncio.to_thread(server.start))
            while not restarting.done():
                await asyncio.wait((before, restarting), return_when=asyncio.FIRST_COMPLETED)
                if before.done() and not restarting.done():
                    received += before.result()
                    before = asyncio.create_task(_next(arriving))
            await restarting
            ready = time.perf_counter()
            received += await before
            first = time.perf_counter()
            running = False
            async for piece in arriving:
                received += piece
            await writing
        if received != b"".join([b"%09d\n" % number for number in range(written)]):
            raise AssertionError("the follower got other bytes than those that were written")
        await writer.delete(session.reference)
    return {
        "transport": transport,
        "end": "kill" if crash else "SIGTERM",
        "ended_s": round(ended - begin, 3),
        "ready_s": round(ready - begin, 3),
        "next_byte_s": round(first - begin, 3),
        "behind_ready_s": round(first - ready, 3),
    }


async def _next(arriving: Any) -> bytes:
    piece: bytes = await anext(arriving)
    return piece


def median_row(rows: list[Row]) -> Row:
    """Return a row with the medians of what differs in rows that are else equal."""
    merged = dict(rows[0])
    for name, value in merged.items():
        if isinstance(value, float):
            merged[name] = round(statistics.median(row[name] for row in rows), 3)
    return merged


async def _interrupted(url: str) -> tuple[str, str]:
    async with tailrace.connect(url) as client:
        session = client.upload("interrupted")
        await session.open()
        await session.write(bytes(_OPEN_END))
        await session.flush()
        await session.detach()
        return session.id, session.token


async def reopen_time(url: str, id: str, token: str, size: int) -> float:
    """Reopen an upload of zeros, write to it, and return the seconds from the request to the answer."""
    async with workloads.connected(url) as client:
        begin = time.perf_counter()
        stream = await client.connection.open(ReopenUpload(id=id, token=token))
        opened = await _receive(stream, Opened)
        seconds = time.perf_counter() - begin
        if opened.offset != size:
            raise AssertionError(f"reopened at {opened.offset} of {size}")
        # The server takes bytes, and announces them.
        data = bytes(_OPEN_END)
        await stream.send(Chunk(size, data, chunk_hash(data), b""))
        while (await _receive(stream, Checkpoint)).size < size + _OPEN_END:
            pass
        await stream.close()
        if await client.open(opened.status.reference).read(size - 5, size + 5) != bytes(10):
            raise AssertionError("the bytes around the interruption are wrong")
    return seconds


async def _receive(stream: Any, kind: type[Any]) -> Any:
    while True:
        message: ServerMessage | None = await stream.receive()
        if message is None:
            raise AssertionError(f"the conversation ended before {kind.__name__}")
        if isinstance(message, kind):
            return message


def reopen(scratch: Path, transport: str, size: int) -> Row:
    """Interrupt an upload of ``size`` bytes by the end of the server; start it again, and reopen the upload."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        data = Path(folder, "data")
        server = server_on(data, scratch)
        with server:
            upload, token = run_coroutine(_interrupted(server.urls[transport]))
        size = size + _OPEN_END
        enlarge(data / "resources" / upload, size)
        begin = time.perf_counter()
        with server:
            started = time.perf_counter() - begin
            seconds = run_coroutine(reopen_time(server.urls[transport], upload, token, size))
    figures = {"start_s": round(started, 3), "reopen_s": round(seconds, 4)}
    return {"mib": size // MEBIBYTE, "transport": transport, **figures}


# The command.


def _start(arguments: argparse.Namespace, scratch: Path, folder: Path) -> Iterator[Row]:
    for count in arguments.counts or (1000, 100_000):
        unfinished = min(arguments.unfinished, count)
        data = stored(folder, count, unfinished)
        yield start_up(data, scratch, count, unfinished, arguments.rounds)


def _list(arguments: argparse.Namespace, scratch: Path, folder: Path) -> Iterator[Row]:
    for count in arguments.counts or (1000, 100_000):
        unfinished = min(arguments.unfinished, count)
        with server_on(stored(folder, count, unfinished), scratch) as server:
            yield from run_coroutine(listings(server.urls[arguments.transport], count, unfinished))


def _lines(arguments: argparse.Namespace, scratch: Path, folder: Path) -> Iterator[Row]:
    with server_on(folder / "data", scratch) as server:
        for count in arguments.counts or (1000, 1_000_000, 200_000_000):
            yield from find_lines(server, count)


def _sizes(arguments: argparse.Namespace, scratch: Path, folder: Path) -> Iterator[Row]:
    sizes = arguments.sizes or (10 << 20, 1 << 30, 20 << 30)
    yield from (plain_write(folder, size) for size in sizes)
    for transport in TRANSPORTS:
        # A new server each: its memory is that of these transfers alone.
        for size in sizes:
            with server_on(folder / "data", scratch) as server:
                yield from transfer(server, transport, size)


def _uploads(arguments: argparse.Namespace, scratch: Path, folder: Path) -> Iterator[Row]:
    (size,) = arguments.sizes or (512 << 20,)
    for transport in TRANSPORTS:
        for number in arguments.counts or (1, 8, 64):
            with server_on(folder / "data", scratch) as server:
                rows = [upload_at_once(server, transport, size, number) for _ in range(arguments.rounds)]
                yield median_row(rows)


def _restart(arguments: argparse.Namespace, scratch: Path, folder: Path) -> Iterator[Row]:
    for transport in TRANSPORTS:
        for crash in (False, True):
            with server_on(folder / "data", scratch) as server:
                times = [restart_times(server, transport, crash=crash) for _ in range(arguments.rounds)]
                yield median_row([run_coroutine(restart) for restart in times])


def _reopen(arguments: argparse.Namespace, scratch: Path, folder: Path) -> Iterator[Row]:
    for size in arguments.sizes or (1 << 20, 1 << 30, 100 << 30, 1 << 40):
        yield reopen(folder, arguments.transport, size)


CASES: dict[str, Callable[[argparse.Namespace, Path, Path], Iterator[Row]]] = {
    "start": _start,
    "list": _list,
    "lines": _lines,
    "sizes": _sizes,
    "uploads": _uploads,
    "restart": _restart,
    "reopen": _reopen,
}


def byte_size(text: str) -> int:
    """Parse a size such as 5GiB, 512MiB or 1000."""
    for suffix, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if text.endswith(suffix):
            return int(text.removesuffix(suffix)) * factor
    return int(text)


def _several(parse: Callable[[str], int]) -> Callable[[str], tuple[int, ...]]:
    return lambda text: tuple(map(parse, text.split(",")))


@contextmanager
def _kept(folder: Path | None, scratch: Path) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    yield folder or scratch


def print_rows(rows: Iterator[Row]) -> None:
    """Print rows as a Markdown table, each when it is there."""
    columns: list[str] = []
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Run one case."""
    if tune_grpc():
        # As the command line does: the clients run in this process, which has loaded gRPC already.
        os.execv(sys.executable, sys.orig_argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--counts", type=_several(int), metavar="N,N,…", help="resources, lines or uploads")
    parser.add_argument("--sizes", type=_several(byte_size), metavar="SIZE,SIZE,…", help="such as 10MiB,1GiB")
    parser.add_argument("--unfinished", type=int, default=100, help="interrupted uploads among the resources")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transport", choices=TRANSPORTS, default="grpc")
    parser.add_argument("--data", type=Path, help="where made resources are kept for the next time")
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    arguments = parser.parse_args()
    tune_malloc()
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-flat-", dir=os.environ.get("TMPDIR")) as scratch,
        _kept(arguments.data, Path(scratch)) as folder,
    ):
        rows = CASES[arguments.case](arguments, Path(scratch), folder)
        if arguments.json:
            for row in rows:
                print(json.dumps(row), flush=True)
        else:
            print_rows(rows)


if __name__ == "__main__":
    main()
