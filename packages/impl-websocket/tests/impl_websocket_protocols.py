"""Protocol classes without a network: what is fed into them, and what they made of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from tailrace_impl_websocket._frame_channel import FRAMES_EXTENSION, AsgiFrames, DirectFrames
from tailrace_impl_websocket._frame_layout import CLOSE, PONG, TEXT

HANDSHAKE = (
    b"GET /v1/connect?a=b HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    b"Sec-WebSocket-Protocol: tailrace.v1\r\n\r\n"
)


class Wire(asyncio.Transport):
    """A transport whose other end is the test."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 2)})
        self.written: list[bytes] = []
        self.reading = True
        self.closing = False
        self.ended = False
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[Wire], bool]) -> None:
        """Wait until something holds of what was done to the transport."""
        while not condition(self):
            self._changed.clear()
            await self._changed.wait()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended, "nothing is written behind the end"
        self.written.append(bytes(data))
        self._changed.set()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self._changed.set()

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        self._changed.set()

    def abort(self) -> None:
        self.close()


@dataclass
class Told:
    """What a connection was told, and what its client was."""

    messages: list[str | bytes] = field(default_factory=list)
    left: bool = False
    output: bytes = b""

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """Frames that were sent, with their opcodes."""
        frames, rest = [], self.output
        while rest:
            size, header = rest[1], 2
            if size == 126:
                size, header = int.from_bytes(rest[2:4], "big"), 4
            elif size == 127:
                size, header = int.from_bytes(rest[2:10], "big"), 10
            frames.append((rest[0] & 0x0F, rest[header : header + size]))
            rest = rest[header + size :]
        return frames

    @property
    def pongs(self) -> list[bytes]:
        """Payloads of the pongs."""
        return [data for opcode, data in self.frames if opcode == PONG]

    @property
    def errors(self) -> list[str]:
        """Codes of the typed errors."""
        return [json.loads(data)["code"] for opcode, data in self.frames if opcode == TEXT]

    @property
    def close_codes(self) -> list[bytes]:
        """Codes of the close frames, as they travel."""
        return [data[:2] for opcode, data in self.frames if opcode == CLOSE]


class Listener:
    """An application that accepts a connection and keeps all it is told."""

    def __init__(self, told: Told, *, direct: bool) -> None:
        self._told = told
        self._direct = direct
        self.read = asyncio.Event()
        """Set once the handshake is over."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        frames = AsgiFrames(receive, send)
        if self._direct:
            frames = DirectFrames(receive, send, scope["extensions"][FRAMES_EXTENSION]["channel"])
        await frames.accept()
        self.read.set()
        await frames.read(self)
        self._told.left = True

    def take_frame(self, frame: bytes) -> None:
        assert type(frame) is bytes
        self._told.messages.append(frame)

    def take_text(self, text: str) -> None:
        self._told.messages.append(text)


class Connection:
    """A connection over a protocol class, and the application behind it."""

    def __init__(self, implementation: type[Any], application: Any, *, max_size: int, **settings: Any) -> None:
        settings = {"ws_ping_interval": None, "loop": "none", "lifespan": "off", "log_config": None, **settings}
        config = Config(application, ws=implementation, ws_max_size=max_size, ws_per_message_deflate=False, **settings)
        config.load()
        self.state = ServerState()
        self.wire = Wire()
        self.protocol = implementation(config=config, server_state=self.state, app_state={})
        self.protocol.connection_made(self.wire)
        self.protocol.data_received(HANDSHAKE)

    def feed(self, data: bytes) -> None:
        """Let bytes arrive, as an event loop does."""
        if not isinstance(self.protocol, asyncio.BufferedProtocol):
            self.protocol.data_received(data)
            return
        while data:
            buffer = cast(memoryview, self.protocol.get_buffer(-1))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            self.protocol.buffer_updated(count)
            data = data[count:]

    async def let_in(self, data: bytes) -> None:
        """Let bytes arrive as soon as the connection reads; not at all where it never will."""
        await self.wire.until(lambda wire: wire.reading or wire.closing)
        if not self.wire.closing:
            self.feed(data)

    async def finish(self) -> None:
        """Lose the connection, and let the application end."""
        self.protocol.connection_lost(None)
        if self.state.tasks:
            await asyncio.wait(self.state.tasks)


async def told_by(
    implementation: type[Any], pieces: Iterable[bytes], *, direct: bool = False, max_size: int = 100_000
) -> Told:
    """Return what becomes of pieces that arrive one after the other."""
    told = Told()
    listener = Listener(told, direct=direct)
    connection = Connection(implementation, listener, max_size=max_size)
    await listener.read.wait()
    connection.wire.written.clear()
    for piece in pieces:
        await connection.let_in(piece)
    await connection.finish()
    told.output = b"".join(connection.wire.written)
    return told


def masked(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"\x12\x34\x56\x78") -> bytes:
    """Build a frame of a client."""
    size = len(payload)
    first = bytes([opcode | (0x80 if final else 0)])
    if size < 126:
        header = first + bytes([0x80 | size])
    elif size < 65536:
        header = first + b"\xfe" + size.to_bytes(2, "big")
    else:
        header = first + b"\xff" + size.to_bytes(8, "big")
    repeated = (mask * (size // 4 + 1))[:size]
    return header + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
