"""Who is asked whether he is there, and how long his answer is waited for while bytes flow."""

from __future__ import annotations

import asyncio
import importlib
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import pytest
from impl_websocket_client_wire import ClientWire, Heard
from impl_websocket_frames import unmasked
from impl_websocket_protocols import Connection, Listener, Told, Wire
from impl_websocket_server import raw, running_server
from websockets.asyncio.client import connect as connect_websocket
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosedError

from tailrace_impl_common import LOOKS_PER_TIMEOUT, Keepalive, Patience, Traffic
from tailrace_impl_websocket._buffered_protocol import BufferedFrameProtocol
from tailrace_impl_websocket._client_connection import LibraryFrames, OpeningConnection
from tailrace_impl_websocket._client_frames import ClientFrameProtocol
from tailrace_impl_websocket._frame_layout import CLOSE, PING
from tailrace_impl_websocket._frame_protocol import FrameProtocol

INTERVAL, TIMEOUT = 10.0, 20.0
LOOK = TIMEOUT / LOOKS_PER_TIMEOUT


class Line:
    """The network below a transport, as the system tells of it."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.received = 0
        self.unsent = 0
        self.looks = 0
        self.before_each_look: Callable[[], None] = lambda: None

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        self.looks += 1
        self.before_each_look()
        return struct.pack("=120xQQ8xI", self.acknowledged, self.received, self.unsent)[:size]

    def below(self, wire: Wire) -> Line:
        """Lie below a transport."""
        wire._extra["socket"] = self  # type: ignore[attr-defined]  # where asyncio keeps what it tells
        return self


class Clock:
    """An event loop whose time the test sets; it can do nothing but call later."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, callback, args, cast(asyncio.AbstractEventLoop, self))
        self.due.append((self.now + delay, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.due = [each for each in self.due if each[1] is not handle]

    def pass_to(self, time: float) -> None:
        """Let time pass, and what is due on the way happen."""
        while self.due:
            when, handle = min(self.due, key=lambda each: each[0])
            if when > time:
                break
            self.due.remove((when, handle))
            self.now = when
            handle._run()
        self.now = time


class Asked:
    """A keep-alive over a line, with the times at which it asked and gave up."""

    def __init__(self, *, timeout: float | None = TIMEOUT) -> None:
        self.clock = Clock()
        self.wire = ClientWire()
        self.line = Line().below(self.wire)
        self.pings: list[tuple[float, bytes]] = []
        self.told = False
        """Whether who asks knows of bytes that have flown."""
        self.lost: list[float] = []
        self.keepalive = Keepalive(
            cast(asyncio.AbstractEventLoop, self.clock),
            INTERVAL,
            timeout,
            self.wire,
            ping=lambda payload: self.pings.append((self.clock.now, payload)),
            lost=lambda: self.lost.append(self.clock.now),
            moved=self._moved,
        )

    def _moved(self) -> bool:
        told, self.told = self.told, False
        return told

    def answer(self) -> None:
        """Answer the last ping."""
        self.keepalive.answered(self.pings[-1][1])


# How long it waits


def test_peer_that_is_silent_is_given_up_when_the_time_is_over() -> None:
    asked = Asked()
    asked.clock.pass_to(INTERVAL + TIMEOUT - 0.001)
    assert [when for when, _ in asked.pings] == [INTERVAL]
    assert asked.lost == []
    asked.clock.pass_to(1000.0)
    assert asked.lost == [INTERVAL + TIMEOUT]
    assert asked.clock.due == []


def test_peer_that_answers_is_asked_again() -> None:
    asked = Asked()
    asked.clock.pass_to(INTERVAL + 3.0)
    asked.keepalive.answered(b"else")
    asked.answer()
    asked.clock.pass_to(1000.0 - LOOK)
    # The next one is due an interval after the one before.
    assert [when for when, _ in asked.pings] == [INTERVAL, 2 * INTERVAL]
    assert asked.lost == [2 * INTERVAL + TIMEOUT]


def test_without_a_timeout_it_only_asks() -> None:
    asked = Asked(timeout=None)
    asked.keepalive.wait_again()
    asked.clock.pass_to(3 * INTERVAL)
    assert [when for when, _ in asked.pings] == [INTERVAL, 2 * INTERVAL, 3 * INTERVAL]
    assert asked.line.looks == 0
    asked.keepalive.stop()
    assert asked.clock.due == []


@pytest.mark.parametrize(
    "seen", ["received", "acknowledged behind unsent", "acknowledged behind buffered", "taken", "told"]
)
@pytest.mark.parametrize("looks_between", [1, LOOKS_PER_TIMEOUT])
def test_time_begins_anew_while_bytes_flow(seen: str, looks_between: int) -> None:
    asked = Asked()
    line, wire = asked.line, asked.wire
    wire.unsent = 10_000 if seen in ("taken", "acknowledged behind buffered") else 0
    line.unsent = 10_000 if seen == "acknowledged behind unsent" else 0

    def flow() -> None:
        if seen == "received":
            line.received += 1
        elif seen == "taken":
            wire.unsent -= 1
        elif seen == "told":
            asked.told = True
        else:
            line.acknowledged += 1

    # Only just in time for each look, or for the last one before it is given up.
    for number in range(1, 51):
        asked.clock.pass_to(INTERVAL + number * looks_between * LOOK - 0.001)
        flow()
    last = INTERVAL + 50 * looks_between * LOOK
    asked.clock.pass_to(last + TIMEOUT - 0.001)
    assert asked.lost == []
    assert len(asked.pings) == 1
    asked.clock.pass_to(10_000.0)
    # As long as the time behind the look that saw the last of it.
    assert asked.lost == [pytest.approx(last + TIMEOUT)]


def test_answer_that_comes_behind_all_the_bytes_is_taken() -> None:
    asked = Asked()
    asked.line.unsent = 1
    for number in range(1, 51):
        asked.clock.pass_to(INTERVAL + number * LOOK - 0.001)
        asked.line.acknowledged += 1
    asked.answer()
    asked.clock.pass_to(asked.clock.now + 0.001)
    assert len(asked.pings) == 2
    # What flowed before it is no sign for the next one.
    asked.clock.pass_to(10_000.0)
    assert asked.lost == [pytest.approx(asked.pings[1][0] + TIMEOUT)]


def test_system_of_a_dead_peer_confirms_what_does_not_have_to_wait_and_is_not_believed() -> None:
    asked = Asked()

    def trickle() -> None:
        asked.line.acknowledged += 100

    asked.line.before_each_look = trickle
    asked.clock.pass_to(1000.0)
    assert asked.lost == [INTERVAL + TIMEOUT]


def test_line_on_which_all_waits_and_nothing_leaves_is_given_up() -> None:
    asked = Asked()
    asked.wire.unsent, asked.line.unsent, asked.line.acknowledged = 1_000_000, 4_000_000, 77

    def write() -> None:
        # Whoever produces goes on.
        asked.wire.unsent += 1
        asked.line.unsent += 1

    asked.line.before_each_look = write
    asked.clock.pass_to(1000.0)
    assert asked.lost == [INTERVAL + TIMEOUT]


# What the system tells


def over_tcp(loop: str, check: Callable[[asyncio.Transport, socket.socket], Any]) -> None:
    """Run a check with a transport of an event loop and the socket at the other end, in both of which little waits."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")

    async def run() -> None:
        running = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            transport, _ = await running.create_connection(asyncio.Protocol, *listener.getsockname())
            peer, _ = listener.accept()
        with peer:
            await check(transport, peer)
            transport.abort()

    with asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop) as runner:
        runner.run(run())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that the system does by itself."""
    while not condition():  # noqa: ASYNC110 - the system tells nobody of it
        await asyncio.sleep(0.001)


BOTH_LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@BOTH_LOOPS
def test_bytes_that_arrive_are_seen(loop: str) -> None:
    async def check(transport: asyncio.Transport, peer: socket.socket) -> None:
        before = Traffic.of(transport)
        assert before == Traffic(0, 0, before.acknowledged, 0)
        assert not Traffic.of(transport).has_moved(before)
        peer.sendall(b"12345")
        await until(lambda: Traffic.of(transport).has_moved(before))
        await until(lambda: Traffic.of(transport).received == 5)

    over_tcp(loop, check)


@BOTH_LOOPS
def test_bytes_that_a_slow_reader_takes_are_seen(loop: str) -> None:
    async def check(transport: asyncio.Transport, peer: socket.socket) -> None:
        peer.setblocking(False)
        sent = 8 * 1024 * 1024
        transport.write(bytes(sent))
        # More than fits in between: some of it waits until the reader has read.
        await until(lambda: Traffic.of(transport).unsent > 0)
        taken = 0
        for _ in range(10):
            before = Traffic.of(transport)
            assert before.buffered or before.unsent
            while not Traffic.of(transport).has_moved(before):
                with suppress(BlockingIOError):
                    taken += len(peer.recv(65536))
                await asyncio.sleep(0)
        assert 0 < taken < sent

    over_tcp(loop, check)


@BOTH_LOOPS
def test_bytes_that_nobody_reads_and_nothing_holds_up_are_no_sign(loop: str) -> None:
    async def check(transport: asyncio.Transport, peer: socket.socket) -> None:
        before = Traffic.of(transport)
        transport.write(b"12345")
        await until(lambda: Traffic.of(transport).acknowledged >= before.acknowledged + 5)
        assert not Traffic.of(transport).has_moved(before)

    over_tcp(loop, check)


async def test_socket_that_counts_nothing_tells_what_waits_in_the_transport() -> None:
    wire = ClientWire()
    wire.unsent = 5
    assert Traffic.of(wire) == Traffic(5)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire._extra["socket"] = ours  # type: ignore[attr-defined]  # where asyncio keeps what it tells
        assert Traffic.of(wire) == Traffic(5)
    # Closed.
    assert Traffic.of(wire) == Traffic(5)
    wire.unsent = 4
    assert Traffic.of(wire).has_moved(Traffic(5))
    assert not Traffic.of(wire).has_moved(Traffic(4))


def test_system_that_tells_less_is_as_one_that_tells_nothing() -> None:
    wire = ClientWire()
    line = Line().below(wire)
    line.getsockopt = lambda *_: bytes(104)  # type: ignore[method-assign]  # as long as it once was
    assert Traffic.of(wire) == Traffic(0)


# Who keeps connections


PROTOCOLS = pytest.mark.parametrize("implementation", [BufferedFrameProtocol, FrameProtocol])
ENOUGH = 10 * LOOKS_PER_TIMEOUT
"""Looks in the time in which a connection would be given up ten times."""


@PROTOCOLS
async def test_server_bears_with_a_client_while_bytes_flow_and_not_longer(
    implementation: type[asyncio.BaseProtocol],
) -> None:
    told = Told()
    listener = Listener(told, direct=implementation is BufferedFrameProtocol)
    connection = Connection(implementation, listener, max_size=1000, ws_ping_interval=0.01, ws_ping_timeout=0.01)
    line = Line().below(connection.wire)
    enough = asyncio.Event()

    def flow() -> None:
        if line.looks <= ENOUGH:
            line.received += 1
        else:
            enough.set()

    line.before_each_look = flow
    await enough.wait()
    # It has asked once, and waits; what was written before is the handshake.
    _, ping = connection.wire.written
    assert ping[0] & 0x0F == PING
    assert not connection.wire.closing
    await connection.wire.until(lambda wire: wire.closing)
    told.output = b"".join(connection.wire.written[1:])
    assert told.close_codes == [(1011).to_bytes(2, "big")]
    await connection.finish()


async def test_client_bears_with_a_server_while_bytes_flow_and_not_longer() -> None:
    wire = ClientWire()
    line = Line().below(wire)
    frames = ClientFrameProtocol(wire, max_size=1000, ping_interval=0.01, ping_timeout=0.01, close_timeout=30.0)
    frames.begin(b"")
    heard = Heard()
    frames.hand_to(heard)
    enough = asyncio.Event()

    def flow() -> None:
        if line.looks <= ENOUGH:
            line.received += 1
        else:
            enough.set()

    line.before_each_look = flow
    await enough.wait()
    assert [opcode for opcode, _ in wire.frames] == [PING]
    assert frames.is_open
    await wire.until(lambda wire: wire.closing)
    assert [(opcode, data[:2]) for opcode, data in wire.frames[1:]] == [(CLOSE, b"\x03\xf3")]
    assert heard.left
    wire.feed(unmasked(CLOSE, b"\x03\xf3"))
    frames.connection_lost(None)


async def test_client_of_the_library_bears_with_a_server_while_bytes_flow_and_not_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    enough = asyncio.Event()

    def flowing(_: asyncio.Transport) -> Traffic:
        nonlocal looks
        looks += 1
        if looks > ENOUGH:
            enough.set()
        return Traffic(0, received=min(looks, ENOUGH))

    async def silent(websocket: ServerConnection) -> None:
        # No ping is read, and so none is answered.
        websocket.transport.pause_reading()
        await ended.wait()
        websocket.transport.abort()

    monkeypatch.setattr(Traffic, "of", staticmethod(flowing))
    ended = asyncio.Event()
    async with serve(silent, "127.0.0.1", 0, compression="deflate", ping_interval=None) as server:
        client = await connect_websocket(
            f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            create_connection=OpeningConnection,
            compression="deflate",
            ping_interval=0.01,
            ping_timeout=0.01,
            close_timeout=0.1,
            proxy=None,
        )
        assert isinstance(client, OpeningConnection)
        assert isinstance(client.frames, LibraryFrames)
        await enough.wait()
        assert client.frames.is_open
        with pytest.raises(ConnectionClosedError, match="keepalive ping timeout"):
            await client.recv()
        ended.set()


@pytest.mark.parametrize(
    ("name", "implementation"), [("buffered", BufferedFrameProtocol), ("websockets-sansio", FrameProtocol)]
)
async def test_reader_who_takes_a_little_at_a_time_is_kept_and_one_who_takes_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, name: str, implementation: Any
) -> None:
    serving: list[Any] = []
    waiting: list[Patience] = []
    looks = 0
    looked, left = asyncio.Event(), asyncio.Event()
    connection_made, connection_lost = implementation.connection_made, implementation.connection_lost
    lasts = Patience.lasts

    def made(protocol: Any, transport: asyncio.Transport) -> None:
        connection_made(protocol, transport)
        serving.append(protocol)

    def lost(protocol: Any, exception: Exception | None) -> None:
        connection_lost(protocol, exception)
        left.set()

    def look(patience: Patience) -> bool:
        nonlocal looks
        waiting[:] = [patience]
        if looks == 0:
            # Time passes only when the test lets it.
            looked.set()
            return True
        looks -= 1
        return lasts(patience)

    monkeypatch.setattr(implementation, "connection_made", made)
    monkeypatch.setattr(implementation, "connection_lost", lost)
    monkeypatch.setattr(Patience, "lasts", look)
    async with running_server({"protocol": name}, keepalive_interval=1000.0) as server, raw(server.endpoint) as client:
        [protocol] = serving
        client.websocket.transport.pause_reading()
        connection = client.websocket.transport.get_extra_info("socket")
        # Far more than fits in between.
        protocol.transport.write(bytes(64 * 1024 * 1024))
        lost_by = protocol._lost if name == "buffered" else protocol.keepalive_timeout
        protocol._keepalive = Keepalive(
            asyncio.get_running_loop(), 0.01, 0.01, protocol.transport, ping=protocol._ping, lost=lost_by
        )
        with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as reader:
            reader.setblocking(False)
            for _ in range(3 * LOOKS_PER_TIMEOUT):
                await looked.wait()
                while not Traffic.of(protocol.transport).has_moved(waiting[0]._seen):
                    with suppress(BlockingIOError):
                        reader.recv(4096)
                    await asyncio.sleep(0)
                looked.clear()
                looks += 1
                await looked.wait()
                assert not left.is_set()
            # Nobody reads any more.
            looks = 1_000_000
            await left.wait()
        client.websocket.transport.abort()
