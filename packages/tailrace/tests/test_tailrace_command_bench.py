"""`tailrace bench`: on a server that runs, on one of its own, and what is left when something goes wrong."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tailrace_processes import Run, Server, Start, needs_server

from tailrace._benchmarking import Amounts, Row

SCHEMES = ["grpc", "ws"]
SMALL = ["--size", "3MiB", "--lines", "300", "--latencies", "5", "--rounds", "2"]
ROWS = {"upload": "GB/s", "download": "GB/s", "lines": "thousand/s", "latency": "ms"}


@pytest.fixture(autouse=True)
def server_installed() -> None:
    needs_server()


def names_on(run: Run, url: str) -> list[object]:
    statuses: list[dict[str, Any]] = run("list", "--server", url, "--json").json()
    return [status["metadata"]["name"] for status in statuses]


def check_rows(found: dict[str, Any]) -> None:
    assert {row["row"]: row["unit"] for row in found["rows"]} == ROWS
    for row in found["rows"]:
        assert 0 < row["min"] <= row["median"] <= row["max"]
        assert ("client_processor_seconds_per_gigabyte" in row) == (row["unit"] == "GB/s")
        assert ("p99" in row) == (row["row"] == "latency")


def test_several_servers_are_measured_and_nothing_is_left_on_them(run: Run, server: Server) -> None:
    before = names_on(run, server.grpc)
    outcome = run("bench", "--server", server.grpc, "--server", server.http, *SMALL, "--json")
    assert (outcome.code, outcome.errors) == (0, "")
    over_grpc, over_websocket = outcome.json()
    for found, url in ((over_grpc, server.grpc), (over_websocket, server.ws)):
        assert (found["server"], found["size"], found["rounds"]) == (url, 3 * 1024**2, 2)
        check_rows(found)
        # An upload, the lines, and the line that is followed, in each of two rounds.
        assert (found["deleted"], found["left_behind"]) == (6, [])
    assert names_on(run, server.grpc) == before


def test_a_server_of_its_own_is_measured_and_goes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tailrace.toml").write_text('server = "carrier-pigeon://coop"\n[serve]\ndata = "nowhere"\n')
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    outcome = run("bench", *SMALL, TAILRACE_SERVER="carrier-pigeon://coop", TMPDIR=str(scratch))
    assert (outcome.code, outcome.errors) == (0, "")
    text = outcome.output.decode()
    assert [line.partition(":")[0] for line in text.splitlines() if line[0] != " "] == SCHEMES
    for what in ("upload of 3,145,728 bytes", "download of 3,145,728 bytes", "300 lines of 100 bytes", "to its reader"):
        assert text.count(what) == 2
    assert text.count("deleted the 6 resources") == 2
    assert os.listdir(scratch) == []
    assert sorted(os.listdir(tmp_path)) == ["scratch", "tailrace.toml"]


@pytest.mark.parametrize(
    ("size", "bytes"), [("1", 1), ("1000B", 1000), ("2KiB", 2048), ("2 kB", 2000), ("1MiB", 1024**2)]
)
def test_sizes_have_units(run: Run, server: Server, size: str, bytes: int) -> None:
    arguments = ["--lines", "1", "--latencies", "1", "--rounds", "1", "--json"]
    outcome = run("bench", "--server", server.ws, "--size", size, *arguments)
    assert outcome.code == 0, outcome.errors
    assert [found["size"] for found in outcome.json()] == [bytes]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "much"], "much is not a number of bytes, such as 256MiB"),
        (["--size", "0"], "0 is not a number of bytes"),
        (["--size", "1PiB"], "1PiB is not a number of bytes"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--context", "c"], "--context needs --server"),
        (["--server", "nonsense"], "is not SCHEME://HOST"),
    ],
)
def test_what_cannot_be_measured_is_wrong_usage(run: Run, arguments: list[str], said: str) -> None:
    outcome = run("bench", *arguments)
    assert (outcome.code, outcome.output) == (2, b"")
    assert said in outcome.errors


def test_a_server_that_is_not_there_is_said_to_be(run: Run) -> None:
    outcome = run("bench", "--server", "ws://127.0.0.1:1", *SMALL)
    assert (outcome.code, outcome.output) == (1, b"")
    assert "127.0.0.1:1" in outcome.errors


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_may_not_be_deleted_is_named(run: Run, start: Start, scheme: str) -> None:
    token = run("token", "add", "ci", "--scope", "upload", "--scope", "read").output.decode().strip()
    addresses = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    server = start("serve", "--json", "--tokens", "tokens.json", *addresses)
    assert server.stdout is not None
    url = json.loads(server.stdout.readline())[scheme]
    outcome = run("bench", "--server", url, *SMALL, "--rounds", "1", "--json", TAILRACE_CLIENT_TOKEN=token)
    assert outcome.code == 5
    found: dict[str, Any] = outcome.json()[0]
    check_rows(found)
    assert found["deleted"] == 0
    assert len(found["left_behind"]) == 3
    for reference in found["left_behind"]:
        assert f"left behind: {reference}: " in outcome.errors
        assert run("status", reference, TAILRACE_CLIENT_TOKEN=token).code == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_interruption_leaves_nothing(run: Run, start: Start, server: Server, scheme: str) -> None:
    url = server.urls[scheme]
    before = names_on(run, url)
    running = start("bench", "--server", url, *SMALL, "--rounds", "1000000")
    while len(names_on(run, url)) == len(before):
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    assert running.wait() == 130
    assert names_on(run, url) == before


def test_rows_are_told_in_figures_that_can_be_read() -> None:
    amounts = Amounts(size=10**9, lines=100_000, latencies=10, rounds=3)
    lines = Row("lines", "thousand/s", [1043.7, 999.6, 87.25])
    assert lines.text(amounts) == "  100,000 lines of 100 bytes          1,000 thousand/s (87.2 to 1,044)"
    upload = Row("upload", "GB/s", [1.5, 0.25], processor=[0.3, 0.4])
    assert upload.text(amounts).endswith("0.875 GB/s       (0.250 to 1.50)  client 0.35 s/GB")
    latency = Row("latency", "ms", [0.2], p99=[1.0])
    assert latency.text(amounts).endswith("0.200 ms         (0.200 to 0.200)  p99 1.00")
