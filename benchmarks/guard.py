"""Count what the server executes for fixed small transfers, and compare with the counts in the repository.

Valgrind counts instructions, which do not depend on how busy or how fast the machine is: a copy of every byte that
slipped into a hot path, or work that is done per message instead of per chunk, shows as a number. Each case runs a
server of its own, once idle and once with the transfer; the difference belongs to the transfer.

    python benchmarks/guard.py            compare; ends with 1 where a count is above its record by more than it may be
    python benchmarks/guard.py --update   write the counts of this machine into the record
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tailrace
from tailrace_common_api import ResourceState

RECORD = Path(__file__).with_name("guard.json")
TOLERANCE = 0.15
"""How far a count may be above its record, as a part of it: what scheduling, and another processor, make of it."""
MEBIBYTE = 1 << 20
PIECE = bytes(range(256)) * (MEBIBYTE // 256)
LINE = b"x" * 99 + b"\n"
PATIENCE = 300.0
"""Longest time that one case may take, in seconds: under valgrind everything is some fifty times slower."""


async def upload(url: str, pieces: int) -> str:
    """Upload pieces of 1 MiB; return the reference."""
    async with tailrace.connect(url) as client:
        async with client.upload("guard") as session:
            for _ in range(pieces):
                await session.write(PIECE)
        if session.status.state is not ResourceState.COMPLETED or session.status.size != pieces * MEBIBYTE:
            raise AssertionError(f"the upload ended as {session.status}")
        return session.status.reference


async def download(url: str, reference: str) -> None:
    """Download a resource of whole pieces."""
    async with tailrace.connect(url) as client, client.open(reference) as resource:
        received = 0
        async with aclosing(resource.chunks()) as chunks:
            async for chunk in chunks:
                received += len(chunk.data)
        if received % MEBIBYTE or not received:
            raise AssertionError(f"{received} bytes arrived")


async def upload_bulk(url: str) -> None:
    """Upload large pieces."""
    await upload(url, 128)


async def download_often(url: str) -> None:
    """Upload a little, and download it many times."""
    reference = await upload(url, 16)
    for _ in range(8):
        await download(url, reference)


async def write_lines(url: str) -> None:
    """Upload lines of 100 bytes, each written by itself."""
    count = 200_000
    async with tailrace.connect(url) as client:
        async with client.upload("guard", lines=True) as session:
            for _ in range(count):
                await session.write(LINE)
        if session.status.lines != count:
            raise AssertionError(f"{session.status.lines} lines of {count} are stored")


async def follow(url: str) -> None:
    """Let ten readers follow 200 lines, each of which all have before the next one is written."""
    readers, count = 10, 200
    async with tailrace.connect(url) as client:
        session = client.upload("guard", lines=True)
        await session.open()
        async with session, asyncio.TaskGroup() as group:
            turns = asyncio.Barrier(readers + 1)

            async def read() -> None:
                async with (
                    tailrace.connect(url) as reader,
                    reader.open(session.reference) as resource,
                    aclosing(resource.follow()) as pieces,
                ):
                    await turns.wait()
                    for _ in range(count):
                        if await anext(pieces) != LINE:
                            raise AssertionError("a reader got something else than the line that was written")
                        await turns.wait()

            for _ in range(readers):
                group.create_task(read())
            await turns.wait()
            for _ in range(count):
                await session.write(LINE)
                await turns.wait()


@dataclass(frozen=True, slots=True)
class Case:
    """A transfer whose cost is counted."""

    transport: str
    name: str
    transfer: Callable[[str], Coroutine[Any, Any, None]]
    amount: float
    """What the count is divided by."""
    unit: str

    @property
    def title(self) -> str:
        return f"{self.transport} {self.name}"


CASES = [
    case
    for transport in ("grpc", "ws")
    for case in (
        Case(transport, "upload", upload_bulk, 128, "MiB"),
        Case(transport, "upload and 8 downloads", download_often, 16 * 8, "MiB"),
        Case(transport, "lines", write_lines, 200, "thousand lines"),
        Case(transport, "10 followers", follow, 2, "thousand deliveries"),
    )
]


def count_instructions(transport: str, transfer: Callable[[str], Coroutine[Any, Any, None]] | None) -> int:
    """Return what a server executes from its start to its end, with a transfer in between."""
    with tempfile.TemporaryDirectory(prefix="tailrace-guard-") as folder:
        report = Path(folder, "valgrind.txt")
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={os.devnull}"]
        command += [f"--log-file={report}", sys.executable, "-m", "tailrace", "serve", "--json"]
        command += ["--data", str(Path(folder, "data")), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        # The same dictionaries in every run.
        environment = {**os.environ, "PYTHONHASHSEED": "0", "TAILRACE_SERVE_LOG_LEVEL": "warning"}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        overdue = threading.Timer(PATIENCE, server.kill)
        overdue.start()
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            if not ready:
                raise SystemExit(f"the server did not start under valgrind:\n{report.read_text()}")
            if transfer is not None:
                asyncio.run(transfer(json.loads(ready)[transport]))
            server.send_signal(signal.SIGTERM)
            if server.wait() != 0:
                raise SystemExit(f"the server ended with {server.returncode} under valgrind:\n{report.read_text()}")
        finally:
            overdue.cancel()
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
        found = re.search(r"I\s+refs:\s+([\d,]+)", report.read_text())
        if found is None:
            raise SystemExit(f"valgrind says no count:\n{report.read_text()}")
        return int(found[1].replace(",", ""))


def count_all(cases: list[Case]) -> dict[str, float]:
    """Return the instructions of each case per unit of what it moves, by title."""
    # The client waits for its server most of the time, so that two cases share two processors well.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        idle = pool.submit(count_instructions, "grpc", None)
        counts = {case.title: (case, pool.submit(count_instructions, case.transport, case.transfer)) for case in cases}
        return {title: (count.result() - idle.result()) / case.amount for title, (case, count) in counts.items()}


def platform_key() -> str:
    """Return what counts depend on by their nature: the interpreter, how it was compiled, and the kind of processor."""
    version = ".".join(platform.python_version_tuple()[:2])
    # Debian's needs a sixth fewer than one that is compiled from the same source without further ado.
    flags = (sysconfig.get_config_var("PY_CORE_CFLAGS") or "").split()
    optimized = [flag for flag in flags if flag.startswith("-O")][-1:]
    return " ".join([platform.python_implementation(), version, platform.machine(), *optimized])


def compare(counted: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """Print a table, and return what is wrong with the counts."""
    problems = []
    units = {case.title: case.unit for case in CASES}
    for title, count in counted.items():
        known = recorded.get(title)
        change = "not recorded" if known is None else f"{count / known - 1:+7.1%}"
        print(f"{title:32} {count / 1e6:10.3f} million instructions per {units[title]:20} {change}")
        if known is None:
            problems.append(f"{title} is not in the record")
        elif count > known * (1 + TOLERANCE):
            problems.append(f"{title} needs {count / known - 1:.0%} more instructions than recorded")
        elif count < known * (1 - TOLERANCE):
            problems.append(f"{title} needs {1 - count / known:.0%} fewer instructions than recorded: record the gain")
    return problems


def main() -> None:
    """Count, and compare or record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the counts into the record")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="titles that contain one of these (default: all)")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed: scripts/setup-valgrind installs it where it may")
    cases = [case for case in CASES if not arguments.cases or any(part in case.title for part in arguments.cases)]
    if not cases:
        raise SystemExit(f"no case has such a title; there are: {', '.join(case.title for case in CASES)}")
    records: dict[str, dict[str, float]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    key = platform_key()
    counted = count_all(cases)
    if arguments.update:
        records[key] = {**records.get(key, {}), **{title: round(count) for title, count in counted.items()}}
        RECORD.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
        if others := sorted(records.keys() - {key}):
            # Where this is a gain, the others' counts are too high from now on, and whoever has such an interpreter
            # is told so by a check that fails.
            print(f"To be counted anew, too, each with its own interpreter: {', '.join(others)}")
    elif key not in records:
        # Another interpreter needs other numbers of instructions for the same work.
        print(f"There is no record for {key}; there are: {', '.join(records)}. Nothing to compare with:")
        compare(counted, counted)
        return
    problems = compare(counted, records[key])
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
