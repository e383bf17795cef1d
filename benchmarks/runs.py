"""Run the suite several times, one after the other, and report on all of the runs together.

    make bench-three, or python benchmarks/runs.py COUNT [what `run.py` takes]
    python benchmarks/runs.py --of FIRST.json SECOND.json ... [--output FOLDER]

Each run is a process of its own with servers of its own. Whether something is reached is then told of each of them; all
else in the report is of all their rounds. The second form reports on runs that are there already.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cases import Result
from report import Report
from run import RESULTS, write

RUN = Path(__file__).with_name("run.py")


def together(reports: Sequence[Report], arguments: str) -> Report:
    """Return the report of runs of the same suite.

    Args:
        reports: One of each run, in their order.
        arguments: The command that made them.

    Raises:
        ValueError: They have other numbers of rounds or other sizes, or are not of single runs.
    """
    first = reports[0]
    if any((report.rounds, report.size, report.runs) != (first.rounds, first.size, 1) for report in reports):
        raise ValueError("only single runs with the same rounds and sizes can be reported on together")
    return replace(
        first,
        arguments=arguments,
        code=" and ".join(dict.fromkeys(report.code for report in reports)),
        seconds=sum(report.seconds for report in reports),
        load=max(report.load for report in reports),
        results={
            name: _joined([report.results.get(name) for report in reports], first.rounds)
            for name in dict.fromkeys(name for report in reports for name in report.results)
        },
        missing={name: why for report in reports for name, why in report.missing.items()},
        runs=len(reports),
    )


def _joined(results: Sequence[Result | None], rounds: int) -> Result:
    found = [result for result in results if result is not None]
    samples = [
        replace(sample, round=sample.round + number * rounds)
        for number, result in enumerate(results)
        if result is not None
        for sample in result.samples
    ]
    problems = dict.fromkeys(result.problem for result in found if result.problem)
    voids = sum(result.voids for result in found)
    return replace(found[0], samples=samples, problem="; ".join(problems) or None, voids=voids)


def measured(count: int, words: list[str], output: Path) -> tuple[list[Path], bool]:
    """Run the suite; return what each run recorded, and whether something failed in one of them."""
    records, failed = [], False
    for number in range(1, count + 1):
        folder = output / f"run-{number}"
        record = folder / "latest.json"
        record.unlink(missing_ok=True)
        print(f"run {number} of {count}", file=sys.stderr)
        command = [sys.executable, str(RUN), *words, "--output", str(folder)]
        failed |= subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode != 0
        if not record.exists():
            raise SystemExit(f"run {number} of {count} came to nothing")
        records.append(record)
    return records, failed


def command_of(reports: Sequence[Report]) -> str:
    """Return what made runs that were there already; where their results went changed nothing, and is left out."""
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--output")
    commands = (shlex.join(folder.parse_known_args(shlex.split(report.arguments))[1]) for report in reports)
    return f"{len(reports)} times {' and '.join(dict.fromkeys(commands))}"


def main() -> int:
    """Run, report, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, help="how often; what follows is for `run.py`")
    parser.add_argument("--of", nargs="+", type=Path, metavar="FILE", help="report on these runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for results")
    arguments, words = parser.parse_known_args()
    if (arguments.count is None) == (arguments.of is None) or (arguments.of and words):
        parser.error("say either how often the suite shall run or what to report on")
    failed, records = False, arguments.of
    if records is None:
        records, failed = measured(arguments.count, words, arguments.output)
    reports = [Report.from_json(json.loads(record.read_text())) for record in records]
    command = shlex.join(["python", "benchmarks/runs.py", str(len(reports)), *words])
    if arguments.of:
        command = command_of(reports)
    print(write(together(reports, command), arguments.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
