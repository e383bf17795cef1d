"""Many followers of one resource: how soon each has a line, and what each delivery costs the server.

    python benchmarks/fanout.py [--transport ws] [--followers 1 10 100 1000 2000]
    python benchmarks/fanout.py --coalescing

Each measurement is printed as a JSON object. The server is `tailrace serve` on a fresh folder; followers are raw ones
(:mod:`raw_followers`) in processes of their own, so that clients are not what is measured; the writer is the shipped
client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import statistics
import sys
import tempfile
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path

from loops import run_coroutine
from processes import resident, usage_of
from raw_followers import numbered_lines
from server import ServerProcess

import tailrace
from tailrace_client_upload_api import UploadSession

_PROGRAM = Path(__file__).with_name("raw_followers.py")
_RATES = {1: 500.0, 10: 200.0, 100: 50.0, 1000: 5.0, 2000: 2.5}
"""Lines per second by number of followers: the rate at which a core has time to deliver each before the next."""
_GATHERED = 64
"""Lines of one write, where they are written as fast as possible."""


@dataclass(frozen=True, slots=True)
class FanOutResult:
    """What a fan-out has measured. Times are in milliseconds, from the write of a line to its arrival."""

    followers: int
    lines: int
    seconds: float
    """From the first write to the last arrival."""
    messages: int
    """Chunks that arrived at all followers."""
    first_p50_ms: float
    """Of the first follower that has a line."""
    first_p99_ms: float
    p50_ms: float
    """Of all deliveries."""
    p99_ms: float
    last_p50_ms: float
    """Of the last follower that has a line."""
    last_p99_ms: float
    lines_per_second: float
    """Lines that arrived at all followers together."""
    server_us_per_line: float
    """Processor time of the server per line and follower, in microseconds; storing the line is in it."""
    server_us_per_message: float
    idle_kib: float
    """Resident memory that a follower has added to the server when all of them waited."""


async def fan_out(
    url: str, followers: int, lines: int, rate: float, *, server: int | None = None, processes: int = 1
) -> FanOutResult:
    """Write lines of 100 bytes to a resource with followers, each on a connection of its own.

    Args:
        url: Address of the server; its scheme is the transport of writer and followers.
        followers: Number of followers.
        lines: Number of lines.
        rate: Lines per second; 0 for as fast as possible, and then no latency is taken.
        server: Process id of the server, for what it uses; ``None`` leaves that at 0.
        processes: Processes that the followers are in.

    Raises:
        AssertionError: A follower got something else than what was written.
    """
    async with tailrace.connect(url) as client:
        session = client.upload("fan-out", lines=True)
        await session.open()
        pids = () if server is None else (server,)
        before = 0 if server is None else resident(server)
        crowd = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(_PROGRAM), url, session.reference.rpartition("/")[2]),
                *(str(followers * (n + 1) // processes - followers * n // processes), str(lines)),
                "timed" if rate else "untimed",
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 28,
            )
            for n in range(processes)
        ]
        for process in crowd:
            assert process.stdout is not None
            if await process.stdout.readline() != b'"following"\n':
                raise AssertionError("the followers did not start")
        idle = 0 if server is None else resident(server) - before
        used = usage_of(*pids).cpu
        begin = time.perf_counter()
        async with session:
            written = await _write(session, lines, rate)
        results = []
        for process in crowd:
            assert process.stdout is not None
            results.append(pickle.loads(await process.stdout.read()))  # of our own process
            await process.wait()
        used = usage_of(*pids).cpu - used
        await client.delete(session.reference)
    messages = sum(result[2] for result in results)
    seconds = max(result[3] for result in results) - begin
    times = _latencies(results, written, followers) if rate else [[0.0]]
    first = sorted(line[0] for line in times)
    last = sorted(line[-1] for line in times)
    every = sorted(latency for line in times for latency in line)
    return FanOutResult(
        followers=followers,
        lines=lines,
        seconds=seconds,
        messages=messages,
        first_p50_ms=_percentile(first, 50),
        first_p99_ms=_percentile(first, 99),
        p50_ms=_percentile(every, 50),
        p99_ms=_percentile(every, 99),
        last_p50_ms=_percentile(last, 50),
        last_p99_ms=_percentile(last, 99),
        lines_per_second=lines * followers / seconds,
        server_us_per_line=used / (lines * followers) * 1e6,
        server_us_per_message=used / messages * 1e6,
        idle_kib=idle / followers / 1024,
    )


async def _write(session: UploadSession, lines: int, rate: float) -> list[float]:
    """Write all lines; return when each was."""
    written: list[float] = []
    if not rate:
        for first in range(0, lines, _GATHERED):
            await session.write(numbered_lines(first, min(_GATHERED, lines - first)))
        return written
    begin = time.perf_counter()
    for number in range(lines):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        written.append(time.perf_counter())
        await session.write(numbered_lines(number, 1))
    return written


def _latencies(
    results: list[tuple[array[int], array[float], int, float]], written: list[float], followers: int
) -> list[list[float]]:
    """Return for each line the sorted seconds that it took to each follower."""
    times: list[list[float]] = [[] for _ in written]
    for numbers, arrived, _, _ in results:
        for number, at in zip(numbers, arrived, strict=True):
            times[number].append(at - written[number])
    for number, line in enumerate(times):
        if len(line) != followers:
            raise AssertionError(f"line {number} arrived at {len(line)} followers of {followers}")
        line.sort()
    return times


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1e3


async def _measure(arguments: argparse.Namespace) -> None:
    for transport in arguments.transport:
        for followers in arguments.followers:
            with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder)) as server:
                url = server.urls[transport]
                # What the first connections make the server load is not theirs.
                await fan_out(url, 20, 20, 100)
                results = []
                for _ in range(arguments.rounds):
                    rate = 0.0 if arguments.coalescing else _RATES.get(followers, 5000 / followers)
                    lines = arguments.lines or max(50, round(rate * arguments.seconds))
                    results.append(
                        asdict(
                            await fan_out(url, followers, lines, rate, server=server.pid, processes=arguments.processes)
                        )
                    )
                # What connections leave behind is used again, so only the first round says what they add.
                medians = {name: statistics.median(result[name] for result in results) for name in results[0]}
                medians["idle_kib"] = results[0]["idle_kib"]
                rounded = {name: round(value, 3) for name, value in medians.items()}
                print(json.dumps({"transport": transport, "rounds": arguments.rounds, **rounded}), flush=True)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", nargs="+", choices=("ws", "grpc"), default=["ws", "grpc"])
    parser.add_argument("--followers", nargs="+", type=int, default=[1, 10, 100, 1000, 2000])
    parser.add_argument("--lines", type=int, default=0, help="0: as many as the rate makes in --seconds")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="that the followers are in")
    parser.add_argument("--coalescing", action="store_true", help="write as fast as possible")
    run_coroutine(_measure(parser.parse_args()))


if __name__ == "__main__":
    main()
