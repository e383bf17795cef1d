"""What producers do when the server is away, and uploads that outlive their process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cells import PROCESS_CELLS, WIRED_CELLS, Cell, Transport
from manifest import proves
from server_process import DEADLINE, ServerProcess, environment, read_line, run, spawn
from servers import LocalServer, NewServer
from tcp_proxy import TcpProxy

from tailrace_client_upload_api import DropOldest, SpoolToDisk, UploadRequest
from tailrace_common_api import (
    ConfigurationError,
    IntegrityError,
    Metadata,
    NotFound,
    ResourceFailed,
    ResourceState,
    SourceChanged,
)
from tailrace_impl_common import ConnectedClient, LastingUpload, head_of

KIB = 1024


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another process and tells nobody."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def pass_on(proxy: TcpProxy) -> None:
    """Let a network that stalls go on."""
    proxy.release()


# While the server is away


@proves("UPL-19")
@pytest.mark.parametrize("policy", ["spool", "drop"])
async def test_a_policy_changes_nothing_where_the_server_is_there(
    client: ConnectedClient, tmp_path: Path, policy: str
) -> None:
    chosen = SpoolToDisk(directory=tmp_path / "spool") if policy == "spool" else DropOldest()
    data = os.urandom(3_000_000)
    async with client.upload("a", while_away=chosen) as upload:
        for start in range(0, len(data), 70_001):
            await upload.write(data[start : start + 70_001])
        checkpoint = await upload.flush()
        assert (checkpoint.size, checkpoint.head) == (len(data), head_of(data))
    assert (upload.status.state, upload.status.head) == (ResourceState.COMPLETED, head_of(data))
    async with client.open(upload.reference) as resource:
        assert await resource.read(0, len(data)) == data


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-19")
async def test_a_spool_takes_what_is_written_while_the_network_stalls(
    server: LocalServer, cell: Cell, tmp_path: Path
) -> None:
    data = os.urandom(12_000_000)
    async with TcpProxy(server.url(cell.transport)) as proxy:
        client = server.connect(cell.transport, url=proxy.url)
        async with client.upload("a", while_away=SpoolToDisk(directory=tmp_path / "spool")) as upload:
            await upload.write(data[:1000])
            await upload.flush()
            proxy.stall()
            # More than two windows: a writer that waits for the server would wait here for ever.
            await upload.write(data[1000:])
            assert upload.offset == len(data)
            assert upload.announced.size == 1000
            pass_on(proxy)
            proxy.cut()
        assert upload.status.head == head_of(data)
        assert os.listdir(tmp_path / "spool") == []
        await client.close()


@pytest.mark.cells(WIRED_CELLS)
@proves("UPL-19")
async def test_the_oldest_lines_are_dropped_and_a_marker_tells_of_them(server: LocalServer, cell: Cell) -> None:
    lines = [b"%06d %s\n" % (number, b"." * 90) for number in range(150_000)]
    async with TcpProxy(server.url(cell.transport)) as proxy:
        client = server.connect(cell.transport, url=proxy.url)
        async with client.upload("a", lines=True, while_away=DropOldest(max_bytes=256 * KIB)) as upload:
            await upload.write(lines[0])
            await upload.flush()
            proxy.stall()
            for line in lines[1:]:
                await upload.write(line)
            pass_on(proxy)
            proxy.cut()
        async with client.open(upload.reference) as resource:
            stored = await resource.read(0, upload.status.size)
        await client.close()
    kept = stored.splitlines(keepends=True)
    position = 0
    for line in kept:
        if line.startswith(b"[tailrace: "):
            lost, count = int(line.split()[1]), int(line.split()[3].lstrip(b"("))
            assert lost == sum(map(len, lines[position : position + count]))
            position += count
        else:
            assert line == lines[position]
            position += 1
    assert position == len(lines)
    assert upload.status.lines == len(kept)
    assert any(line.startswith(b"[tailrace: ") for line in kept)
    assert kept[0] == lines[0]


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-19", "USE-6")
@pytest.mark.parametrize("policy", ["wait", "spool"])
def test_a_pipeline_survives_a_server_that_was_away(
    settled_server_process: ServerProcess, cell: Cell, tmp_path: Path, policy: str
) -> None:
    urls = address_of(settled_server_process, cell)
    with spawn(tmp_path, "upload", "-", "--server", urls, "--while-away", policy) as uploader:
        assert uploader.stdin is not None
        assert uploader.stdout is not None
        assert uploader.stderr is not None
        reference = read_line(uploader.stdout, uploader).decode().strip()
        with spawn(tmp_path, "follow", reference, "--server", urls) as follower:
            assert follower.stdout is not None
            uploader.stdin.write(b"before\n")
            assert read_line(follower.stdout, follower) == b"before\n"
            settled_server_process.kill()
            uploader.stdin.write(b"meanwhile\n")
            assert b"the server is away" in read_line(uploader.stderr, uploader)
            with restarted(settled_server_process, cell, urls, tmp_path):
                assert read_line(uploader.stderr, uploader) == b"tailrace: the server is back\n"
                assert read_line(follower.stdout, follower) == b"meanwhile\n"
                uploader.stdin.write(b"after\n")
                uploader.stdin.close()
                assert read_line(follower.stdout, follower) == b"after\n"
                assert follower.wait(DEADLINE) == 0
                assert uploader.wait(DEADLINE) == 0
        assert uploader.stderr.read() == b""


def address_of(server: ServerProcess, cell: Cell) -> str:
    return server.url(cell.transport)


@contextmanager
def restarted(server: ServerProcess, cell: Cell, url: str, folder: Path) -> Iterator[None]:
    """Run a killed server again where it was."""
    option = "--grpc" if cell.transport is Transport.GRPC else "--http"
    with spawn(folder, "serve", "--json", "--data", server.data, option, url.rpartition("/")[2]) as process:
        assert process.stdout is not None
        assert json.loads(read_line(process.stdout, process))["event"] == "ready"
        try:
            yield
        finally:
            process.kill()


# Uploads that outlive their process


_SEGMENT_HEADER = 40
"""Bytes in front of those of a segment of a spool, which is named by the offset of the first one."""


def spooled(folder: Path) -> int:
    """Return how many bytes of standard input are on disk."""
    directory = folder / "state.spool"
    return sum(path.stat().st_size - _SEGMENT_HEADER for path in directory.iterdir()) if directory.exists() else 0


def spooled_up_to(folder: Path) -> int:
    """Return the offset behind the last byte of standard input that is on disk."""
    last = max((folder / "state.spool").iterdir(), default=None)
    # One that is announced goes, at any moment.
    with suppress(FileNotFoundError):
        return 0 if last is None else int(last.name) + last.stat().st_size - _SEGMENT_HEADER
    return 0


def begin(folder: Path, *arguments: object) -> tuple[subprocess.Popen[bytes], str]:
    """Start an upload with a state file; return it and its reference."""
    uploader = spawn(folder, "upload", *arguments, "--state", "state")
    assert uploader.stdout is not None
    return uploader, read_line(uploader.stdout, uploader).decode().strip()


def feed(uploader: subprocess.Popen[bytes], data: bytes) -> None:
    assert uploader.stdin is not None
    view = memoryview(data)
    while view:
        view = view[uploader.stdin.write(view) or 0 :]


def left(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith("state")]


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-18", "UPL-9")
def test_standard_input_goes_on_where_its_process_was_killed(
    server_process: ServerProcess, cell: Cell, tmp_path: Path
) -> None:
    parts = [os.urandom(5_000_000) for _ in range(3)]
    uploader, reference = begin(tmp_path, "-", "--server", address_of(server_process, cell))
    with uploader:
        feed(uploader, parts[0])
        wait_until(lambda: status(tmp_path, reference)["size"] == len(parts[0]))
        # What is read from here on cannot be delivered before its process dies.
        os.kill(server_process.pid, signal.SIGSTOP)
        feed(uploader, parts[1])
        wait_until(lambda: spooled_up_to(tmp_path) == len(parts[0]) + len(parts[1]))
        uploader.kill()
        os.kill(server_process.pid, signal.SIGCONT)
    assert sorted(left(tmp_path)) == ["state", "state.lock", "state.spool"]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    # The server is known from the state.
    last = run(tmp_path, "upload", "-", "--state", "state", "--json", stdin=parts[2])
    assert last.returncode == 0, last.stderr
    accepted, finished = map(json.loads, last.stdout.splitlines())
    assert accepted["reference"] == reference
    assert finished["status"]["head"] == head_of(b"".join(parts)).hex()
    assert b"continued at offset 10000000" in last.stderr
    assert run(tmp_path, "follow", reference).stdout == b"".join(parts)
    assert left(tmp_path) == []


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-18")
def test_standard_input_survives_many_deaths_of_both_sides(
    server_process: ServerProcess, cell: Cell, tmp_path: Path
) -> None:
    written = b""
    reference = ""
    for turn in range(4):
        uploader, shown = begin(tmp_path, "-", "--server", address_of(server_process, cell), "--max-waiting", 1 << 20)
        with uploader:
            assert shown.rpartition("/")[2] == (reference or shown).rpartition("/")[2]
            reference = shown
            # More than the spool holds, so that some of it was announced and dropped.
            for _ in range(turn + 1):
                piece = os.urandom(700_000)
                feed(uploader, piece)
                written += piece
                size = len(written)
                wait_until(lambda: status(tmp_path, reference)["size"] == size)  # noqa: B023 - called at once
            uploader.kill()
        server_process.kill()
        server_process.start()
        reference = f"{address_of(server_process, cell)}/r/{reference.rpartition('/')[2]}"
    assert spooled(tmp_path) <= 1 << 20
    end = run(tmp_path, "upload", "-", "--state", "state", "--server", address_of(server_process, cell))
    assert end.returncode == 0, end.stderr
    assert run(tmp_path, "download", reference).stdout == written


def status(folder: Path, reference: str) -> dict[str, object]:
    outcome = run(folder, "status", reference, "--json")
    found: dict[str, object] = json.loads(outcome.stdout)
    return found


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-18", "UPL-9")
@pytest.mark.parametrize("encoding", [None, "utf-16"])
def test_a_file_goes_on_where_its_process_was_killed(
    server_process: ServerProcess, cell: Cell, tmp_path: Path, encoding: str | None
) -> None:
    text = "".join(f"{number:07d} äöü\n" for number in range(1_500_000))
    content = text.encode(encoding or "utf-8")
    (tmp_path / "file").write_bytes(content)
    more = ["--encoding", encoding] if encoding else []
    for _ in range(20):
        uploader, reference = begin(tmp_path, "file", "--server", address_of(server_process, cell), *more)
        with uploader:
            # From here on it cannot get further than a window; unless it has come to its end already.
            os.kill(server_process.pid, signal.SIGSTOP)
            uploader.kill()
        os.kill(server_process.pid, signal.SIGCONT)
        if status(tmp_path, reference)["state"] != "COMPLETED":
            break
        (tmp_path / "state").unlink(missing_ok=True)
    refused = run(tmp_path, "upload", "other", "--follow", "--state", "state")
    assert refused.returncode == 2
    assert b"belongs to an upload of" in refused.stderr
    again = run(tmp_path, "upload", "file", "--state", "state", *more)
    assert again.returncode == 0, again.stderr
    assert again.stdout.decode().strip() == reference
    assert b"continued at offset" in again.stderr
    assert run(tmp_path, "follow", reference).stdout == text.encode()
    assert left(tmp_path) == []


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-18", "UPL-2")
def test_a_growing_file_goes_on_where_its_process_was_killed(
    server_process: ServerProcess, cell: Cell, tmp_path: Path
) -> None:
    url = address_of(server_process, cell)
    (tmp_path / "log").write_bytes(b"one\n")
    uploader, reference = begin(tmp_path, "log", "--follow", "--server", url)
    with uploader, spawn(tmp_path, "follow", reference) as follower:
        assert follower.stdout is not None
        assert read_line(follower.stdout, follower) == b"one\n"
        uploader.kill()
        uploader.wait(DEADLINE)
        with open(tmp_path / "log", "ab") as log:
            log.write(b"two\n")
        second, same = begin(tmp_path, "log", "--follow", "--server", url)
        with second:
            assert same == reference
            assert read_line(follower.stdout, follower) == b"two\n"
            # A third one is kept out.
            outcome = run(tmp_path, "upload", "log", "--follow", "--server", url, "--state", "state")
            assert outcome.returncode == 2
            assert b"in use by another process" in outcome.stderr
            second.send_signal(signal.SIGINT)
            assert second.wait(DEADLINE) == 0
        assert follower.wait(DEADLINE) == 0
    assert left(tmp_path) == []


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-18")
def test_what_cannot_be_continued_is_told(server_process: ServerProcess, cell: Cell, tmp_path: Path) -> None:
    url = address_of(server_process, cell)
    content = os.urandom(3_000_000)
    (tmp_path / "log").write_bytes(content)

    def begun() -> str:
        uploader, reference = begin(tmp_path, "log", "--follow", "--server", url)
        with uploader:
            wait_until(lambda: status(tmp_path, reference)["size"] == len(content))
            uploader.kill()
        return reference

    def again() -> subprocess.CompletedProcess[bytes]:
        return run(tmp_path, "upload", "log", "--follow", "--state", "state")

    reference = begun()
    # The source is another one behind its first megabytes.
    (tmp_path / "log").write_bytes(content[:2_500_000] + os.urandom(500_000))
    changed = again()
    assert (changed.returncode, changed.stdout) == (4, b"")
    assert b"the source changed" in changed.stderr
    offset = int(changed.stderr.split(b"below offset ")[1].split()[0])
    assert 0 < offset <= 2_500_000
    (tmp_path / "log").write_bytes(content)
    # The resource is gone.
    assert run(tmp_path, "delete", reference).returncode == 0
    gone = again()
    assert gone.returncode == 3
    assert b"has ended; remove the file" in gone.stderr
    # The state is damaged.
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-20])
    damaged = again()
    assert damaged.returncode == 4
    assert b"damaged" in damaged.stderr
    assert b"Traceback" not in damaged.stderr
    (tmp_path / "state").unlink()
    begun()
    assert run(tmp_path, "upload", "log", "--state", "state", "--while-away", "drop").returncode == 2


def lasting(client: ConnectedClient, folder: Path, data: bytes | None = None) -> LastingUpload:
    async def prefix(size: int) -> AsyncIterator[bytes]:
        assert data is not None
        yield data[:size]

    request = UploadRequest(metadata=Metadata(name="a"), prefix=None if data is None else prefix)
    return LastingUpload(client, request, folder / "state")


@proves("UPL-18")
async def test_a_stream_is_continued_by_the_library(
    client: ConnectedClient, second_client: ConnectedClient, tmp_path: Path
) -> None:
    first, second = os.urandom(300_000), os.urandom(200_000)
    with pytest.raises(RuntimeError, match="the program failed"):  # noqa: PT012 - what leaves the block is raised by it
        async with lasting(client, tmp_path) as upload:
            assert (upload.resumed, upload.offset) == (False, 0)
            await upload.write(first)
            with pytest.raises(ConfigurationError, match="in use"):
                await lasting(second_client, tmp_path).open()
            raise RuntimeError("the program failed")
    async with lasting(second_client, tmp_path) as again:
        assert (again.resumed, again.offset, again.id, again.epoch) == (True, 300_000, upload.id, upload.epoch + 1)
        await again.write(second)
    assert again.status.head == head_of(first + second)
    assert left(tmp_path) == []


@proves("UPL-18")
async def test_a_file_is_continued_by_the_library(
    client: ConnectedClient, second_client: ConnectedClient, tmp_path: Path
) -> None:
    data = os.urandom(3_000_000)
    async with lasting(client, tmp_path, data) as upload:
        await upload.write(data[:1_000_000])
        await upload.detach()
    with pytest.raises(SourceChanged) as changed:
        await lasting(client, tmp_path, data[:900_000] + bytes(2_100_000)).open()
    assert changed.value.offset <= 900_000
    async with lasting(second_client, tmp_path, data) as again:
        assert again.offset == 1_000_000
        await again.write(data[again.offset :])
    assert again.status.head == head_of(data)
    assert left(tmp_path) == []


@proves("UPL-18")
async def test_an_answer_that_was_lost_is_no_failure(
    client: ConnectedClient, second_client: ConnectedClient, tmp_path: Path
) -> None:
    upload = lasting(client, tmp_path)
    await upload.open()
    await upload.write(b"all of it")
    await upload.flush()
    state = (tmp_path / "state").read_bytes()
    await upload.detach()
    # Another session completes it, and the process ends before it has removed the state.
    async with lasting(second_client, tmp_path) as other:
        segment = {path.name: path.read_bytes() for path in (tmp_path / "state.spool").iterdir()}
    assert left(tmp_path) == []
    (tmp_path / "state").write_bytes(state)
    (tmp_path / "state.spool").mkdir()
    for name, content in segment.items():
        (tmp_path / "state.spool" / name).write_bytes(content)
    async with lasting(client, tmp_path) as again:
        assert await again.finish() == other.status
    assert left(tmp_path) == []


@proves("UPL-18")
async def test_an_upload_that_was_given_up_leaves_nothing(client: ConnectedClient, tmp_path: Path) -> None:
    async with lasting(client, tmp_path) as upload:
        await upload.write(b"abc")
        await upload.flush()
        final = await upload.abort("enough")
    assert final is not None
    assert (final.state, final.reason) == (ResourceState.FAILED, "enough")
    assert left(tmp_path) == []


@proves("UPL-18")
async def test_an_upload_that_has_failed_is_told_and_its_state_stays(
    new_server: NewServer, cell: Cell, tmp_path: Path
) -> None:
    server = await new_server(upload_grace=0.05)
    client = server.connect(cell.transport)
    upload = lasting(client, tmp_path)
    await upload.open()
    await upload.write(b"abc")
    await upload.detach()
    async with client.open(upload.reference) as resource:
        async for status in resource.statuses():
            last = status
    assert last.state is ResourceState.FAILED
    with pytest.raises(ResourceFailed):
        await lasting(client, tmp_path).open()
    assert sorted(left(tmp_path)) == ["state", "state.spool"]
    await client.delete(upload.reference)
    with pytest.raises(NotFound):
        await lasting(client, tmp_path).open()
    (tmp_path / "state").write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        await lasting(client, tmp_path).open()
    assert sorted(left(tmp_path)) == ["state", "state.spool"]


# Logs

_PROGRAM = """
import logging, logging.config, os, sys
logging.config.dictConfig({
    "version": 1,
    "formatters": {"plain": {"format": "%(message)s"}},
    "handlers": {
        "live": {
            "class": "tailrace.logging.ResourceHandler",
            "formatter": "plain",
            "url": sys.argv[1],
            "resource": "program.log",
            "exit_timeout": 30.0,
        }
    },
    "root": {"handlers": ["live"], "level": "DEBUG"},
})
for line in sys.stdin:
    logging.info("%s", line.rstrip())
    logging.getLogger("tailrace.anything").error("not for the log")
    print(flush=True)
"""


def logged(url: str, folder: Path) -> dict[str, object]:
    """Return the status of the one log that there is."""
    (status,) = map(json.loads, run(folder, "list", "--server", url, "--json").stdout.splitlines())
    found: dict[str, object] = status
    return found


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-19")
def test_a_program_logs_before_the_server_is_there_and_while_it_is_away(
    settled_server_process: ServerProcess, cell: Cell, tmp_path: Path
) -> None:
    url = address_of(settled_server_process, cell)
    settled_server_process.kill()
    lines = [b"line %d\n" % number for number in range(6)]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PROGRAM, url],
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None

        def log(line: bytes) -> None:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(line)
            assert read_line(program.stdout, program) == b"\n"

        log(lines[0])
        log(lines[1])
        with restarted(settled_server_process, cell, url, tmp_path):
            wait_until(lambda: run(tmp_path, "list", "--server", url).stdout != b"")
            reference = str(logged(url, tmp_path)["reference"])
            log(lines[2])
            with spawn(tmp_path, "follow", reference) as follower:
                assert follower.stdout is not None
                for line in lines[:3]:
                    assert read_line(follower.stdout, follower) == line
                follower.kill()
        log(lines[3])
        log(lines[4])
        with restarted(settled_server_process, cell, url, tmp_path):
            log(lines[5])
            program.stdin.close()
            assert program.wait(DEADLINE) == 0
            assert program.stderr.read() == b""
            final = logged(url, tmp_path)
            assert (final["state"], final["lines"], final["reference"]) == ("COMPLETED", 6, reference)
            assert run(tmp_path, "download", reference).stdout == b"".join(lines)
