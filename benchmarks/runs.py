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
_TO = " to "
"""Between the dates of the first and of the last run."""


def together(reports: Sequence[Report]) -> Report:
    """Return the report of runs of the same suite.

    Args:
        reports: One of each run, or of several of them, in their order.

    Raises:
        ValueError: They have other numbers of rounds or other sizes.
    """
    first = reports[0]
    if any((report.rounds, report.size) != (first.rounds, first.size) for report in reports):
        raise ValueError("only runs with the same rounds and sizes can be reported on together")
    runs = [run for report in reports for run in report.each_run()]
    results = {
        name: _joined([run.results.get(name) for run in runs], first.rounds)
        for name in dict.fromkeys(name for run in runs for name in run.results)
    }
    # What went wrong is known of each report only, not of each of the runs that are in it.
    for name, result in results.items():
        found = [report.results[name] for report in reports if name in report.results]
        result.problem = "; ".join(dict.fromkeys(other.problem for other in found if other.problem)) or None
        result.voids = sum(other.voids for other in found)
    return replace(
        first,
        date=_TO.join(dict.fromkeys((first.date.partition(_TO)[0], reports[-1].date.rpartition(_TO)[2]))),
        libraries=" and ".join(dict.fromkeys(report.libraries for report in reports)),
        arguments=_command_of(reports),
        code=" and ".join(dict.fromkeys(report.code for report in reports)),
        seconds=sum(report.seconds for report in reports),
        load=max(report.load for report in reports),
        results=results,
        missing={name: why for report in reports for name, why in report.missing.items()},
        runs=len(runs),
    )


def _joined(results: Sequence[Result | None], rounds: int) -> Result:
    found = [result for result in results if result is not None]
    samples = [
        replace(sample, round=sample.round % rounds + number * rounds)
        for number, result in enumerate(results)
        if result is not None
        for sample in result.samples
    ]
    return replace(found[0], samples=samples)


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


def _command_of(reports: Sequence[Report]) -> str:
    """Return what made runs; where their results went changed nothing, and is left out."""
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--output")
    commands = []
    for report in reports:
        command = report.arguments.removeprefix(_times(report.runs)) if report.runs > 1 else report.arguments
        commands.append(shlex.join(folder.parse_known_args(shlex.split(command))[1]))
    count = sum(report.runs for report in reports)
    return f"{_times(count) if count > 1 else ''}{' and '.join(dict.fromkeys(commands))}"


def _times(count: int) -> str:
    return f"{count} times "


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
    print(write(together(reports), arguments.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
