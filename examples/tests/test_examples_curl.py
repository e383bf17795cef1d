"""The shell script against a real server."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from example_processes import TAILRACE, Run, Server, Spawn, serve
from record_settings import record_settings

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


# Results


@pytest.fixture(scope="module")
def record_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("records")
    settings = record_settings(folder)
    with closing(sqlite3.connect(folder / "shop.sqlite")) as shop:
        shop.executemany(
            "INSERT INTO contacts VALUES (?, ?)", [("Ada", "a@x"), ("Grace & Zoë", "b@x"), ("Alan", "c@x")]
        )
        shop.commit()
    with serve(folder, settings) as server:
        yield server


def test_records_are_lines(record_server: Server, script: Path, run: Run) -> None:
    lines = run("curl", "--silent", "-N", f"{record_server.http}/query/contacts").splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["Ada", "Alan", "Grace & Zoë"]
    assert run("curl", "--silent", "-N", f"{record_server.http}/query/contacts?max_results=1").splitlines() == lines[:1]
    assert run(script, "query", record_server.ws, "contacts").splitlines() == lines
    found = run(script, "query", record_server.http, "named", "name=Grace & Zoë", "max_results=5")
    assert found.splitlines() == lines[2:]


def test_records_arrive_as_they_are_produced(record_server: Server, spawn: Spawn) -> None:
    # A source without an end: whatever is read is read before its last record exists.
    query = spawn("curl", "--silent", "-N", f"{record_server.http}/query/ticks")
    assert [json.loads(query.stdout.readline()) for _ in range(3)] == [{"tick": number} for number in range(3)]
    query.interrupt(signal.SIGTERM)
    assert query.end()[0] == -signal.SIGTERM


def test_what_cannot_be_asked_is_a_failure(record_server: Server, script: Path, spawn: Spawn) -> None:
    for arguments in (["others"], ["contacts", "colour=red"], ["ticks", "count=many"]):
        code, output, errors = spawn(script, "query", record_server.ws, *arguments).end()
        assert (code, output) == (22, b"")
        assert errors.startswith("curl: ")
    assert spawn(script, "query", record_server.ws, "contacts", "colour").end()[0] == 2


def test_results_that_are_cut_off_are_a_failure(record_server: Server, script: Path, spawn: Spawn) -> None:
    query = spawn(script, "query", record_server.ws, "failing")
    code, output, errors = query.end()
    assert code == 18
    assert [json.loads(line) for line in output.splitlines()] == [{"n": 0}, {"n": 1}]
    assert errors.startswith("curl: ")
