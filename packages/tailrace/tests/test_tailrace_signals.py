"""SIGINT and SIGTERM at every moment of a command: its exit code says so, and no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from tailrace_processes import ENVIRONMENT

PROGRAM = Path(__file__).parent / "tailrace_signalled.py"
LOOPS = ["uvloop", "asyncio"]


def signalled(*arguments: str) -> tuple[int, list[bytes]]:
    """Return the exit code, and the lines that are not empty of what was said."""
    # In a group of its own: its signals are for nobody else.
    ended = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), *arguments],
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        check=False,
        timeout=50,
    )
    return ended.returncode, (ended.stdout + ended.stderr).split()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("moment", ["leaving", "closing", "closed", "exiting", "leaving closing closed exiting"])
def test_an_interrupted_command_is_interrupted_once_more(loop: str, moment: str) -> None:
    assert signalled(loop, "waiting", *moment.split()) == (130, [])


@pytest.mark.parametrize("moment", ["beginning", "command", "leaving"])
def test_a_command_that_is_not_at_its_end_is_interrupted(moment: str) -> None:
    assert signalled("uvloop", moment) == (130, [])


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("moment", ["closing", "exiting"])
def test_a_command_that_has_succeeded_stays_so(loop: str, moment: str) -> None:
    assert signalled(loop, moment) == (0, [])


@pytest.mark.parametrize("loop", LOOPS)
def test_a_signal_that_comes_twice_at_once_is_one(loop: str) -> None:
    # As from `timeout`: to the process, and to its group.
    assert signalled(loop, "asked") == (0, [])
    assert signalled(loop, "asked-and-told") == (130, [])
