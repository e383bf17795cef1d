"""Measure Tailrace beside a raw loopback socket, interleaved, on this machine.

    make bench, make bench-quick, or python benchmarks/run.py [--quick] [--only REGEX] [--peers] [--list]

Rounds are outermost: each measures every row once, directly behind a raw socket of its own. Results are written as JSON
and as Markdown; `plots.py` draws them.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

# Modules of rows: importing them registers what they measure.
import baseline_rows
import connection_rows
import fan_out_rows
import flat_rows
import goals
import line_rows
import peer_report
import peer_rows
import record_rows
import setting_rows
import transfer_rows
from cases import CASES, FULL, GIGABYTE, GROUPS, LIMITS, MEBIBYTE, QUICK, Case, Result, Run, Sample, VoidSampleError
from machine import describe_code, describe_libraries, describe_machine, load_average
from report import Report, render

from tailrace._grpc_core import tune_grpc
from tailrace._malloc import tune_malloc

ROWS = (baseline_rows, transfer_rows, line_rows, fan_out_rows, connection_rows, flat_rows, setting_rows, record_rows)
RESULTS = Path(__file__).parent / "results"
RAW_SIZE = 256 * MEBIBYTE
"""Bytes of the raw socket directly before a measurement."""
ATTEMPTS = 3
"""How often a row is measured until its sample is valid."""
LONG = 1.0
"""Seconds; who works for longer is not much slower for having rested before."""


def has_rested(case: Case, result: Result) -> bool:
    """Return whether a row is to be done once before it counts: not if it takes long, or may do so."""
    return result.samples[0].seconds < LONG if result.samples else case.patience is None


def measure_valid(run: Run, case: Case, result: Result) -> Sample:
    """Measure a row, and again if a sample is void; the result counts how often.

    Raises:
        VoidSampleError: It was void each of :data:`ATTEMPTS` times.
    """
    rested = has_rested(case, result)
    for _ in range(ATTEMPTS - 1):
        try:
            return run.measure(case, rested=rested)
        except VoidSampleError as error:
            result.voids += 1
            print(f"{case.id}: measured again: {error}", file=sys.stderr)
    return run.measure(case, rested=rested)


def measure_round(run: Run, number: int, cases: list[Case], results: dict[str, Result]) -> None:
    """Measure every row once."""
    raw = baseline_rows.raw_socket_of(run)
    size = min(RAW_SIZE, run.scale.size)
    for case in cases:
        if case.slow and number >= run.scale.slow_rounds:
            continue
        result = results[case.id]
        if result.problem is not None:
            continue
        if case.patience is not None and result.samples and result.samples[0].seconds > case.patience:
            continue
        begin = time.perf_counter()
        by_hand = None if case.floor is None else CASES[case.floor]
        try:
            beside = {other: run.measure(CASES[other]).value for other in case.beside}
            if run.scale.prepared:
                raw.seconds(size)
            limit = size / raw.seconds(size) / GIGABYTE
            floor = run.measure(by_hand).value if by_hand is not None and by_hand.group == LIMITS else 0.0
            sample = measure_valid(run, case, result)
        except Exception as error:  # noqa: BLE001  # one row that fails shall not cost all others
            result.problem = f"{type(error).__name__}: {error}"
            print(f"{case.id}: {result.problem}", file=sys.stderr)
            traceback.print_exc()
            continue
        sample.round, sample.raw, sample.floor, sample.beside = number, limit, floor, beside
        result.samples.append(sample)
        took = time.perf_counter() - begin
        print(f"round {number + 1}: {case.id}: {sample.value:.3f} {case.unit} ({took:.1f} s)", file=sys.stderr)


def measure(cases: list[Case], run: Run) -> dict[str, Result]:
    """Measure all rounds."""
    results = {case.id: Result.of(case) for case in cases}
    for number in range(run.scale.rounds):
        measure_round(run, number, cases, results)
    return results


def write(report: Report, folder: Path) -> str:
    """Write the report as JSON and Markdown, and return the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    text = render(report, [goals.section(report), peer_report.section(report)])
    record = report.to_text()
    (folder / "latest.md").write_text(text)
    (folder / "latest.json").write_text(record)
    (folder / f"{report.date.replace(':', '').replace(' ', '-')}.json").write_text(record)
    return text


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer: under three minutes")
    parser.add_argument("--only", metavar="REGEX", default="", help="rows whose id has this in it, such as '^ws.*up'")
    parser.add_argument("--rounds", type=int, help="rounds")
    parser.add_argument("--size", type=int, metavar="MIB", help="size of a transfer, in MiB")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for results")
    parser.add_argument("--peers", action="store_true", help="measure those that `scripts/setup-peers` installed, too")
    parser.add_argument("--list", action="store_true", help="only name the rows")
    return parser.parse_args(words)


def main() -> int:
    """Run the suite; return the exit code."""
    if tune_grpc():
        # As the command line does: the clients of the benchmark run in this process, which has loaded gRPC already.
        os.execv(sys.executable, sys.orig_argv)
    arguments = arguments_of()
    scale = QUICK if arguments.quick else FULL
    if arguments.rounds is not None:
        scale = replace(scale, rounds=arguments.rounds)
    if arguments.size is not None:
        scale = replace(scale, size=arguments.size * MEBIBYTE)
    missing = peer_rows.register() if arguments.peers else {}
    cases = [
        case
        for group in GROUPS
        for case in CASES.values()
        if case.group == group and re.search(arguments.only, case.id)
    ]
    if arguments.list or not cases:
        print("\n".join(f"{case.id:<32} {case.title}" for case in cases) or "no row matches")
        return 0 if cases else 2
    logging.basicConfig(level=logging.ERROR)  # Lost connections are what some rows are about.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Servers end with the run, however it ends.
    tune_malloc()  # As the command line does: the clients of the benchmark run in this process.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    begin, load = time.perf_counter(), load_average()
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as scratch, Run(scale, Path(scratch)) as run:
        results = measure(cases, run)
    report = Report(
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        machine=describe_machine(),
        libraries=describe_libraries(),
        code=describe_code(),
        arguments=shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        rounds=scale.rounds,
        size=scale.size,
        seconds=time.perf_counter() - begin,
        load=load,
        results=results,
        missing=missing,
    )
    print(write(report, arguments.output))
    return 1 if any(result.problem for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
