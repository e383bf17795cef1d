"""Rows of small writes: how many, how soon they arrive, and how soon a line is found among very many."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import workloads
from cases import HERE, LATENCY, LINES, Run, Sample, VoidSampleError, milliseconds, transport_case
from processes import OURSELVES

import tailrace
from tailrace_common_api import ResourceState

RATE = 300e6
"""Bytes per second of the upload beside which latency is taken."""
_BLOCK = b"".join([b"%09d\n" % number for number in range(100_000)])
"""The lines of the huge resource, which repeat."""
_LOOKED_UP = 10


@transport_case("lines", "lines of 100 bytes, a write each, stored", group=LINES, unit="thousand/s")
def lines(run: Run, transport: str) -> Sample:
    url, meter = run.url(transport), run.meter()
    reference = run.wait(workloads.timed_lines(url, run.scale.lines, meter))
    run.wait(workloads.delete(url, [reference]))
    return meter.rate(run.scale.lines)


@transport_case("lines_followed", "lines of 100 bytes, until a follower has all", group=LINES, unit="thousand/s")
def lines_followed(run: Run, transport: str) -> Sample:
    url, meter = run.url(transport), run.meter()
    reference = run.wait(workloads.timed_lines(url, run.scale.lines, meter, followed=True))
    run.wait(workloads.delete(url, [reference]))
    return meter.rate(run.scale.lines)


@transport_case("latency", "write of a line to its arrival, 500/s", group=LATENCY, unit="ms", lower_is_better=True)
def latency(run: Run, transport: str) -> Sample:
    meter = run.meter()
    times = run.wait(workloads.follow_latencies(run.url(transport), run.scale.latencies, 0.002, meter))
    figures = milliseconds(times)
    return meter.sample(figures["p50_ms"], count=len(times), more=figures)


@transport_case(
    "latency_busy",
    "write of a line beside an upload of 300 MB/s to its arrival, p99",
    group=LATENCY,
    unit="ms",
    lower_is_better=True,
    new_file=True,
)
def latency_busy(run: Run, transport: str) -> Sample:
    url = run.url(transport)
    # In a process of its own: what the follower waits for shall be the server, not its neighbour in the client.
    command = [sys.executable, str(HERE / "uploader.py"), url, str(RATE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as uploader:
        assert uploader.stdout is not None
        if uploader.stdout.readline() != "running\n":
            raise RuntimeError(f"the upload ended with {uploader.wait()}")
        meter = run.meter(clients=(*OURSELVES, uploader.pid))
        times = run.wait(workloads.follow_latencies(url, run.scale.latencies, 0.002, meter))
        said, _ = uploader.communicate()
    if uploader.returncode:
        raise RuntimeError(f"the upload ended with {uploader.returncode}")
    rate = float(said)
    if rate < RATE * 0.9:
        raise VoidSampleError(f"the upload ran at {rate / 1e6:.0f} MB/s instead of {RATE / 1e6:.0f}")
    figures = milliseconds(times)
    return meter.sample(figures["p99_ms"], count=len(times), more=figures)


async def _upload_huge(url: str, count: int) -> str:
    blocks = count // 100_000
    whole = _BLOCK * 5
    async with tailrace.connect(url) as client, client.upload("many.txt", lines=True) as upload:
        for _ in range(blocks // 5):
            await upload.write(whole)
        for _ in range(blocks % 5):
            await upload.write(_BLOCK)
    if upload.status.state is not ResourceState.COMPLETED or upload.status.lines != blocks * 100_000:
        raise AssertionError(f"{upload.status.lines} lines of {count} are stored")
    return upload.reference


@transport_case(
    "line_lookup",
    "ten lines anywhere in a huge resource (200 million lines; quick: 20 million)",
    group=LINES,
    unit="ms",
    lower_is_better=True,
)
def line_lookup(run: Run, transport: str) -> Sample:
    reference = run.keep("lines.huge", lambda: run.wait(_upload_huge(run.url("grpc"), run.scale.huge_lines)))
    # A system may have dropped what it holds of a file that was not read for a while, and it is the server that counts.
    run.wait(workloads.read_through(run.url("ws"), reference))
    meter, count = run.meter(), 200

    async def look_up() -> list[float]:
        times = []
        async with workloads.connected(run.url(transport)) as client, client.open(reference) as resource:
            with meter:
                for _ in range(count):
                    first = random.randrange(run.scale.huge_lines - _LOOKED_UP)
                    begin = time.perf_counter()
                    found = await resource.read_lines(first, _LOOKED_UP)
                    times.append(time.perf_counter() - begin)
                    if found != [b"%09d\n" % (number % 100_000) for number in range(first, first + _LOOKED_UP)]:
                        raise AssertionError(f"the lines from {first} on are others")
        return times

    figures = milliseconds(run.wait(look_up()))
    server = meter.sample(0).server_cpu / count
    return meter.sample(figures["p50_ms"], count=count, more={**figures, "server_ms": server * 1e3})
