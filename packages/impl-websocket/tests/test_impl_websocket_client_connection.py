"""What the client sends, whatever parts it is made of."""

from __future__ import annotations

import secrets

import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tailrace_impl_websocket._client_connection import LargeFrameConnection

HEADER = bytes(range(32))
PAYLOAD = bytes(range(256)) * 4096


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The masks that are used, none of which is a foreseeable one."""
    used: list[bytes] = []
    real = secrets.token_bytes

    def token_bytes(size: int) -> bytes:
        used.append(real(size))
        return used[-1]

    monkeypatch.setattr(secrets, "token_bytes", token_bytes)
    return used


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("header", [b"", HEADER, HEADER + b"x", HEADER + bytes(24)], ids=len)
@pytest.mark.parametrize("size", [0, 1, 100, 16_383, 16_384, 16_385, 65_535, 65_536, 1 << 20])
async def test_messages_in_two_parts_arrive_as_one(size: int, header: bytes, compression: str | None) -> None:
    async with serve(echo, "127.0.0.1", 0, max_size=None, compression=compression) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect_websocket(
            f"ws://127.0.0.1:{port}",
            create_connection=LargeFrameConnection,
            compression=compression,
            max_size=None,
            proxy=None,
        ) as client:
            assert isinstance(client, LargeFrameConnection)
            for payload in (PAYLOAD[:size], memoryview(bytearray(PAYLOAD))[:size]):
                await client.send_parts(header, payload)
                await client.send("between")
                assert await client.recv() == header + PAYLOAD[:size]
                assert await client.recv() == "between"


async def test_each_frame_has_a_mask_of_its_own(masks: list[bytes]) -> None:
    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect_websocket(
            f"ws://127.0.0.1:{port}",
            create_connection=LargeFrameConnection,
            compression=None,
            proxy=None,
            max_size=None,
        ) as client:
            assert isinstance(client, LargeFrameConnection)
            masks.clear()
            for _ in range(5):
                await client.send_parts(HEADER, PAYLOAD)
                await client.recv()
    assert len(set(masks)) >= 5
    assert all(len(mask) == 4 for mask in masks)


async def test_connection_that_is_closed_sends_nothing() -> None:
    async with serve(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect_websocket(
            f"ws://127.0.0.1:{port}", create_connection=LargeFrameConnection, compression=None, proxy=None
        ) as client:
            assert isinstance(client, LargeFrameConnection)
            await client.close()
            with pytest.raises(ConnectionClosed):
                await client.send_parts(HEADER, PAYLOAD)
