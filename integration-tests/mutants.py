"""Break the code on purpose, once per saboteur, and see that the tests that cite its requirements notice.

    python integration-tests/mutants.py [NAME…]

For each saboteur the citing tests run with the defect in the code, until one of them fails. It has not been caught when
all of them pass, when there are none, or when the defect was never met. Exit code 0 when all were caught, 2 for a name
that no saboteur has.
"""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from saboteurs import LOG_VARIABLE, SABOTEURS, Saboteur

HERE = Path(__file__).parent
PROCESSES = 2
TEST_TIMEOUT = 15
"""Longest time of one test, in seconds: a defect may well make it hang."""
RUN_TIMEOUT = 600
"""Longest time of one run, in seconds."""


def try_saboteur(saboteur: Saboteur) -> tuple[bool, str]:
    """Run the citing tests with one defect; return whether it was caught, and what was seen."""
    # Processes that were left behind by a run without an end may still write.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        trace = Path(folder) / "trace"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider"),
            *("--timeout", str(TEST_TIMEOUT), "--basetemp", str(Path(folder) / "tests")),
            *("--saboteur", saboteur.name, "--proving", ",".join(saboteur.ids), "--cell", saboteur.cell),
            str(HERE),
        ]
        try:
            run = subprocess.run(
                command,
                cwd=HERE.parent,
                env={**os.environ, LOG_VARIABLE: str(trace)},
                capture_output=True,
                text=True,
                timeout=RUN_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False, f"no end within {RUN_TIMEOUT} s"
        noticed = [
            line
            for line in run.stdout.splitlines()
            if line.startswith(("FAILED integration-tests", "ERROR integration-tests"))
        ]
        if run.returncode == 1 and noticed and trace.exists():
            return True, noticed[0].split(" - ")[0].split("::", 1)[-1]
        if run.returncode == 5:
            return False, "no test cites it on this cell"
        if not trace.exists():
            return False, f"the defect was never met (pytest ended with {run.returncode})\n{run.stdout[-1500:]}"
        return (
            False,
            f"the tests stay green (pytest ended with {run.returncode})\n{run.stdout[-1500:]}{run.stderr[-500:]}",
        )


def main(names: list[str]) -> int:
    """Try all saboteurs, or those that are named."""
    unknown = sorted(set(names) - {saboteur.name for saboteur in SABOTEURS})
    if unknown:
        print(f"there is no saboteur {', '.join(unknown)}")
        return 2
    chosen = [saboteur for saboteur in SABOTEURS if not names or saboteur.name in names]
    missed = 0
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(PROCESSES) as pool:
        for saboteur, (caught, seen) in zip(chosen, pool.map(try_saboteur, chosen), strict=True):
            print(
                f"{'caught' if caught else 'MISSED'}  {saboteur.name} ({', '.join(saboteur.ids)}): {seen}", flush=True
            )
            missed += not caught
    print(f"{len(chosen) - missed} of {len(chosen)} saboteurs caught in {time.monotonic() - started:.0f} s")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
