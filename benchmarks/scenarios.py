"""Whole situations, each run once against a real server: what a user would try by hand, with its figures.

    python benchmarks/scenarios.py big-file [--transport grpc|ws] [--size 5GiB]
    python benchmarks/scenarios.py growing-file [--seconds 120]
    python benchmarks/scenarios.py pipe [--size 2GiB]
    python benchmarks/scenarios.py crowd [--uploads 300] [--followers 1000] [--seconds 60]

Each proves that every byte arrived, and prints one JSON object. The command line of Tailrace runs in processes of its
own, so that memory is that of a user's processes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from server import ServerProcess, usage_of

import tailrace
from tailrace_client_upload_api import UploadSession

TAILRACE = (sys.executable, "-m", "tailrace")
MEBIBYTE = 1 << 20
Figures = dict[str, Any]


def percentiles(values: list[float]) -> Figures:
    """Return median, 99th percentile and maximum of times in seconds, in milliseconds."""
    ordered = sorted(values)
    picked = {"p50": ordered[len(ordered) // 2], "p99": ordered[int(len(ordered) * 0.99)], "max": ordered[-1]}
    return {name: round(value * 1e3, 2) for name, value in picked.items()}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Peaks:
    """Largest memory of running processes, sampled until they end."""

    def __init__(self) -> None:
        self.mebibytes: dict[str, int] = {}

    def sample(self, **processes: subprocess.Popen[Any]) -> None:
        """Look at processes that still run."""
        for name, process in processes.items():
            if process.poll() is None:
                try:
                    peak = usage_of(process.pid).peak // MEBIBYTE
                except (OSError, RuntimeError):
                    continue  # It ended between the two looks.
                self.mebibytes[name] = max(peak, self.mebibytes.get(name, 0))


def start_upload(server: str, *arguments: str, **options: Any) -> tuple[subprocess.Popen[str], str]:
    """Start `tailrace upload` and return the process and the reference that it printed."""
    command = [*TAILRACE, "upload", "--server", server, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    reference = process.stdout.readline().strip()
    if not reference:
        raise RuntimeError(f"the upload ended with {process.wait()}")
    return process, reference


def big_file(server: ServerProcess, scratch: Path, arguments: argparse.Namespace) -> Figures:
    """A large file up, followed live by a second process, and downloaded again."""
    source = scratch / "source.bin"
    generator = random.Random(7)
    with source.open("wb") as file:
        for _ in range(arguments.size // MEBIBYTE):
            file.write(generator.randbytes(MEBIBYTE))
    url = server.urls[arguments.transport]
    peaks = Peaks()
    begin = time.perf_counter()
    upload, reference = start_upload(url, str(source))
    followed, downloaded = scratch / "followed.bin", scratch / "downloaded.bin"
    follow = subprocess.Popen([*TAILRACE, "follow", reference, "-o", str(followed)])
    uploaded_after = 0.0
    while upload.poll() is None or follow.poll() is None:
        peaks.sample(upload=upload, follow=follow)
        if upload.poll() is not None and not uploaded_after:
            uploaded_after = time.perf_counter() - begin
        time.sleep(0.02)
    both = time.perf_counter() - begin
    if upload.returncode or follow.returncode:
        raise RuntimeError(f"upload ended with {upload.returncode}, follow with {follow.returncode}")
    begin = time.perf_counter()
    download = subprocess.Popen([*TAILRACE, "download", reference, "-o", str(downloaded)])
    while download.poll() is None:
        peaks.sample(download=download)
        time.sleep(0.02)
    seconds = time.perf_counter() - begin
    digests = {sha256(source), sha256(followed), sha256(downloaded)}
    if download.returncode or len(digests) != 1:
        raise AssertionError("the three files differ")
    return {
        "bytes": arguments.size,
        "transport": arguments.transport,
        "sha256": digests.pop(),
        "upload_and_follow_seconds": round(both, 2),
        "download_seconds": round(seconds, 2),
        "peak_mebibytes": {**peaks.mebibytes, "server": server.usage().peak // MEBIBYTE},
    }


def growing_file(server: ServerProcess, scratch: Path, arguments: argparse.Namespace) -> Figures:
    """A file that grows by ten lines a second: the time from each write to its arrival at a reader."""
    source = scratch / "growing.log"
    upload, reference = start_upload(server.urls["grpc"], str(source), "--follow")

    async def read(latencies: list[float]) -> None:
        pending = b""
        async with tailrace.connect(server.urls["ws"]) as client, client.open(reference) as resource:
            async for piece in resource.follow():
                now = time.monotonic()
                *lines, pending = (pending + piece).split(b"\n")
                latencies += [now - float(line.split()[0]) for line in lines]

    async def run() -> list[float]:
        latencies: list[float] = []
        reading = asyncio.create_task(read(latencies))
        with source.open("wb", buffering=0) as file:
            for number in range(arguments.seconds * 10):
                await asyncio.sleep(0.1)
                file.write(b"%.9f line %d\n" % (time.monotonic(), number))
        upload.terminate()
        await reading
        return latencies

    latencies = asyncio.run(run())
    if upload.wait() or len(latencies) != arguments.seconds * 10:
        raise AssertionError(f"{len(latencies)} lines of {arguments.seconds * 10} arrived")
    return {"lines": len(latencies), "write_to_reader_ms": percentiles(latencies)}


def pipe(server: ServerProcess, scratch: Path, arguments: argparse.Namespace) -> Figures:
    """`yes | head -c SIZE | tailrace upload -` while last lines and ranges are read."""
    del scratch
    producer = subprocess.Popen(["sh", "-c", f"yes | head -c {arguments.size}"], stdout=subprocess.PIPE)
    begin = time.perf_counter()
    upload, reference = start_upload(server.urls[arguments.transport], "-", stdin=producer.stdout)
    assert producer.stdout is not None
    producer.stdout.close()
    peaks = Peaks()

    async def look() -> tuple[list[float], int]:
        times: list[float] = []
        async with tailrace.connect(server.urls["ws"]) as client, client.open(reference) as resource:
            while True:
                peaks.sample(upload=upload)
                begin = time.perf_counter()
                status = await resource.status()
                lines = await resource.read_lines(last=10)
                middle = await resource.read(status.size // 2, min(status.size, status.size // 2 + 4096))
                times.append(time.perf_counter() - begin)
                whole = status.size // 2 % 2 == 0
                if any(line != b"y\n" for line in lines) or not middle.startswith(b"y" if whole else b"\n", 0, 1):
                    raise AssertionError("the lines or the range are wrong")
                if status.state.terminal:
                    return times, status.size
                await asyncio.sleep(0.05)

    times, size = asyncio.run(look())
    seconds = time.perf_counter() - begin
    if upload.wait() or producer.wait() or size != arguments.size:
        raise AssertionError(f"{size} bytes of {arguments.size} arrived")
    return {
        "bytes": size,
        "transport": arguments.transport,
        "seconds": round(seconds, 2),
        "looks": len(times),
        "status_lines_and_range_ms": percentiles(times),
        "peak_mebibytes": {**peaks.mebibytes, "server": server.usage().peak // MEBIBYTE},
    }


def crowd(server: ServerProcess, scratch: Path, arguments: argparse.Namespace) -> Figures:
    """Many uploads of ten lines a second with many followers spread evenly over them; every byte is compared."""
    del scratch
    readers = 2
    context = [*([sys.executable, __file__, "crowd-followers", server.urls[arguments.transport]]), "--followers"]

    async def run() -> Figures:
        async with tailrace.connect(server.urls[arguments.transport]) as client:
            sessions: list[UploadSession] = [client.upload(f"upload {n}", lines=True) for n in range(arguments.uploads)]
            for session in sessions:
                await session.open()
            followers = []
            for reader in range(readers):
                share = arguments.followers * (reader + 1) // readers - arguments.followers * reader // readers
                process = await asyncio.create_subprocess_exec(
                    *context, str(share), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 26
                )
                assert process.stdin is not None
                process.stdin.write(("\n".join(session.reference for session in sessions) + "\n").encode())
                process.stdin.write_eof()
                followers.append(process)
            for process in followers:
                assert process.stdout is not None
                if await process.stdout.readline() != b"ready\n":
                    raise RuntimeError("the followers did not start")
            begin = time.perf_counter()

            async def write(session: UploadSession, phase: float) -> None:
                await asyncio.sleep(phase)
                start = time.monotonic()
                for number in range(arguments.seconds * 10):
                    await session.write(b"%.9f line %d of %s\n" % (time.monotonic(), number, session.id.encode()))
                    await asyncio.sleep(max(0.0, start + (number + 1) * 0.1 - time.monotonic()))
                await session.finish()

            await asyncio.gather(*(write(session, n * 0.1 / arguments.uploads) for n, session in enumerate(sessions)))
            seconds = time.perf_counter() - begin
            heads = {session.id: session.status.head.hex() for session in sessions}
            lags: list[float] = []
            for process in followers:
                output, _ = await process.communicate()
                result = json.loads(output)
                lags += result["lags"]
                for resource, head, size in result["streams"]:
                    if heads[resource] != head:
                        raise AssertionError(f"a follower of {resource} has other bytes ({size}) than its uploader")
        return {
            "transport": arguments.transport,
            "uploads": arguments.uploads,
            "followers": arguments.followers,
            "seconds": round(seconds, 1),
            "lines_delivered": len(lags),
            "lag_ms": percentiles(lags),
            "server_peak_mebibytes": server.usage().peak // MEBIBYTE,
            "server_processor_seconds": round(server.usage().cpu, 1),
        }

    return asyncio.run(run())


async def crowd_followers(url: str, followers: int, references: list[str]) -> None:
    """Follow resources until they end; print the lag of every line and the head of every stream."""
    from tailrace_impl_common import HeadHasher

    lags: list[float] = []
    streams: list[tuple[str, str, int]] = []
    started = 0
    everyone = asyncio.Event()

    async def follow(client: Any, reference: str) -> None:
        nonlocal started
        hasher = HeadHasher()
        pending = b""
        async with client.open(reference) as resource:
            await resource.status()
            async with aclosing(resource.follow_chunks()) as chunks:
                started += 1
                if started == followers:
                    everyone.set()
                async for chunk in chunks:
                    now = time.monotonic()
                    hasher.update(chunk.data)
                    *lines, pending = (pending + bytes(chunk.data)).split(b"\n")
                    lags.extend(now - float(line.split(b" ", 1)[0]) for line in lines)
            streams.append((resource.id, hasher.head().hex(), hasher.size))

    async with tailrace.connect(url) as client:
        tasks = [asyncio.create_task(follow(client, references[n % len(references)])) for n in range(followers)]
        await everyone.wait()
        print("ready", flush=True)
        await asyncio.gather(*tasks)
    print(json.dumps({"lags": lags, "streams": streams}), flush=True)


def byte_size(text: str) -> int:
    """Parse a size such as 5GiB, 512MiB or 1000."""
    for suffix, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if text.endswith(suffix):
            return int(text.removesuffix(suffix)) * factor
    return int(text)


SCENARIOS: dict[str, Callable[[ServerProcess, Path, argparse.Namespace], Figures]] = {
    "big-file": big_file,
    "growing-file": growing_file,
    "pipe": pipe,
    "crowd": crowd,
}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=[*SCENARIOS, "crowd-followers"])
    parser.add_argument("url", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--transport", choices=("grpc", "ws"), default="grpc")
    parser.add_argument("--size", type=byte_size, default=None)
    parser.add_argument("--seconds", type=int, default=None)
    parser.add_argument("--uploads", type=int, default=300)
    parser.add_argument("--followers", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.scenario == "crowd-followers":
        asyncio.run(crowd_followers(arguments.url, arguments.followers, sys.stdin.read().split()))
        return
    arguments.size = arguments.size or {"big-file": 5 << 30, "pipe": 2 << 30}.get(arguments.scenario)
    arguments.seconds = arguments.seconds or {"growing-file": 120, "crowd": 60}.get(arguments.scenario)
    folder = os.environ.get("TMPDIR")
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-scenario-", dir=folder) as scratch,
        ServerProcess(Path(scratch, "data")) as server,
    ):
        print(json.dumps(SCENARIOS[arguments.scenario](server, Path(scratch), arguments)))


if __name__ == "__main__":
    main()
