"""Makes the module beside the tests importable, whatever pytest's import mode; a real server, and commands."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tailrace_processes import ENVIRONMENT, PROGRAM, Outcome, Run, Server, Start, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start commands in an empty folder; what still runs at the end is killed."""
    running: list[subprocess.Popen[bytes]] = []

    def start_command(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        running.append(process)
        return process

    yield start_command
    for process in running:
        with process:
            process.kill()


@pytest.fixture
def run(start: Start) -> Run:
    """Run a command to its end."""

    def run_command(*arguments: str, stdin: bytes = b"", **environment: str) -> Outcome:
        process = start(*arguments, **environment)
        output, errors = process.communicate(stdin)
        return Outcome(process.returncode, output, errors.decode())

    return run_command
