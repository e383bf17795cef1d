"""The shell script against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_processes import TAILRACE, Run, Server, Spawn

LINES = b"zero\none\ntwo\n"


@pytest.fixture
def script(examples: Path) -> Path:
    return examples / "curl" / "tailrace-curl"


@pytest.fixture
def reference(server: Server, run: Run) -> str:
    return run(*TAILRACE, "upload", "-", "--lines", "--server", server.ws, input=LINES).decode().splitlines()[0]


@pytest.mark.parametrize(
    ("part", "expected"), [("5:8", b"one"), ("9:", b"two\n"), (":4", b"zero"), ("5:99", LINES[5:])]
)
def test_bytes(script: Path, reference: str, run: Run, part: str, expected: bytes) -> None:
    assert run(script, "bytes", reference, part) == expected


@pytest.mark.parametrize(("part", "expected"), [("1:2", b"one\n"), ("1:", b"one\ntwo\n"), (":1", b"zero\n")])
def test_lines(script: Path, reference: str, run: Run, part: str, expected: bytes) -> None:
    assert run(script, "lines", reference, part) == expected


def test_status(script: Path, reference: str, run: Run) -> None:
    status = dict(line.lower().split(": ") for line in run(script, "status", reference).decode().splitlines())
    head = run(*TAILRACE, "head", "-", input=LINES).decode().strip()
    assert status == {"state": "completed", "size": "13", "lines": "3", "head": head}


def test_a_growing_resource_is_followed(script: Path, server: Server, spawn: Spawn, run: Run, tmp_path: Path) -> None:
    upload = spawn(*TAILRACE, "upload", "-", "--server", server.ws)
    reference = upload.stdout.readline().decode().strip()
    follower = spawn(script, "follow", reference)
    for line in LINES.splitlines(keepends=True):
        upload.write(line)
        assert follower.stdout.readline() == line
    assert upload.end()[0] == 0
    assert follower.end() == (0, b"", "")
    # A file that has a part of it already gets the rest.
    partial = tmp_path / "partial"
    partial.write_bytes(LINES[:7])
    assert run(script, "follow", reference, partial) == b""
    assert partial.read_bytes() == LINES


def test_a_cut_off_stream_and_an_error_are_failures(script: Path, server: Server, spawn: Spawn, run: Run) -> None:
    upload = spawn(*TAILRACE, "upload", "-", "--server", server.ws)
    reference = upload.stdout.readline().decode().strip()
    follower = spawn(script, "follow", reference)
    upload.write(b"compiling\n")
    assert follower.stdout.readline() == b"compiling\n"
    run(*TAILRACE, "delete", reference)
    code, output, errors = follower.end()
    assert code != 0
    assert output == b""
    assert errors.startswith("curl: ")
    code, output, errors = spawn(script, "lines", reference, "0:1").end()
    assert (code, output) == (22, b"")
    assert "404" in errors


def test_wrong_usage_is_explained(script: Path, spawn: Spawn) -> None:
    code, output, errors = spawn(script, "bytes", "http://localhost/r/x", "5").end()
    assert (code, output) == (2, b"")
    assert "FIRST:END" in errors
