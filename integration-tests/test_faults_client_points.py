"""Programs that upload and are killed, stopped or told to end at every named point, and come back or do not."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cells import PROCESS_CELLS, Cell, Transport
from fault_points import CLIENT_POINTS, Fault, Injection
from faulty_server import HERE, FaultyServer, damages, fault_of, leftovers, nothing_leaks, spawn_uploader
from manifest import proves
from server_process import DEADLINE, environment, read_line
from soak import SEED, SOAK
from tcp_proxy import TcpProxy
from witnesses import Witness

from tailrace_common_api import ClientSettings, ResourceFailed, ResourceState
from tailrace_impl_common import ConnectedClient, head_of
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

SOURCE = random.Random(SEED).randbytes(400_000)
PIECE = 40_000
GRACE = 0.5
"""Grace of a server whose uploader does not come back, in seconds."""

PASSED_OFTEN = frozenset({"before send", "after send", "acknowledged"})
FAILED = {
    "killed for ever": "uploader lost",
    "stopped for longer than the grace": "uploader lost",
}
"""All cases of the fault suite in which a resource may end as FAILED, and the reason that it has then.

In every other one client and server are back within the grace period, and the resource is COMPLETED.
"""


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., FaultyServer]]:
    servers: list[FaultyServer] = []

    def new(**options: object) -> FaultyServer:
        server = FaultyServer(tmp_path / "data", tmp_path, {"checkpoint_interval": 0.0, **options})
        servers.append(server)
        server.start_faulty(Injection(control=str(server.control)))
        return server

    yield new
    for server in servers:
        server.dispose()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(SOURCE)
    return path


def connect(url: str, cell: Cell) -> ConnectedClient:
    connecting = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
    return connecting(url, ClientSettings())


def faults() -> list[Fault]:
    """Return what happens to a program."""
    return [
        Fault(point, action, number)
        for action in ("kill", "stop")
        for point in CLIENT_POINTS
        for number in (((1, 2, 5) if SOAK else (3,)) if point in PASSED_OFTEN else (1,))
    ]


async def first_line(program: subprocess.Popen[bytes]) -> str:
    """Return the id that a program tells when its upload is open."""
    assert program.stdout is not None
    line = await asyncio.to_thread(read_line, program.stdout, program)
    return str(json.loads(line)["id"])


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize("fault", faults(), ids=lambda fault: f"{fault.does}-{fault.point}-{fault.number}")
@proves("UPL-9", "UPL-10", "RES-5", "DWN-5")
async def test_a_program_that_fails_at_a_point_and_comes_back(
    new_server: Callable[..., FaultyServer], cell: Cell, fault: Fault, tmp_path: Path, source: Path
) -> None:
    server = await asyncio.to_thread(new_server)
    before = await server.report()
    async with TcpProxy(server.url(cell.transport)) as proxy, connect(server.url(cell.transport), cell) as reader:
        injection = Injection(faults=(fault,))
        with spawn_uploader(tmp_path, proxy.url, "key", source, PIECE, injection) as program:
            met = await fault_of(program)
            assert met == ("killed" if fault.does == "kill" else "stopped")
            statuses = (await reader.list_page()).statuses
            # Whoever watches sees the rest of it.
            witness = Witness(reader, statuses[0].id, SOURCE)
            if fault.does == "stop":
                # Nothing says to a program that does not run that its connection is gone.
                proxy.cut()
                program.send_signal(signal.SIGCONT)
            else:
                with spawn_uploader(tmp_path, server.url(cell.transport), "key", source, PIECE) as again:
                    assert await first_line(again) == statuses[0].id
                    assert await asyncio.to_thread(again.wait, DEADLINE) == 0
            code = await asyncio.to_thread(program.wait, DEADLINE)
            assert code == (-signal.SIGKILL if fault.does == "kill" else 0)
        last = await witness.end()
        assert (last.state, last.size, last.head) == (ResourceState.COMPLETED, len(SOURCE), head_of(SOURCE))
        assert len((await reader.list_page()).statuses) == 1
    await nothing_leaks(server, before)
    await asyncio.to_thread(server.stop)
    assert (server.data / "resources" / last.id / "data").read_bytes() == SOURCE
    assert leftovers(server.data) == []
    assert await damages(server.data) == []


@pytest.mark.cells(PROCESS_CELLS)
@proves("UPL-9", "RES-5")
async def test_a_zombie_changes_nothing_when_it_goes_on(
    new_server: Callable[..., FaultyServer], cell: Cell, tmp_path: Path, source: Path
) -> None:
    server = await asyncio.to_thread(new_server)
    async with connect(server.url(cell.transport), cell) as reader:
        url = server.url(cell.transport)
        injection = Injection(faults=(Fault("before send", "stop", 4),))
        with spawn_uploader(tmp_path, url, "key", source, PIECE, injection) as zombie:
            assert await fault_of(zombie) == "stopped"
            witness = Witness(reader, (await reader.list_page()).statuses[0].id, SOURCE)
            with spawn_uploader(tmp_path, url, "key", source, PIECE) as heir:
                assert await asyncio.to_thread(heir.wait, DEADLINE) == 0
            zombie.send_signal(signal.SIGCONT)
            _, said = await asyncio.to_thread(zombie.communicate)
            assert zombie.returncode == 1
            assert b"Fenced" in said
        last = await witness.end()
        assert (last.state, last.head) == (ResourceState.COMPLETED, head_of(SOURCE))
        assert (await reader.status(last.id)).version == last.version


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize("case", FAILED)
@proves("UPL-9", "DWN-4")
async def test_the_cases_that_fail_say_why(
    new_server: Callable[..., FaultyServer], cell: Cell, case: str, tmp_path: Path, source: Path
) -> None:
    server = await asyncio.to_thread(lambda: new_server(upload_grace=GRACE))
    before = await server.report()
    does = "kill" if case == "killed for ever" else "stop"
    injection = Injection(faults=(Fault("acknowledged", does, 3),))
    async with TcpProxy(server.url(cell.transport)) as proxy, connect(server.url(cell.transport), cell) as reader:
        with spawn_uploader(tmp_path, proxy.url, "key", source, PIECE, injection) as program:
            assert await fault_of(program) == ("killed" if does == "kill" else "stopped")
            witness = Witness(reader, (await reader.list_page()).statuses[0].id, SOURCE)
            proxy.cut()
            reason, size = await reason_of_failure(witness)
            assert reason == FAILED[case]
            assert PIECE <= size <= witness.size < len(SOURCE)
            if does == "stop":
                program.send_signal(signal.SIGCONT)
                _, said = await asyncio.to_thread(program.communicate)
                assert program.returncode == 1
                assert b"ResourceFailed" in said
                assert b"uploader lost" in said
        status = (await reader.list_page()).statuses[0]
        assert (status.state, status.reason, status.size) == (ResourceState.FAILED, reason, size)
        assert await reader.open(status.id).read() == SOURCE[:size]
        await witness.close()
    await nothing_leaks(server, before)
    assert leftovers(server.data) == []


async def reason_of_failure(witness: Witness) -> tuple[str, int]:
    """Wait for the failure that a witness sees; its traceback, which would keep the connection alive, goes with it."""
    try:
        await witness.end()
    except ResourceFailed as error:
        return error.reason, error.size
    raise AssertionError("the resource did not fail")


def spawn_command(folder: Path, *arguments: str, injection: Injection | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "faulty_command.py"), *arguments],
        cwd=folder,
        env=environment(folder, **(injection or Injection()).environment()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize("point", ["before send", "after send", "acknowledged"])
@proves("UPL-9", "USE-6")
async def test_a_command_that_is_told_to_end_completes_what_it_has_read(
    new_server: Callable[..., FaultyServer], cell: Cell, tmp_path: Path, point: str
) -> None:
    server = await asyncio.to_thread(new_server)
    url = server.url(cell.transport)
    injection = Injection(faults=(Fault(point, "terminate"),))
    with spawn_command(tmp_path, "upload", "-", "--server", url, injection=injection) as program:
        assert program.stdin is not None
        os.write(program.stdin.fileno(), SOURCE[:PIECE])
        await asyncio.to_thread(program.wait, DEADLINE)
    async with connect(url, cell) as reader:
        status = (await reader.list_page()).statuses[0]
        assert status.state is ResourceState.COMPLETED
        assert 0 < status.size <= PIECE
        assert await reader.open(status.id).read() == SOURCE[: status.size]
