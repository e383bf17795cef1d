"""Followers that cost next to nothing, so that a thousand of them measure the server: sockets and bytes, no client.

Each has a connection of its own, checks offset, chain, hash and every byte of what it gets, and keeps no more than the
time of each arrival. The resource that they follow holds numbered lines (:func:`numbered_lines`).

Run as a program it follows over many connections, says when they all stand, and hands its times to its parent.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import sys
import time
from abc import abstractmethod
from array import array
from collections.abc import Callable
from functools import partial
from typing import cast
from urllib.parse import urlsplit

from loops import run_coroutine

from tailrace_common_api import FromOffset
from tailrace_impl_common import chunk_hash
from tailrace_impl_common.messages import Chunk, ClientMessage, End, Follow, Started, Window
from tailrace_impl_grpc._codec import FOLLOW
from tailrace_impl_websocket._chunk_frame import parse_chunk
from tailrace_impl_websocket._codec import (
    PATH,
    SUBPROTOCOL,
    Failure,
    Hello,
    Ping,
    decode_from_server,
    encode_from_client,
)

LINE_SIZE = 100
WINDOW = 8 << 20
"""Bytes that a follower grants, as those of the shipped clients do."""
_AT_ONCE = 64
"""Connections that are being made at the same time."""


def numbered_lines(first: int, count: int) -> bytes:
    """Return the lines from number ``first`` on."""
    return b"".join([b"%099d\n" % number for number in range(first, first + count)])


class Arrivals:
    """What arrives at all followers of one process is compared with this, and its times are kept."""

    def __init__(self, lines: int, *, timed: bool) -> None:
        """Expect that many lines.

        Args:
            lines: Number of lines of the whole resource.
            timed: Whether to keep the time of every arrival of every line.
        """
        self.expected = numbered_lines(0, lines)
        self.timed = timed
        self.numbers = array("I")
        self.times = array("d")
        self.messages = 0
        self.unfinished = 0
        self.starting = 0
        self.last = 0.0
        self.progressed = asyncio.Event()
        self.error: Exception | None = None
        self._hashes: dict[tuple[int, int], bytes] = {}

    def take(self, offset: int, chunk: Chunk, previous: bytes) -> None:
        """Check a chunk that has to follow ``previous`` at ``offset``, and keep its time."""
        now = time.perf_counter()
        size = len(chunk.data)
        if chunk.offset != offset or chunk.previous != previous:
            raise AssertionError(f"a chunk at {chunk.offset} where {offset} comes next")
        if not self.expected.startswith(chunk.data, offset):
            raise AssertionError(f"other bytes than those that were written came from {offset} on")
        key = offset, size
        known = self._hashes.get(key)
        if known is None:
            # The bytes are the expected ones, so one hash of them is that of all.
            self._hashes[key] = known = chunk_hash(chunk.data)
        if chunk.hash != known:
            raise AssertionError(f"a wrong hash of the bytes from {offset} on")
        if chunk.checkpoint is not None and chunk.checkpoint.size != offset + size:
            raise AssertionError(f"the checkpoint of another size behind {offset + size}")
        self.messages += 1
        if self.timed:
            for number in range(-(-(offset + 1) // LINE_SIZE) - 1, (offset + size) // LINE_SIZE):
                self.numbers.append(number)
                self.times.append(now)
        self.last = now

    def fail(self, error: Exception) -> None:
        """Let the program end with what went wrong."""
        self.error = self.error or error
        self.progressed.set()


class RawFollower(asyncio.Protocol):
    """One follower on a connection of its own."""

    def __init__(self, host: str, id: str, arrivals: Arrivals) -> None:
        self._host = host
        self._id = id
        self._arrivals = arrivals
        self._buffer = bytearray()
        self._offset = 0
        self._previous = b""
        self._granted = WINDOW
        self._started = False
        self._ended = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.greet()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended:
            self._arrivals.fail(exc or ConnectionError("the server closed a connection"))

    def data_received(self, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        try:
            taken = self.parse(buffer)
        except Exception as error:  # noqa: BLE001  # the program ends with it
            self._arrivals.fail(error)
            return
        if buffer is self._buffer:
            del self._buffer[:taken]
        elif taken < len(data):
            self._buffer += data[taken:]

    @abstractmethod
    def greet(self) -> None:
        """Say what comes first on a connection."""

    @abstractmethod
    def parse(self, buffer: bytes | bytearray) -> int:
        """Take whole frames; return the bytes that they had."""

    @abstractmethod
    def say(self, message: ClientMessage) -> None:
        """Send a message of the conversation."""

    def write(self, data: bytes) -> None:
        """Send bytes."""
        assert self._transport is not None
        self._transport.write(data)

    def request(self) -> Follow:
        """Return what to ask for."""
        return Follow(id=self._id, token=None, start=FromOffset(0), window=WINDOW)

    def take(self, message: object) -> None:
        """Take a message of the server."""
        arrivals = self._arrivals
        if isinstance(message, Chunk):
            arrivals.take(self._offset, message, self._previous)
            self._offset = message.end
            self._previous = message.hash
            if self._offset + WINDOW - self._granted >= WINDOW // 4:
                self._granted = self._offset + WINDOW
                self.say(Window(self._granted))
        elif isinstance(message, Started):
            self._started = True
            arrivals.starting -= 1
            arrivals.progressed.set()
        elif isinstance(message, End):
            if self._offset != len(arrivals.expected) or message.offset != self._offset:
                raise AssertionError(f"the stream ended at {self._offset}")
            self._ended = True
            arrivals.unfinished -= 1
            arrivals.progressed.set()
        else:
            raise AssertionError(f"the server said {message!r}")

    def leave(self) -> None:
        """Close the connection."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()


class WebSocketFollower(RawFollower):
    """Speaks WebSocket, with a mask of zeros."""

    def greet(self) -> None:
        self._open = False
        lines = (
            f"GET {PATH} HTTP/1.1",
            f"Host: {self._host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
        )
        self.write("\r\n".join((*lines, "", "")).encode())

    def say(self, message: ClientMessage) -> None:
        self._frame(0x1, encode_from_client(1, message).encode())

    def _frame(self, opcode: int, data: bytes) -> None:
        size = len(data)
        length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
        self.write(bytes((0x80 | opcode,)) + length + bytes(4) + data)

    def parse(self, buffer: bytes | bytearray) -> int:
        position = 0
        if not self._open:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return 0
            if not buffer.startswith(b"HTTP/1.1 101 "):
                raise AssertionError(f"refused: {bytes(buffer)!r}")
            self._open = True
            position = end + 4
        while len(buffer) - position >= 2:
            size, start = buffer[position + 1], position + 2
            if size == 126:
                start = position + 4
                size = int.from_bytes(buffer[position + 2 : start], "big")
            elif size == 127:
                start = position + 10
                size = int.from_bytes(buffer[position + 2 : start], "big")
            if len(buffer) < start + size:
                break
            self._message(buffer[position], bytes(buffer[start : start + size]))
            position = start + size
        return position

    def _message(self, kind: int, data: bytes) -> None:
        if kind == 0x82:
            self.take(parse_chunk(data))
        elif kind == 0x81:
            message = decode_from_server(data.decode()).message
            if isinstance(message, Hello):
                self.say(self.request())
            elif isinstance(message, Failure):
                raise message.error
            elif not isinstance(message, Ping):
                self.take(message)
        elif kind == 0x89:
            self._frame(0xA, data)
        elif kind != 0x8A:
            raise AssertionError(f"a frame that begins with {kind:#x}")


_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACKNOWLEDGED = 1
_END_OF_HEADERS = 4
_MOST = 2**31 - 1


class GrpcFollower(RawFollower):
    """Speaks as much HTTP/2 as one call needs."""

    def greet(self) -> None:
        self._messages = bytearray()
        self._taken = 0
        settings = (4).to_bytes(2, "big") + _MOST.to_bytes(4, "big")
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": FOLLOW.path,
            ":authority": self._host,
            "te": "trailers",
            "content-type": "application/grpc",
        }
        # Literals that are not indexed: RFC 7541, section 6.2.2.
        block = b"".join(
            bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
            for name, value in fields.items()
        )
        self.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._frame(_SETTINGS, 0, 0, settings)
        self._frame(_WINDOW_UPDATE, 0, 0, (_MOST - 65535).to_bytes(4, "big"))
        self._frame(_HEADERS, _END_OF_HEADERS, 1, block)
        self.say(self.request())

    def say(self, message: ClientMessage) -> None:
        data = FOLLOW.encode_request(message)
        self._frame(_DATA, 0, 1, b"\0" + len(data).to_bytes(4, "big") + data)

    def _frame(self, kind: int, flags: int, stream: int, data: bytes) -> None:
        self.write(len(data).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + data)

    def parse(self, buffer: bytes | bytearray) -> int:
        position = 0
        while len(buffer) - position >= 9:
            end = position + 9 + int.from_bytes(buffer[position : position + 3], "big")
            if len(buffer) < end:
                break
            self._take_frame(buffer[position + 3], buffer[position + 4], bytes(buffer[position + 9 : end]))
            position = end
        return position

    def _take_frame(self, kind: int, flags: int, data: bytes) -> None:
        if kind == _DATA:
            self._take_data(data)
        elif kind == _SETTINGS and not flags & _ACKNOWLEDGED:
            self._frame(_SETTINGS, _ACKNOWLEDGED, 0, b"")
        elif kind == _PING and not flags & _ACKNOWLEDGED:
            self._frame(_PING, _ACKNOWLEDGED, 0, data)
        elif kind == _HEADERS and flags & 1 and not self._ended:
            raise AssertionError(f"the call ended early: {data!r}")
        elif kind in (3, 7) and not self._ended:
            raise AssertionError(f"the server gave up: {data!r}")

    def _take_data(self, data: bytes) -> None:
        self._taken += len(data)
        if self._taken >= 1 << 20:
            for stream in (0, 1):
                self._frame(_WINDOW_UPDATE, 0, stream, self._taken.to_bytes(4, "big"))
            self._taken = 0
        messages = self._messages
        messages += data
        position = 0
        while len(messages) - position >= 5:
            end = position + 5 + int.from_bytes(messages[position + 1 : position + 5], "big")
            if len(messages) < end:
                break
            decoded = FOLLOW.decode_response(bytes(messages[position + 5 : end]))
            for message in decoded if isinstance(decoded, list) else (decoded,):
                self.take(message)
            position = end
        del messages[:position]


FOLLOWERS: dict[str, Callable[[str, str, Arrivals], RawFollower]] = {"ws": WebSocketFollower, "grpc": GrpcFollower}


def _itself(follower: RawFollower) -> RawFollower:
    return follower


async def _follow(url: str, id: str, followers: int, lines: int, timed: bool) -> None:
    arrivals = Arrivals(lines, timed=timed)
    parts = urlsplit(url)
    make = FOLLOWERS[parts.scheme]
    assert parts.hostname is not None
    assert parts.port is not None
    loop = asyncio.get_running_loop()
    made: list[RawFollower] = []

    async def until(reached: Callable[[], bool]) -> None:
        while not reached():
            arrivals.progressed.clear()
            await arrivals.progressed.wait()
            if arrivals.error is not None:
                raise arrivals.error

    arrivals.unfinished = followers
    while len(made) < followers:
        batch = [make(parts.netloc, id, arrivals) for _ in range(min(_AT_ONCE, followers - len(made)))]
        made += batch
        arrivals.starting += len(batch)
        for follower in batch:
            await loop.create_connection(partial(_itself, follower), parts.hostname, parts.port)
        await until(lambda: arrivals.starting == 0)
    print(json.dumps("following"), flush=True)
    await until(lambda: arrivals.unfinished == 0)
    for follower in made:
        follower.leave()
    pickle.dump((arrivals.numbers, arrivals.times, arrivals.messages, arrivals.last), sys.stdout.buffer)


if __name__ == "__main__":
    _url, _id, _followers, _lines, _timed = sys.argv[1:]
    run_coroutine(_follow(_url, _id, int(_followers), int(_lines), _timed == "timed"))
