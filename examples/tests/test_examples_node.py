"""The Node.js clients against a real server and the Python client."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from example_processes import TAILRACE, Process, Run, Server, Spawn

PATTERN = bytes(i % 251 for i in range(300_000))
LINES = b"zero\none\ntwo\nunterminated"


class Node:
    """The command line of one of the clients, and the base that it uploads to."""

    def __init__(self, name: str, examples: Path) -> None:
        self.command = ("node", examples / name / "cli.js")
        self._scheme = name.removeprefix("node-")

    def base(self, server: Server) -> str:
        return server.grpc if self._scheme == "grpc" else server.ws


@pytest.fixture(params=["node-websocket", "node-grpc"])
def node(request: pytest.FixtureRequest, examples: Path) -> Node:
    return Node(request.param, examples)


def reference_of(process: Process) -> str:
    return process.stdout.readline().decode().strip()


def status_of(run: Run, reference: str) -> dict[str, object]:
    status: dict[str, object] = json.loads(run(*TAILRACE, "status", "--json", reference))
    return status


def test_unit_tests(examples: Path, run: Run) -> None:
    output = run("npm", "--prefix", examples, "test", "--", "--test-reporter=tap").decode()
    assert re.search(r"^# fail 0$", output, re.MULTILINE)
    [passed] = re.findall(r"^# pass (\d+)$", output, re.MULTILINE)
    assert int(passed) >= 34


@pytest.mark.parametrize("size", [0, 1, 131_072, 300_000])
def test_python_downloads_what_node_uploaded(node: Node, server: Server, run: Run, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(PATTERN[:size])
    output = run(*node.command, "upload", "--server", node.base(server), source).decode()
    reference, ended = output.splitlines()
    head = run(*TAILRACE, "head", source).decode().strip()
    assert ended == f"COMPLETED {size} {head}"
    assert run(*TAILRACE, "download", reference) == PATTERN[:size]
    status = status_of(run, reference)
    assert status["state"] == "COMPLETED"
    assert status["head"] == head


def test_chunks_and_windows_of_the_server_are_kept(node: Node, narrow_server: Server, run: Run) -> None:
    base = node.base(narrow_server)
    reference, ended = run(*node.command, "upload", "--server", base, "-", input=PATTERN).decode().splitlines()
    assert ended.startswith("COMPLETED 300000 965b13e475cad3b10507ed896ded94f4")
    assert run(*node.command, "follow", reference) == PATTERN


def test_a_node_upload_is_followed_while_it_is_produced(node: Node, server: Server, spawn: Spawn) -> None:
    upload = spawn(*node.command, "upload", "--lines", "--name", "live.log", "--server", node.base(server), "-")
    reference = reference_of(upload)
    followers = [spawn(*TAILRACE, "follow", reference), spawn(*node.command, "follow", reference)]
    for line in (b"compiling\n", b"linking\n"):
        # The next line is not written before everyone has this one.
        upload.write(line)
        for follower in followers:
            assert follower.stdout.readline() == line
    code, output, errors = upload.end()
    assert (code, errors) == (0, "")
    assert output == b"COMPLETED 18 ecbfecba7745438a3e2a8b8a0df89e28\n"
    for follower in followers:
        assert follower.end() == (0, b"", "")


def test_node_follows_a_python_upload_while_it_grows(node: Node, server: Server, spawn: Spawn, run: Run) -> None:
    upload = spawn(*TAILRACE, "upload", "-", "--lines", "--server", node.base(server))
    reference = reference_of(upload)
    follower = spawn(*node.command, "follow", reference)
    for line in (b"compiling\n", b"linking\n"):
        upload.write(line)
        assert follower.stdout.readline() == line
        assert run(*node.command, "lines", reference, "0:").endswith(line)
    upload.write(PATTERN)
    upload.stdin.close()
    assert follower.stdout.read() == PATTERN
    assert follower.end() == (0, b"", "")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(":", LINES), ("1:3", b"one\ntwo\n"), ("3:", b"unterminated"), (":1", b"zero\n"), ("2:2", b""), ("4:", b"")],
)
def test_node_reads_lines(node: Node, server: Server, run: Run, lines: str, expected: bytes) -> None:
    output = run(*TAILRACE, "upload", "-", "--lines", "--server", node.base(server), input=LINES).decode()
    reference = output.splitlines()[0]
    assert run(*node.command, "lines", reference, lines) == expected
    assert run(*TAILRACE, "lines", reference, lines) == expected


def test_errors_have_their_codes(node: Node, server: Server, run: Run, spawn: Spawn) -> None:
    reference = run(*node.command, "upload", "--server", node.base(server), "-", input=b"x").decode().splitlines()[0]
    unknown = f"{node.base(server)}/r/{'0' * 32}"
    for arguments, code, problem in [
        (("lines", reference, "0:1"), 1, "line_access_disabled: "),
        (("follow", unknown), 1, "not_found: "),
        (("follow", "nonsense"), 1, "invalid_reference: "),
        (("upload", "-"), 2, "--server is missing"),
        (("lines", reference), 2, "wrong arguments"),
    ]:
        returned, output, errors = spawn(*node.command, *arguments).end()
        assert (returned, output) == (code, b"")
        assert errors.startswith(problem)


def test_an_interrupted_follower_cancels_and_hurts_nobody(node: Node, server: Server, spawn: Spawn) -> None:
    upload = spawn(*TAILRACE, "upload", "-", "--server", node.base(server))
    follower = spawn(*node.command, "follow", reference_of(upload))
    upload.write(b"compiling\n")
    assert follower.stdout.readline() == b"compiling\n"
    follower.interrupt(signal.SIGINT)
    assert follower.end() == (130, b"", "error: interrupted\n")
    upload.write(b"linking\n")
    assert upload.end()[0] == 0


def test_an_interrupted_upload_is_aborted_and_its_followers_are_told(
    node: Node, server: Server, spawn: Spawn, run: Run
) -> None:
    upload = spawn(*node.command, "upload", "--server", node.base(server), "-")
    reference = reference_of(upload)
    follower = spawn(*node.command, "follow", reference)
    upload.write(b"compiling\n")
    assert follower.stdout.readline() == b"compiling\n"
    upload.interrupt(signal.SIGINT)
    assert upload.stdout.read() == b""  # it has ended, though its input has not
    assert upload.end() == (130, b"", "error: interrupted\n")
    assert follower.end() == (1, b"", "resource_failed: failed: interrupted\n")
    status = status_of(run, reference)
    assert (status["state"], status["size"], status["reason"]) == ("FAILED", 10, "interrupted")


def test_an_upload_that_is_deleted_ends_at_once(node: Node, server: Server, spawn: Spawn, run: Run) -> None:
    upload = spawn(*node.command, "upload", "--server", node.base(server), "-")
    reference = reference_of(upload)
    run(*TAILRACE, "delete", reference)
    # Its input is still open: it does not wait for more of what nobody takes.
    assert upload.stdout.read() == b""
    code, _, errors = upload.end()
    assert code == 1
    assert errors.startswith("deleted: ")
