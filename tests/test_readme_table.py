"""The README's table of speeds is that of the run that is recorded."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_is_that_of_the_recorded_run() -> None:
    command = [sys.executable, "benchmarks/readme_table.py", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
