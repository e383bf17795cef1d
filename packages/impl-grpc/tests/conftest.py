"""A server on a free port of this machine, in front of a manager in memory, and a client of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tailrace_common_api import ClientSettings
from tailrace_impl_common import ConnectedClient
from tailrace_impl_grpc import GrpcServer, connect
from tailrace_impl_grpc._poller import keep_poller
from tailrace_impl_server import create_manager
from tailrace_server_api import ResourceManager, TransportServerSettings

# Modules beside the tests are importable, whatever pytest's import mode.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def nothing_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """gRPC and asyncio report defects in callbacks nowhere but in the log."""
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    # grpc.aio ends its own tasks by itself a few turns of the loop after the calls have ended.
    for _ in range(50):
        left = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]
        if not left:
            return
        await asyncio.wait(left, timeout=0.1)
    pytest.fail(f"tasks are left: {left}")


@pytest.fixture(autouse=True)
async def events_of_closed_loops_are_left() -> None:
    """Each test has a loop of its own, and ``grpc.aio`` a poller for all: it may still have an event for the last one.

    Servers and clients by the library make sure of that themselves; some tests talk to it without them.
    """
    keep_poller()


@pytest.fixture
async def manager(no_task_is_left: None) -> AsyncIterator[ResourceManager]:
    async with create_manager(None, {}) as managed:
        yield managed.manager


@pytest.fixture(params=["buffered", "grpcio"])
async def server(manager: ResourceManager, request: pytest.FixtureRequest) -> AsyncIterator[GrpcServer]:
    """A server, by each of those that take calls."""
    server = GrpcServer()
    await server.start(manager, TransportServerSettings(options={"protocol": request.param}))
    yield server
    await server.close(5.0)


@pytest.fixture
def url(server: GrpcServer) -> str:
    return server.urls["grpc"]


@pytest.fixture
def address(url: str) -> str:
    return url.removeprefix("grpc://")


@pytest.fixture(params=["buffered", "grpcio"])
def client_protocol(request: pytest.FixtureRequest) -> str:
    """What makes the calls of clients."""
    return str(request.param)


@pytest.fixture
async def new_client(url: str, client_protocol: str) -> AsyncIterator[Callable[..., ConnectedClient]]:
    clients: list[ConnectedClient] = []

    def new(*, options: Mapping[str, str] | None = None, **settings: object) -> ConnectedClient:
        build: Callable[..., ClientSettings] = ClientSettings
        options = {"protocol": client_protocol, **(options or {})}
        clients.append(connect(url, build(options=options, **settings)))
        return clients[-1]

    yield new
    for client in clients:
        await client.close()


@pytest.fixture
def client(new_client: Callable[..., ConnectedClient]) -> ConnectedClient:
    return new_client()
