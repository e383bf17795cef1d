"""Commands whose standard input, output or error is closed or cannot be written."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tailrace_processes import ENVIRONMENT, PROGRAM, Outcome, Run, Server

Shell = Callable[..., Outcome]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a command with what a shell does to its descriptors."""

    def run_in_shell(redirection: str, *arguments: str) -> Outcome:
        command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *PROGRAM, *arguments]
        outcome = subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return Outcome(outcome.returncode, outcome.stdout, outcome.stderr.decode())

    return run_in_shell


@pytest.fixture
def reference(run: Run, server: Server) -> str:
    return run("upload", "-", "--server", server.ws, stdin=b"one\ntwo\n").output.decode().strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    return path


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
def test_with_everything_closed_a_file_is_uploaded_and_saved(
    shell: Shell, run: Run, server: Server, reference: str, tmp_path: Path, scheme: str
) -> None:
    outcome = shell("<&- >&- 2>&-", "download", reference, "-o", "copy", "--server", server.urls[scheme])
    assert outcome == Outcome(0, b"", "")
    assert (tmp_path / "copy").read_bytes() == b"one\ntwo\n"
    assert shell("<&-", "upload", "copy", "--server", server.urls[scheme]).code == 0


@pytest.mark.parametrize("command", ["upload", "head"])
def test_a_closed_input_is_no_empty_input(shell: Shell, server: Server, command: str) -> None:
    options = ["--server", server.ws] if command == "upload" else []
    outcome = shell("<&-", command, "-", *options)
    assert outcome.code == 1
    assert outcome.errors == "tailrace: standard input: Bad file descriptor\n"


@pytest.mark.parametrize(
    ("redirection", "problem"), [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")]
)
@pytest.mark.parametrize("command", ["upload", "follow", "download", "lines", "status", "head"])
def test_output_that_cannot_be_written_is_a_failure(
    shell: Shell, server: Server, reference: str, file: Path, command: str, redirection: str, problem: str
) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no device that is always full")
    options = [] if command == "head" else ["--server", server.ws]
    outcome = shell(redirection, command, str(file) if command in ("upload", "head") else reference, *options)
    assert outcome == Outcome(1, b"", f"tailrace: standard output: {problem}\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_the_exit_code_holds_where_nothing_can_be_said(shell: Shell, redirection: str) -> None:
    assert shell(redirection, "status", "nonsense") == Outcome(3, b"", "")
    assert shell(redirection, "nonsense") == Outcome(2, b"", "")


def test_names_can_be_shown_in_any_encoding(run: Run, server: Server) -> None:
    reference = (
        run("upload", "-", "--name", "\u00fc\u2713", "--server", server.ws, PYTHONUTF8="1").output.decode().strip()
    )
    latin_only = {"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}
    outcome = run("status", reference, **latin_only)
    assert outcome.code == 0
    assert b"name:         \xfc\\u2713\n" in outcome.output
    (status,) = run("status", reference, "--json", **latin_only).json()
    metadata = status["metadata"]
    assert isinstance(metadata, dict)
    assert metadata["name"] == "\u00fc\u2713"


def test_a_full_disk_is_named_with_the_file(run: Run, server: Server, reference: str) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no device that is always full")
    outcome = run("download", reference, "-o", "/dev/full", "--server", server.ws)
    assert outcome == Outcome(1, b"", "tailrace: /dev/full: No space left on device\n")
