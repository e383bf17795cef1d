"""Measure Tailrace beside a raw loopback socket, interleaved, on this machine.

Run `make bench` (or this file with --help). Every figure is the median of the rounds; the ratio is that of each round
to the raw socket of the same round. Results go to standard output and, as JSON and Markdown, into a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import workloads
from raw_socket import plain_write_seconds, raw_socket_seconds
from server import ServerProcess, usage_of

from tailrace._malloc import tune_malloc

TRANSPORTS = ("grpc", "ws")
GIGABYTE = 1e9


@dataclass
class Row:
    """One measured case."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)

    def line(self) -> str:
        """Return the row as a line of a Markdown table."""
        cells = [self.name, _spread(self.values, self.unit), _spread(self.ratios, "")]
        cells += [_spread(self.server_cpu, "s/GB"), _spread(self.client_cpu, "s/GB")]
        return "| " + " | ".join(cells) + " |"


def _spread(values: list[float], unit: str) -> str:
    if not values:
        return "–"
    return f"{statistics.median(values):.2f} {unit} ({min(values):.2f}–{max(values):.2f})".replace("  ", " ")


class Benchmark:
    """All rounds of one run against one server."""

    def __init__(self, server: ServerProcess, scratch: Path, size: int, lines: int) -> None:
        self._server = server
        self._scratch = scratch
        self._size = size
        self._lines = lines
        self.rows: dict[str, Row] = {}

    def _row(self, name: str, unit: str) -> Row:
        return self.rows.setdefault(name, Row(name, unit))

    def round(self) -> None:
        """Measure every case once, each transfer behind a raw socket of its own."""
        for transport in TRANSPORTS:
            self._round_of(transport, self._server.urls[transport])

    def _round_of(self, transport: str, url: str) -> None:
        size = self._size
        reference = self._bulk(f"{transport} upload", workloads.upload(url, size))
        self._bulk(f"{transport} download", workloads.download(url, reference, size))
        followed = self._bulk(f"{transport} follow while uploading", workloads.follow_while_uploading(url, size))
        asyncio.run(workloads.delete(url, [reference, followed]))
        seconds = asyncio.run(workloads.write_lines(url, self._lines))
        self._row(f"{transport} lines of 100 bytes", "thousand/s").values.append(self._lines / seconds / 1e3)
        latencies = sorted(asyncio.run(workloads.follow_latencies(url, 300, 0.002)))
        row = self._row(f"{transport} write to follower, p50", "ms")
        row.values.append(statistics.median(latencies) * 1e3)
        row = self._row(f"{transport} write to follower, p99", "ms")
        row.values.append(latencies[int(len(latencies) * 0.99)] * 1e3)

    def _bulk(self, name: str, workload: Coroutine[Any, Any, tuple[float, str]]) -> str:
        """Measure one transfer beside a raw socket and a plain write; return the reference of its resource."""
        raw = raw_socket_seconds(self._size)
        self._row("raw socket", "GB/s").values.append(self._size / raw / GIGABYTE)
        path = self._scratch / "plain"
        self._row("plain write of a new file", "GB/s").values.append(
            self._size / plain_write_seconds(str(path), self._size) / GIGABYTE
        )
        path.unlink()
        server_before, client_before = self._server.usage().cpu, usage_of(os.getpid()).cpu
        seconds, reference = asyncio.run(workload)
        row = self._row(name, "GB/s")
        row.values.append(self._size / seconds / GIGABYTE)
        row.ratios.append(raw / seconds)
        row.server_cpu.append((self._server.usage().cpu - server_before) / (self._size / GIGABYTE))
        row.client_cpu.append((usage_of(os.getpid()).cpu - client_before) / (self._size / GIGABYTE))
        return reference


def describe_machine() -> str:
    """Return processor, cores, memory, kernel and interpreter in one line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release()}, CPython {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def render(rows: dict[str, Row], peak: int, size: int, rounds: int) -> str:
    """Return the results as Markdown."""
    lines = [
        f"Medians (min–max) of {rounds} rounds of {size >> 20} MiB; ratio to a raw loopback socket of the same round.",
        "",
        f"Machine: {describe_machine()}. Largest memory of the server: {peak >> 20} MiB.",
        "",
        "| case | rate | ratio to raw | server processor | client processor |",
        "|---|---|---|---|---|",
        *(row.line() for row in rows.values()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="size of a transfer, in MiB (default: 512)")
    parser.add_argument("--lines", type=int, default=200_000, help="lines of the row of small writes")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for results")
    arguments = parser.parse_args()
    tune_malloc()  # As the command line does: the clients of the benchmark run in this process.
    size = arguments.size << 20
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-benchmark-") as scratch,
        ServerProcess(Path(scratch, "data")) as server,
    ):
        benchmark = Benchmark(server, Path(scratch), size, arguments.lines)
        for _ in range(arguments.rounds):
            benchmark.round()
        peak = server.usage().peak
    table = render(benchmark.rows, peak, size, arguments.rounds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "latest.md").write_text(table)
    record = {
        "machine": describe_machine(),
        "size": size,
        "rounds": arguments.rounds,
        "server_peak": peak,
        "rows": [asdict(row) for row in benchmark.rows.values()],
    }
    (arguments.output / "latest.json").write_text(json.dumps(record, indent=1) + "\n")
    print(table)


if __name__ == "__main__":
    main()
