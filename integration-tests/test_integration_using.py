"""Using it: packages, the choice of a transport, blocking code, and the command line."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blocking import BlockingClient, running_server
from cells import PROCESS_CELLS, WIRED_CELLS, Cell, Transport
from manifest import proves
from server_process import COMMAND, DEADLINE, ServerProcess, environment, read_line, run, spawn
from servers import LocalServer

import tailrace
from tailrace_client_download_api import DownloadClient, RemoteResource, ResourceClient
from tailrace_client_download_api import sync as blocking_downloads
from tailrace_client_upload_api import UploadClient, UploadSession
from tailrace_client_upload_api import sync as blocking_uploads
from tailrace_common_api import ConfigurationError, TransportMissing
from tailrace_impl_common import head_of

MISSING = "0" * 32

# Packages

API_PACKAGES = ("common_api", "server_api", "client_upload_api", "client_download_api")
MAY_IMPORT = {
    "tailrace_common_api": set[str](),
    "tailrace_server_api": {"tailrace_common_api"},
    "tailrace_client_upload_api": {"tailrace_common_api"},
    "tailrace_client_download_api": {"tailrace_common_api"},
    # The last one is of the extra `fast`, and taken where it is installed.
    "tailrace_impl_common": {*(f"tailrace_{name}" for name in API_PACKAGES), "xxhash", "stringzilla"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
@proves("USE-1")
def test_a_package_imports_what_it_declares_and_no_more(package: str) -> None:
    script = f"import sys; before = set(sys.modules); import {package}; print(*(set(sys.modules) - before))"
    outcome = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in outcome.stdout.split()} - set(sys.stdlib_module_names)
    assert imported - {package} <= MAY_IMPORT[package]


@proves("USE-1")
def test_interface_packages_depend_on_nothing_from_outside() -> None:
    for name in API_PACKAGES:
        requirements = importlib.metadata.requires(f"tailrace-{name.replace('_', '-')}") or []
        needed = [each for each in requirements if "extra ==" not in each]
        assert [each for each in needed if not each.startswith("tailrace-common-api")] == []


@proves("USE-1")
def test_transports_and_server_do_not_depend_on_one_another() -> None:
    parts = ("tailrace-impl-server", "tailrace-impl-grpc", "tailrace-impl-websocket")
    for part in parts:
        needed = [each for each in importlib.metadata.requires(part) or [] if "extra ==" not in each]
        assert [each for each in needed if each.startswith(tuple(set(parts) - {part}))] == []


# The choice of a transport


async def round_trip(*arguments: str, **options: Any) -> str:
    """Upload and read with whatever transport is chosen; return the reference. This is the code that never changes."""
    async with tailrace.connect(*arguments, **options) as client:
        async with client.upload("a.log", lines=True) as upload:
            await upload.write(b"one\ntwo\n")
        async with client.open(upload.reference) as resource:
            assert await resource.read_lines(last=1) == [b"two\n"]
        return upload.reference


@pytest.mark.cells(WIRED_CELLS)
@proves("USE-2")
async def test_the_transport_is_chosen_by_configuration(
    server: LocalServer, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url(cell.transport)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("TAILRACE_") and not name.startswith("TAILRACE_SABOTEUR"):
            monkeypatch.delenv(name)
    assert (await round_trip(url)).startswith(url)
    with pytest.raises(ConfigurationError, match="TAILRACE_SERVER"):
        await round_trip()
    # The file, above it the environment, above that the argument.
    nobody = "ws://127.0.0.1:1"
    (tmp_path / "tailrace.toml").write_text(f'server = "{url}"\n')
    assert (await round_trip()).startswith(url)
    (tmp_path / "tailrace.toml").write_text(f'server = "{nobody}"\n')
    (tmp_path / "other.toml").write_text(f'server = "{url}"\n')
    assert (await round_trip(config=tmp_path / "other.toml")).startswith(url)
    monkeypatch.setenv("TAILRACE_SERVER", url)
    assert (await round_trip()).startswith(url)
    monkeypatch.setenv("TAILRACE_SERVER", nobody)
    assert (await round_trip(url)).startswith(url)


@pytest.mark.cells(WIRED_CELLS)
@proves("USE-2")
async def test_a_missing_transport_names_its_package(
    server: LocalServer, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tailrace_common_api import _settings as module

    monkeypatch.setattr(module, "entry_points", lambda **_: ())
    with pytest.raises(TransportMissing) as caught:
        await round_trip(server.url(cell.transport))
    package = "tailrace-impl-grpc" if cell.transport is Transport.GRPC else "tailrace-impl-websocket"
    assert caught.value.package == package
    assert package in str(caught.value)


# Blocking code


@proves("USE-4")
def test_the_blocking_interface_has_the_names_of_the_asynchronous_one() -> None:
    pairs: list[tuple[type, type]] = [
        (UploadClient, blocking_uploads.UploadClient),
        (UploadSession, blocking_uploads.UploadSession),
        (DownloadClient, blocking_downloads.DownloadClient),
        (ResourceClient, blocking_downloads.ResourceClient),
        (RemoteResource, blocking_downloads.RemoteResource),
    ]
    for asynchronous, blocking in pairs:
        names = {name for name in dir(asynchronous) if not name.startswith("_")}
        assert names - set(dir(blocking)) == set()
        for name in names:
            function = getattr(asynchronous, name)
            if inspect.isfunction(function):
                parameters = list(inspect.signature(function).parameters)
                assert list(inspect.signature(getattr(blocking, name)).parameters) == parameters, name


@pytest.fixture
def blocking_client(cell: Cell, tmp_path: Path) -> Iterator[BlockingClient]:
    """A client for blocking code; its server runs in another thread."""
    with running_server(cell, tmp_path, {}) as server:
        client = server.connect()
        yield client
        client.close()


@proves("USE-4")
def test_many_threads_share_a_blocking_client(blocking_client: BlockingClient) -> None:
    failures: list[BaseException] = []

    def transfer(number: int) -> None:
        try:
            data = b"%d\n" % number * 2000
            with blocking_client.upload(f"thread {number}", lines=True) as upload:
                for start in range(0, len(data), 500):
                    upload.write(data[start : start + 500])
                with blocking_client.open(upload.id) as resource:
                    upload.flush()
                    assert resource.read() == data
                    follower = resource.follow()
                    assert data.startswith(next(follower))
                    follower.close()
            assert upload.status.head == head_of(data)
            with blocking_client.open(upload.id) as resource:
                assert b"".join(resource.follow()) == data
                assert resource.read_lines(last=1) == [b"%d\n" % number]
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=transfer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.cells(WIRED_CELLS)
@proves("USE-4")
async def test_blocking_code_works_beside_an_applications_own_loop(server: LocalServer, cell: Cell) -> None:
    # Server and asynchronous client live in this loop, the blocking clients in another one: gRPC shares its poller
    # between them, and what it logs as an error fails this test.
    url = server.url(cell.transport)

    def follow(reference: str) -> bytes:
        with tailrace.sync.connect(url) as client, client.open(reference) as resource:
            return b"".join(resource.follow())

    async with tailrace.connect(url) as client:
        async with client.upload("a") as upload:
            followers = [asyncio.create_task(asyncio.to_thread(follow, upload.reference)) for _ in range(3)]
            for number in range(100):
                await upload.write(b"%d\n" % number)
                if number % 10 == 0:
                    await upload.flush()
        expected = b"".join(b"%d\n" % number for number in range(100))
        assert await asyncio.gather(*followers) == [expected] * 3


# The command line


@pytest.fixture
def url(server_process: ServerProcess, cell: Cell) -> str:
    """URL of a server process over the transport of the cell."""
    return server_process.url(cell.transport)


@pytest.fixture
def other_url(server_process: ServerProcess, cell: Cell) -> str:
    """URL of the same server over the other transport."""
    return server_process.url(Transport.GRPC if cell.transport is Transport.WEBSOCKET else Transport.WEBSOCKET)


def objects(output: bytes) -> list[dict[str, Any]]:
    """Return the JSON objects of an output, one a line."""
    return [json.loads(line) for line in output.splitlines()]


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that does not outlive the block."""
    with spawn(folder, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    """Return the next line of a command's standard output."""
    assert process.stdout is not None
    return read_line(process.stdout, process)


def end(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Close the input of a command, and return its exit code and what else it wrote."""
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output, errors


@pytest.mark.cells(PROCESS_CELLS)
@proves("USE-5", "RES-6")
def test_the_commands_do_what_scripts_expect(
    url: str, other_url: str, server_process: ServerProcess, tmp_path: Path
) -> None:
    data = b"one\r\ntwo\n" + b"x" * 200_000 + b"\nlast"
    (tmp_path / "run.log").write_bytes(data)
    up = run(tmp_path, "upload", "run.log", "--server", url, "--label", "run=7", "--json")
    assert (up.returncode, up.stderr) == (0, b"")
    accepted, finished = objects(up.stdout)
    reference = accepted["reference"]
    assert accepted["event"] == "accepted"
    assert reference.startswith(f"{url}/r/")
    assert finished["event"] == "finished"
    # The same object as `status` prints, with all that scripts may count on.
    (status,) = objects(run(tmp_path, "status", reference, "--json").stdout)
    assert finished["status"] == status
    assert status["reference"] == reference
    assert (status["state"], status["size"], status["lines"], status["reason"]) == ("COMPLETED", len(data), 4, None)
    assert status["head"] == head_of(data).hex() == run(tmp_path, "head", "run.log").stdout.decode().strip()
    assert status["metadata"] == {
        "name": "run.log",
        "content_type": "text/plain",
        "lines": True,
        "labels": {"run": "7"},
        "context": None,
    }
    id_ = status["id"]
    assert {f"{url}/r/{id_}", f"{other_url}/r/{id_}"} <= set(status["alternatives"])
    # References of any kind, and bare ids.
    web = f"{server_process.urls['http']}/r/{id_}"
    for arguments, env in (
        ((reference,), {}),
        ((f"{other_url}/r/{id_}",), {}),
        ((web,), {}),
        ((id_, "--server", url), {}),
        ((id_,), {"TAILRACE_SERVER": other_url}),
        ((f"grpc://127.0.0.1:1/r/{id_}", "--server", url), {}),
    ):
        down = run(tmp_path, "download", *arguments, env=env)
        assert (down.returncode, down.stdout, down.stderr) == (0, data, b"")
    expected: list[tuple[Sequence[str], bytes]] = [
        (("download", "--range", "5:9"), data[5:9]),
        (("download", "--range", f"{len(data) - 4}:", "-o", "-"), b"last"),
        (("lines", "0:2"), b"one\r\ntwo\n"),
        (("lines", ":1"), b"one\r\n"),
        (("lines", "3:"), b"last"),
        (("lines", "1:1"), b""),
        (("lines", "--last", "1"), b"last"),
        (("lines",), data),
        (("follow", "--from", str(len(data) - 4)), b"last"),
        (("follow", "--last-bytes", "2"), b"st"),
        (("follow", "--last-lines", "1"), b"last"),
    ]
    for (command, *rest), output in expected:
        outcome = run(tmp_path, command, reference, *rest)
        assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, output, b""), (command, rest)
    listed = objects(run(tmp_path, "list", "--server", url, "--label", "run=7", "--json").stdout)
    assert [each["id"] for each in listed] == [id_]
    assert run(tmp_path, "delete", reference).returncode == 0
    assert run(tmp_path, "status", reference).returncode == 3


@pytest.mark.cells(PROCESS_CELLS)
@proves("USE-5")
def test_exit_codes_tell_what_went_wrong(url: str, tmp_path: Path) -> None:
    reference = run(tmp_path, "upload", "-", "--server", url, stdin=b"a\nb\n").stdout.decode().strip()
    binary = run(tmp_path, "upload", "-", "--no-lines", "--server", url, stdin=b"\x00").stdout.decode().strip()
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "longer").write_bytes(b"a\nb\nc\n")
    failures: list[tuple[int, Sequence[str]]] = [
        (1, ("download", reference, "--range", "0:5")),
        (1, ("lines", reference, "3:")),
        (1, ("lines", binary)),
        (1, ("status", MISSING, "--server", "ws://127.0.0.1:1")),
        (2, ("status", MISSING)),
        (2, ("upload", "-")),
        (2, ("upload", "missing", "--server", url)),
        (2, ("status", MISSING, "--server", "carrier-pigeon://x")),
        (2, ("follow", reference, "-o", "other")),
        (2, ("download", reference, "--range", "0:1", "-o", "other")),
        (2, ("lines", reference, "2:1")),
        (2, ("nonsense",)),
        (3, ("status", MISSING, "--server", url)),
        (3, ("download", "nonsense")),
        (3, ("delete", MISSING, "--server", url)),
        (3, ("download", MISSING, "--server", url, "-o", "new")),
        (4, ("download", reference, "-o", "other")),
        (4, ("download", reference, "-o", "longer")),
    ]
    for code, arguments in failures:
        outcome = run(tmp_path, *arguments)
        assert (outcome.returncode, outcome.stdout) == (code, b""), (arguments, outcome.stderr)
        assert outcome.stderr
        assert b"Traceback" not in outcome.stderr
    assert (tmp_path / "other").read_bytes() == b"something else"
    assert (tmp_path / "longer").read_bytes() == b"a\nb\nc\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.cells(PROCESS_CELLS)
@proves("USE-6", "USE-5", "DWN-1")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_is_followed_live_across_transports(
    url: str, other_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with started(tmp_path, "upload", "-", "--server", url) as uploader:
        reference = first_line(uploader).decode().strip()
        with (
            started(tmp_path, "follow", reference, "--server", other_url) as follower,
            started(tmp_path, "status", reference, "--watch", "--json") as watcher,
        ):
            assert json.loads(first_line(watcher))["state"] == "INITIATED"
            assert uploader.stdin is not None
            for line in (b"one\n", b"two\n", b"three\n"):
                uploader.stdin.write(line)
                assert first_line(follower) == line
            # Ctrl-C ends the input, and what was written is complete.
            uploader.send_signal(number)
            assert uploader.wait(DEADLINE) == 0
            assert end(follower) == (0, b"", b"")
            code, output, errors = end(watcher)
            assert (code, errors) == (0, b"")
            last = objects(output)[-1]
            assert (last["state"], last["size"], last["lines"]) == ("COMPLETED", 14, 3)
        assert uploader.stdout is not None
        assert uploader.stdout.read() == b""


@pytest.mark.cells(PROCESS_CELLS)
@proves("USE-5", "USE-6", "UPL-13")
def test_interrupting_an_atomic_upload_or_a_follower(url: str, tmp_path: Path) -> None:
    with started(tmp_path, "upload", "-", "--atomic", "--json", "--server", url) as uploader:
        reference = json.loads(first_line(uploader))["reference"]
        uploader.send_signal(signal.SIGINT)
        failed = json.loads(first_line(uploader))
        assert (failed["event"], failed["error"]["code"], failed["status"]) == ("failed", "upload_aborted", None)
        assert uploader.wait(DEADLINE) == 130
    assert run(tmp_path, "status", reference).returncode == 3
    with started(tmp_path, "upload", "-", "--server", url) as uploader:
        reference = first_line(uploader).decode().strip()
        assert uploader.stdin is not None
        uploader.stdin.write(b"x\n")
        with started(tmp_path, "follow", reference) as follower:
            assert first_line(follower) == b"x\n"
            follower.send_signal(signal.SIGINT)
            assert end(follower) == (130, b"", b"")
        assert end(uploader)[0] == 0


@pytest.mark.cells(PROCESS_CELLS)
@proves("USE-6", "USE-5")
def test_a_shell_pipeline_ends_with_its_reader(url: str, tmp_path: Path) -> None:
    program = " ".join(map(str, COMMAND))
    with started(tmp_path, "upload", "-", "--server", url) as uploader:
        reference = first_line(uploader).decode().strip()
        assert uploader.stdin is not None
        uploader.stdin.write(b"first\nsecond\n")
        # Nobody writes any more, and the follower ends all the same when `head` has had enough.
        piped = subprocess.run(
            ["bash", "-c", f'set -o pipefail; {program} follow "$1" | head -n 1', "-", reference],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (piped.returncode, piped.stdout, piped.stderr) == (0, b"first\n", b"")
        assert end(uploader)[0] == 0
    produced = subprocess.run(
        ["bash", "-c", f'seq 1 20000 | {program} upload - --server "$1" --name numbers.txt', "-", url],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        timeout=DEADLINE,
        check=True,
    )
    reference = produced.stdout.decode().strip()
    numbers = b"".join(b"%d\n" % number for number in range(1, 20_001))
    assert run(tmp_path, "follow", reference).stdout == numbers
    assert run(tmp_path, "lines", reference, "--last", "2").stdout == b"19999\n20000\n"
    # A partial copy is continued.
    (tmp_path / "copy").write_bytes(numbers[:1000])
    assert run(tmp_path, "download", reference, "-o", "copy").returncode == 0
    assert (tmp_path / "copy").read_bytes() == numbers


@pytest.mark.cells(PROCESS_CELLS)
@proves("USE-5", "USE-6", "RES-8")
def test_a_failed_or_deleted_resource_ends_its_follower(url: str, other_url: str, tmp_path: Path) -> None:
    with started(tmp_path, "upload", "-", "--encoding", "utf-8", "--json", "--server", url) as uploader:
        reference = json.loads(first_line(uploader))["reference"]
        assert uploader.stdin is not None
        uploader.stdin.write(b"good\n")
        with started(tmp_path, "follow", reference, "--server", other_url) as follower:
            assert first_line(follower) == b"good\n"
            uploader.stdin.write(b"\xff\n")
            failed = json.loads(first_line(uploader))
            assert (failed["event"], failed["status"]["state"], failed["status"]["size"]) == ("failed", "FAILED", 5)
            code, output, _ = end(follower)
            assert (code, output) == (1, b"")
    with started(tmp_path, "upload", "-", "--json", "--server", url) as uploader:
        reference = json.loads(first_line(uploader))["reference"]
        assert uploader.stdin is not None
        uploader.stdin.write(b"x\n")
        with started(tmp_path, "follow", reference, "--server", other_url) as follower:
            assert first_line(follower) == b"x\n"
            assert run(tmp_path, "delete", reference).returncode == 0
            assert end(follower)[:2] == (3, b"")
        failed = json.loads(first_line(uploader))
        assert (failed["event"], failed["error"]["code"], failed["status"]) == ("failed", "deleted", None)
        assert uploader.wait(DEADLINE) == 3
