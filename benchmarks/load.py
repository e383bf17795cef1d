"""Load test with Locust: streamed results over gRPC, WebSocket and HTTP beside unary gRPC and plain REST.

    make load
    python benchmarks/load.py [--users 8] [--seconds 15] [--records 20000] [--rounds 3]

Starts `tailrace serve` with a source, and a plain service of the same records in another process; then lets users of
each kind at them, one kind after the other, round by round. Writes `benchmarks/LOAD.md` and the plots beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import matplotlib as mpl
import uvicorn
from server import ServerProcess, usage_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

mpl.use("agg")
from matplotlib import pyplot  # the backend comes first

HERE = Path(__file__).parent
USERS = ("StreamingGrpcUser", "UnaryGrpcUser", "WebSocketUser", "StreamingRestUser", "PlainRestUser")
"""Kinds of users, in the order of the table."""
PLAIN = ("UnaryGrpcUser", "PlainRestUser")
"""Of these, the ones of the plain service."""
_PAGE_BYTES = 3 * 1024 * 1024
"""What fits into a unary answer of gRPC, whose limit is 4 MiB unless somebody raises it."""


def person(number: int) -> dict[str, object]:
    """Return a record of about 100 bytes."""
    return {"id": number, "name": f"name {number}", "note": "x" * 60}


async def people(count: int = 10) -> AsyncGenerator[dict[str, object], None]:
    """The source of the streamed results; the server finds it by name."""
    for number in range(count):
        yield person(number)


# The plain service


async def _page(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    first, count = struct.unpack(">II", request)
    records, size = [], 0
    for number in range(first, count):
        data = json.dumps(person(number)).encode()
        size += len(data) + 4
        if size > _PAGE_BYTES:
            break
        records.append(struct.pack(">I", len(data)) + data)
    return struct.pack(">I", len(records)) + b"".join(records)


async def _list(request: Request) -> Response:
    count = int(request.query_params["count"])
    body = json.dumps([person(number) for number in range(count)])
    return Response(body, media_type="application/json")


async def serve_plain() -> None:
    """Serve the plain service until killed; print where."""
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Page": grpc.unary_unary_rpc_method_handler(_page)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("load.People", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = uvicorn.Config(Starlette(routes=[Route("/people", _list)]), host="127.0.0.1", port=0, log_level="error")
    rest = uvicorn.Server(config)
    serving = asyncio.create_task(rest.serve())
    while not rest.started:  # noqa: ASYNC110  # uvicorn has nothing to wait for
        await asyncio.sleep(0.01)
    address = rest.servers[0].sockets[0].getsockname()
    print(json.dumps({"unary": f"127.0.0.1:{port}", "rest": f"http://127.0.0.1:{address[1]}"}), flush=True)
    await serving


# The load


@dataclass
class Row:
    """What users of one kind have seen, over all rounds."""

    first: list[float] = field(default_factory=list)
    """Seconds to the first record, of every result."""
    rates: list[float] = field(default_factory=list)
    """Records per second over all users, of every round."""
    server_peak: int = 0
    client_peak: int = 0


def run_users(user: str, arguments: argparse.Namespace, targets: dict[str, str], report: Path) -> dict[str, Any]:
    """Let users of one kind run for a while and return what they report."""
    environment = {
        **os.environ,
        "LOAD_RECORDS": str(arguments.records),
        "LOAD_TARGETS": json.dumps(targets),
        "LOAD_REPORT": str(report),
    }
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "load_users.py"), user, "--headless", "--only-summary"]
    command += ["--users", str(arguments.users), "--spawn-rate", str(arguments.users)]
    command += ["--run-time", f"{arguments.seconds:.0f}s", "--stop-timeout", "30", "--loglevel", "ERROR"]
    subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(report.read_text())
    if found["failures"] or not found["result_seconds"]:
        raise RuntimeError(f"{user}: {found['failures']} failures: {found['errors']}")
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Row]:
    """Run all rounds."""
    rows = {user: Row() for user in USERS}
    with tempfile.TemporaryDirectory(prefix="tailrace-load-") as folder:
        for _ in range(arguments.rounds):
            for user in USERS:
                # New processes each time: the memory of one kind of users is not that of another.
                row = rows[user]
                if user in PLAIN:
                    command = [sys.executable, __file__, "--plain"]
                    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as plain:
                        assert plain.stdout is not None
                        found = run_users(user, arguments, json.loads(plain.stdout.readline()), Path(folder, "report"))
                        row.server_peak = max(row.server_peak, usage_of(plain.pid).peak)
                        plain.terminate()
                else:
                    config = Path(folder, "tailrace.toml")
                    config.write_text('[sources.people]\nfunction = "load:people"\n')
                    os.environ["PYTHONPATH"] = str(HERE)
                    with ServerProcess(Path(folder, "data"), config=config) as server:
                        targets = {**server.urls, "grpc": server.urls["grpc"].removeprefix("grpc://")}
                        found = run_users(user, arguments, targets, Path(folder, "report"))
                        row.server_peak = max(row.server_peak, server.usage().peak)
                row.first += found["first_record_seconds"]
                row.rates.append(arguments.records * len(found["result_seconds"]) / arguments.seconds)
                row.client_peak = max(row.client_peak, found["peak_bytes"])
                print(f"{user}: {row.rates[-1]:,.0f} records/s", file=sys.stderr)
    return rows


def table(rows: dict[str, Row], arguments: argparse.Namespace) -> str:
    """Return the report."""
    lines = [
        "# Load test",
        "",
        f"Made by `python benchmarks/load.py --users {arguments.users} --seconds {arguments.seconds:g} "
        f"--records {arguments.records} --rounds {arguments.rounds}` on {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores, everything on one machine. Users read results of {arguments.records:,} records of "
        "about 100 bytes, one after the other. Time to the first record over all results; records per second of all "
        "users, median of the rounds; largest resident memory of the server and of all users together.",
        "",
        "| users | first record p50 / p99, ms | records/s (min to max) | server, MiB | users, MiB |",
        "|---|---|---|---|---|",
    ]
    for user, row in rows.items():
        ordered = sorted(row.first)
        p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
        rates = f"{statistics.median(row.rates):,.0f} ({min(row.rates):,.0f} to {max(row.rates):,.0f})"
        memory = f"{row.server_peak >> 20} | {row.client_peak >> 20}"
        lines.append(f"| {user.removesuffix('User')} | {p50:.1f} / {p99:.1f} | {rates} | {memory} |")
    lines += ["", "![Time to the first record](load-first-record.svg)", "", "![Records per second](load-rates.svg)", ""]
    return "\n".join(lines)


def plot(rows: dict[str, Row]) -> None:
    """Write the plots."""
    names = [user.removesuffix("User") for user in rows]
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.boxplot([[1e3 * value for value in row.first] for row in rows.values()], tick_labels=names, showfliers=False)
    axes.set(ylabel="time to the first record, ms", yscale="log")
    figure.tight_layout()
    figure.savefig(HERE / "load-first-record.svg", metadata={"Date": None})
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.bar(names, [statistics.median(row.rates) for row in rows.values()])
    axes.set(ylabel="records per second")
    figure.tight_layout()
    figure.savefig(HERE / "load-rates.svg", metadata={"Date": None})


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help="be the plain service")
    arguments = parser.parse_args()
    if arguments.plain:
        asyncio.run(serve_plain())
        return
    rows = measure(arguments)
    (HERE / "LOAD.md").write_text(table(rows, arguments))
    plot(rows)
    print(table(rows, arguments))


if __name__ == "__main__":
    main()
