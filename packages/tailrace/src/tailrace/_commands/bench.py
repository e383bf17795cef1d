"""`tailrace bench`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path

import click

from tailrace._benchmarking import Amounts, Benchmark, Findings
from tailrace._exit_codes import ExitCode, exit_code_of
from tailrace._messages import complain, printable, say
from tailrace._numbers import WholeNumber
from tailrace._references import resolve_server
from tailrace._running import run_async
from tailrace._status_report import json_line

_SIZE = re.compile(r"([0-9]+) ?(|[KMGT]i?B|B)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
# Time that the server of one's own has to end by itself, in seconds.
_PATIENCE = 10.0


def _parse_size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Return the number of bytes that a text such as 256MiB says."""
    found = _SIZE.fullmatch(value.strip())
    size = int(found[1]) * _UNITS[found[2].lower()] if found else 0
    if size < 1:
        raise click.BadParameter(f"{printable(value)} is not a number of bytes, such as 256MiB", ctx, param)
    return size


@click.command(short_help="Measure a server: upload, download, lines, latency.")
@click.option(
    "--server",
    "servers",
    metavar="URL",
    multiple=True,
    help="Server to measure; repeatable. Without it one is started on a scratch folder, and measured over each"
    " transport; TAILRACE_SERVER is not meant here.",
)
@click.option(
    "--size", callback=_parse_size, default="256MiB", show_default=True, metavar="SIZE", help="Bytes of a transfer."
)
@click.option("--lines", type=WholeNumber(min=1), default=100_000, show_default=True, help="Lines of 100 bytes.")
@click.option(
    "--latencies",
    type=WholeNumber(min=1),
    default=200,
    show_default=True,
    help="Lines whose time to a reader is taken.",
)
@click.option("--rounds", type=WholeNumber(min=1), default=3, show_default=True, help="How often; medians are shown.")
@click.option("--context", metavar="ID", help="Context that is to own what is uploaded; see `tailrace context`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object in a line for each server.")
def bench(
    servers: tuple[str, ...],
    size: int,
    lines: int,
    latencies: int,
    rounds: int,
    context: str | None,
    as_json: bool,
) -> int:
    """Measure a server: upload, download, lines as fast as they go, and the time from a write to its reader.

    Client and reader are this program; an upload ends when it is on disk. All bytes are verified as always. What was
    uploaded is deleted again; what could not be deleted is named, and the exit code says so.
    """
    amounts = Amounts(size=size, lines=lines, latencies=latencies, rounds=rounds)
    if servers:
        return _measure([Benchmark(resolve_server(server), amounts, context) for server in servers], as_json)
    if context is not None:
        raise click.UsageError("--context needs --server: a server that is started for this has no contexts")
    with _own_server() as urls:
        # Nor is the user's settings file that of its clients.
        return _measure([Benchmark(urls[name], amounts, config=os.devnull) for name in ("grpc", "ws")], as_json)


def _measure(benchmarks: Sequence[Benchmark], as_json: bool) -> int:
    code = ExitCode.SUCCESS
    for benchmark in benchmarks:
        try:
            run_async(benchmark.run())
        finally:
            # Also of one that failed: what is left on somebody's server is to be known.
            for reference, error in benchmark.findings.left.items():
                complain(f"left behind: {reference}: {error}")
                code = exit_code_of(error)
        _print(benchmark.findings, benchmark.amounts, as_json)
    return code


def _print(findings: Findings, amounts: Amounts, as_json: bool) -> None:
    if as_json:
        rows = [row.fields() for row in findings.rows.values()]
        left = {"deleted": findings.deleted, "left_behind": list(findings.left)}
        say(json_line({"server": findings.url, "size": amounts.size, "rounds": amounts.rounds, "rows": rows, **left}))
        return
    say(printable(findings.url))
    for row in findings.rows.values():
        say(row.text(amounts))
    say(f"  deleted the {findings.deleted} resources that this made" if not findings.left else "  not all was deleted")


@contextlib.contextmanager
def _own_server() -> Generator[dict[str, str], None, None]:
    """Run a server on a scratch folder, as a process of its own; yield its URLs by scheme."""
    # Settings of the user are not those of this server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
    environment |= {"TAILRACE_CONFIG": os.devnull, "TAILRACE_SERVE_LOG_LEVEL": "warning"}
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as folder:
        command = [sys.executable, "-P", "-m", "tailrace", "serve", "--json", "--data", str(Path(folder, "data"))]
        command += ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        # In a session of its own: a Ctrl-C is for this program, which then ends the server.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise click.ClickException(f"the server ended with exit code {process.wait()} before it was ready")
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
