"""A start of the server that does not get to its end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import grpc.aio._server
import pytest

from tailrace_impl_grpc import GrpcServer
from tailrace_server_api import ResourceManager, TransportServerSettings

HOST = "127.0.0.2"
"""An address at which nobody else listens: the port is free when it has been let go of."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """The collector would let go of what was forgotten."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that servers are bound to."""
    bound: list[int] = []
    real = grpc.aio._server.Server.add_insecure_port

    def add_insecure_port(server: grpc.aio._server.Server, address: str) -> int:
        bound.append(real(server, address))
        return bound[-1]

    monkeypatch.setattr(grpc.aio._server.Server, "add_insecure_port", add_insecure_port)
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
    manager: ResourceManager, ports: list[int], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    starting: list[asyncio.Task[None]] = []
    real_start, real_stop = grpc.aio._server.Server.start, grpc.aio._server.Server.stop
    stopped = asyncio.Event()

    async def start(server: grpc.aio._server.Server) -> None:
        # It is cancelled where gRPC waits for its own beginning.
        starting[0].cancel()
        await real_start(server)

    async def stop(server: grpc.aio._server.Server, grace: float | None) -> None:
        if times == 2:
            starting[0].cancel()
            await asyncio.sleep(0)
        await real_stop(server, grace)
        stopped.set()

    monkeypatch.setattr(grpc.aio._server.Server, "start", start)
    monkeypatch.setattr(grpc.aio._server.Server, "stop", stop)
    server = GrpcServer()
    starting.append(asyncio.ensure_future(server.start(manager, TransportServerSettings(host=HOST))))
    with pytest.raises(asyncio.CancelledError):
        await starting[0]
    await stopped.wait()
    assert await _is_free(ports[0])
    assert not server.urls
    await server.close(1.0)


async def test_a_start_that_fails_leaves_no_port_behind(
    manager: ResourceManager, ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_base(base: str) -> None:
        raise LookupError(base)

    monkeypatch.setattr(manager, "add_base", add_base)
    server = GrpcServer()
    with pytest.raises(LookupError):
        await server.start(manager, TransportServerSettings(host=HOST))
    assert await _is_free(ports[0])
    await server.close(1.0)
