"""A server that is killed, stopped or told to end at every named point, while an upload runs and is followed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cells import PROCESS_CELLS, Cell, Transport
from fault_points import FINISH_POINTS, OPENING_POINTS, STREAM_POINTS, Fault, Injection
from faulty_server import FaultyServer, damages, leftovers, nothing_leaks
from manifest import proves
from soak import SEED, SOAK
from tcp_proxy import TcpProxy
from witnesses import Witness

from tailrace_client_upload_api import UploadRequest
from tailrace_common_api import ClientSettings, Metadata, ResourceState, Status
from tailrace_impl_common import ConnectedClient, head_of
from tailrace_impl_grpc import connect as connect_grpc
from tailrace_impl_websocket import connect as connect_websocket

SOURCE = random.Random(SEED).randbytes(700_000)
PIECE = 50_000

EVERY_POINT = (*OPENING_POINTS, *STREAM_POINTS, *FINISH_POINTS)
EXITS = {"kill": "killed", "terminate": "exited", "stop": "stopped"}


@pytest.fixture
def server(tmp_path: Path, durability: str) -> Iterator[FaultyServer]:
    server = FaultyServer(tmp_path / "data", tmp_path, {"durability": durability, "checkpoint_interval": 0.0})
    yield server
    server.dispose()


@asynccontextmanager
async def connected(url: str, cell: Cell) -> AsyncIterator[ConnectedClient]:
    connect = connect_grpc if cell.transport is Transport.GRPC else connect_websocket
    async with connect(url, ClientSettings(chunk_size=16 * 1024, download_window=64 * 1024)) as client:
        yield client


def times(point: str) -> tuple[int, ...]:
    """Return at which times a point is met: in the middle of the stream, or at the only one that there is."""
    if point not in STREAM_POINTS:
        return (1,)
    # A block is complete with every third piece.
    return (1, 2, 3) if SOAK else (2,) if "records" in point else (4,)


async def prefix(size: int) -> AsyncGenerator[bytes, None]:
    yield SOURCE[:size]


async def upload(client: ConnectedClient, opened: asyncio.Future[str]) -> Status:
    """Upload the source piece by piece, each announced before the next: the points come at known times."""
    request = UploadRequest(metadata=Metadata(name="a"), idempotency_key="key", prefix=prefix)
    async with client.start_upload(request) as session:
        opened.set_result(session.id)
        for start in range(0, len(SOURCE), PIECE):
            await session.write(SOURCE[start : start + PIECE])
            await session.flush()
    return session.status


def cases() -> list[tuple[str, str, int, str]]:
    """Return what to do at which point at which time, with which durability."""
    every = [
        (action, point, number, how)
        for action in EXITS
        for point in EVERY_POINT
        for number in times(point)
        for how in ("os", "fsync")
    ]
    # A check stops a server at one half of the points, and tells it to end at the other half.
    chosen = {"stop": EVERY_POINT[::2], "terminate": EVERY_POINT[1::2], "kill": EVERY_POINT}
    return [
        case
        for case in every
        if SOAK
        or (
            case[1] in chosen[case[0]]
            and (case[0] == "kill" or (case[3] == "os") is (EVERY_POINT.index(case[1]) % 4 < 2))
        )
    ]


@pytest.mark.cells(PROCESS_CELLS)
@pytest.mark.parametrize(("action", "point", "number", "durability"), cases())
@proves("RES-5", "UPL-9", "CHK-3", "DWN-5")
async def test_a_server_that_fails_at_a_point(
    server: FaultyServer, cell: Cell, action: str, point: str, number: int, durability: str
) -> None:
    fault = Fault(point, action, number)
    await asyncio.to_thread(server.start_faulty, Injection(faults=(fault,), control=str(server.control)))
    before = await server.report()
    async with (
        TcpProxy(server.url(cell.transport)) as proxy,
        connected(proxy.url, cell) as client,
        connected(proxy.url, cell) as reader,
    ):
        # Who has been there comes back.
        await client.list_page()
        await reader.list_page()
        opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        uploading = asyncio.ensure_future(upload(client, opened))
        following = asyncio.ensure_future(witness_of(reader, opened))

        met = await server.fault()
        assert met == EXITS[action]
        if action == "stop":
            # Everything that was on its way is lost, and whoever comes back finds nobody who answers.
            proxy.cut()
            server.go_on()
        else:
            await asyncio.to_thread(server.forget)
            await asyncio.to_thread(server.start_faulty, Injection(control=str(server.control)))
            before = await server.report()
            proxy.aim(server.url(cell.transport))

        status = await uploading
        witness = await following
        last = await witness.end()
        for told in (status, last):
            assert (told.state, told.size, told.head) == (ResourceState.COMPLETED, len(SOURCE), head_of(SOURCE))
        assert [each.id for each in (await reader.list_page()).statuses] == [status.id]
    await nothing_leaks(server, before)
    await asyncio.to_thread(server.stop)
    assert (server.data / "resources" / status.id / "data").read_bytes() == SOURCE
    assert leftovers(server.data) == []
    assert await damages(server.data) == []


async def witness_of(reader: ConnectedClient, opened: asyncio.Future[str]) -> Witness:
    return Witness(reader, await opened, SOURCE)
