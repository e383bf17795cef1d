"""The server and the client of this package together: on each event loop, over TLS, with each reader of frames."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
import trustme
from impl_websocket_server import running_server

from tailrace_common_api import ClientSettings, ResourceState
from tailrace_impl_websocket import connect

_CHUNKS = [1, 100, 125, 126, 16_000, 65_535, 65_536, 200_000, 1 << 20, 3, 1 << 20, (1 << 20) - 1]


def _loop(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        pytest.importorskip("uvloop")
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(name).new_event_loop
    return factory


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return {"server": str(folder / "server.pem"), "ca": str(folder / "ca.pem")}


@pytest.mark.parametrize("protocol", ["buffered", "websockets-sansio"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_is_uploaded_is_followed_and_read(
    certificate: dict[str, str], loop: str, secure: bool, protocol: str
) -> None:
    files: dict[str, Any] = {name: certificate["server"] for name in ("certificate_file", "key_file") if secure}
    data = random.Random(protocol).randbytes(sum(_CHUNKS))

    async def exchange() -> None:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_server({"protocol": protocol}, **files))
            settings = ClientSettings(ca_file=certificate["ca"] if secure else None)
            client = await stack.enter_async_context(connect(server.ws, settings))
            session = client.upload("x")
            await session.open()

            async def follow() -> bytes:
                async with client.open(session.reference) as resource, aclosing(resource.follow()) as chunks:
                    return b"".join([bytes(chunk) async for chunk in chunks])

            follower = asyncio.create_task(follow())
            position = 0
            for size in _CHUNKS:
                await session.write(data[position : position + size])
                position += size
            status = await session.finish()
            assert (status.state, status.size) == (ResourceState.COMPLETED, len(data))
            assert await follower == data
            async with client.open(session.reference) as resource:
                # Many answers at once, each larger than what a transport buffers.
                parts = await asyncio.gather(*(resource.read(start, len(data)) for start in range(5)))
            assert parts == [data[start:] for start in range(5)]

    with asyncio.Runner(loop_factory=_loop(loop)) as runner:
        runner.run(exchange())
