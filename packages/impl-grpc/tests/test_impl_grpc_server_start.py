"""A start of the server that does not get to its end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from tailrace_impl_grpc import GrpcServer
from tailrace_impl_grpc._call_server import CallServer
from tailrace_impl_grpc._http2_server import Http2Server
from tailrace_impl_grpc._library_server import LibraryServer
from tailrace_server_api import ResourceManager, TransportServerSettings

HOST = "127.0.0.2"
"""An address at which nobody else listens: the port is free when it has been let go of."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """The collector would let go of what was forgotten."""
    gc.disable()
    yield
    gc.enable()


SERVERS: dict[str, type[CallServer]] = {"buffered": Http2Server, "grpcio": LibraryServer}


@pytest.fixture(params=SERVERS)
def protocol(request: pytest.FixtureRequest) -> str:
    """What takes the calls."""
    return str(request.param)


@pytest.fixture
def settings(protocol: str) -> TransportServerSettings:
    return TransportServerSettings(host=HOST, options={"protocol": protocol})


@pytest.fixture
def ports(protocol: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that servers are bound to."""
    bound: list[int] = []
    kind: Any = SERVERS[protocol]
    real = kind.bind

    async def bind(server: CallServer) -> int:
        bound.append(await real(server))
        return bound[-1]

    monkeypatch.setattr(kind, "bind", bind)
    return bound


async def _is_free(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize("times", [1, 2])
async def test_a_start_that_is_cancelled_leaves_no_port_behind(
    manager: ResourceManager,
    protocol: str,
    settings: TransportServerSettings,
    ports: list[int],
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    starting: list[asyncio.Task[None]] = []
    kind: Any = SERVERS[protocol]
    real_start, real_stop = kind.start, kind.stop
    stopped = asyncio.Event()

    async def start(server: CallServer) -> None:
        # It is cancelled where gRPC waits for its own beginning.
        starting[0].cancel()
        await real_start(server)
        await asyncio.sleep(0)

    async def stop(server: CallServer, grace: float | None) -> None:
        if times == 2:
            starting[0].cancel()
            await asyncio.sleep(0)
        await real_stop(server, grace)
        stopped.set()

    monkeypatch.setattr(kind, "start", start)
    monkeypatch.setattr(kind, "stop", stop)
    server = GrpcServer()
    starting.append(asyncio.ensure_future(server.start(manager, settings)))
    with pytest.raises(asyncio.CancelledError):
        await starting[0]
    await stopped.wait()
    assert await _is_free(ports[0])
    assert not server.urls
    await server.close(1.0)


async def test_a_start_that_fails_leaves_no_port_behind(
    manager: ResourceManager, settings: TransportServerSettings, ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_base(base: str) -> None:
        raise LookupError(base)

    monkeypatch.setattr(manager, "add_base", add_base)
    server = GrpcServer()
    with pytest.raises(LookupError):
        await server.start(manager, settings)
    assert await _is_free(ports[0])
    await server.close(1.0)
