"""The client's end of a WebSocket without a network: what is fed into it, and what it sends."""

from __future__ import annotations

import asyncio
from typing import cast

from impl_websocket_protocols import Wire

from tailrace_impl_websocket._frame_layout import MASKED, apply_mask


class ClientWire(Wire):
    """A transport whose protocol may be another one later, and whose other end may be slow."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None
        self.unsent = 0
        """Bytes that have not left."""
        self.aborted = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert not self.reading, "an event loop that reads goes on as it began"
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self.protocol is not None
        return self.protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Take all there is."""

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def feed(self, data: bytes) -> None:
        """Let bytes arrive, as an event loop does."""
        while data:
            protocol = self.get_protocol()
            if not isinstance(protocol, asyncio.BufferedProtocol):
                cast(asyncio.Protocol, protocol).data_received(data)
                return
            buffer = cast(memoryview, protocol.get_buffer(-1))
            count = min(len(buffer), len(data))
            assert count
            buffer[:count] = data[:count]
            # What the protocol does not hold may be anything by the time of the next piece.
            del buffer
            protocol.buffer_updated(count)
            data = data[count:]

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """Frames that were written, with their opcodes; each of them masked."""
        return frames_of_client(b"".join(self.written))


class Heard:
    """Keeps all it is told."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.left = False

    def binary_received(self, data: bytes | memoryview) -> None:
        assert not self.left
        assert memoryview(data).readonly
        self.messages.append(bytes(data))

    def text_received(self, text: str) -> None:
        assert not self.left
        self.messages.append(text)

    def disconnected(self) -> None:
        self.left = True


def frames_of_client(output: bytes) -> list[tuple[int, bytes]]:
    """Return the frames in what a client wrote, with their opcodes; each has to be masked."""
    frames = []
    while output:
        assert output[1] & MASKED
        size, start = output[1] & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(output[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(output[2:10], "big"), 10
        end = start + 4 + size
        frames.append((output[0] & 0x0F, apply_mask(output[start + 4 : end], output[start : start + 4])))
        output = output[end:]
    return frames
