"""The client's own reading and writing of frames, over a wire whose other end is the test."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from impl_websocket_client_wire import ClientWire, Heard
from impl_websocket_frames import unmasked
from impl_websocket_peer import ID, LIMITS, STATUS
from impl_websocket_protocols import masked
from impl_websocket_server import frame as chunk_frame

from tailrace_common_api import MEBIBYTE, GoingAway, RecordBatch
from tailrace_impl_common.messages import Chunk, Read, Request, Started, Watch
from tailrace_impl_common.record_messages import Query, QueryStarted
from tailrace_impl_websocket._client_frames import ClientFrameProtocol
from tailrace_impl_websocket._client_streams import Link
from tailrace_impl_websocket._codec import Failure, Hello, encode_from_server
from tailrace_impl_websocket._frame_layout import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from tailrace_impl_websocket._record_frame import frame_records

CLOSE_1000 = (CLOSE, b"\x03\xe8")


class Open:
    """An open connection."""

    def __init__(self, received: bytes = b"", **settings: Any) -> None:
        self.wire = ClientWire()
        settings = {"ping_interval": None, "ping_timeout": None, "close_timeout": 30.0, **settings}
        self.frames = ClientFrameProtocol(self.wire, max_size=4 * MEBIBYTE, **settings)
        self.frames.begin(received)
        self.heard = Heard()
        self.feed = self.wire.feed

    def listen(self) -> Open:
        self.frames.hand_to(self.heard)
        return self

    @property
    def sent(self) -> list[tuple[int, bytes]]:
        """Frames that were sent since this was asked for last."""
        frames = self.wire.frames
        self.wire.written.clear()
        return frames

    def reads(self) -> bool:
        """Whether what arrives is taken in."""
        return self.wire.reading

    def is_open(self) -> bool:
        """Whether neither side has ended the connection."""
        return self.frames.is_open

    def lose(self) -> None:
        self.frames.connection_lost(None)
        assert self.frames._close_timer is None


async def turns(count: int = 5) -> None:
    """Let everything run that can."""
    for _ in range(count):
        await asyncio.sleep(0)


# Receiving

STREAM = (
    unmasked(TEXT, b"one", final=False)
    + unmasked(PING, b"in between")
    + unmasked(CONTINUATION, b" and ", final=False)
    + unmasked(PONG, b"nobody asked")
    + unmasked(CONTINUATION, b"two")
    + unmasked(BINARY, b"", final=False)
    + unmasked(CONTINUATION, b"\x00" * 130, final=False)
    + unmasked(CONTINUATION, b"")
    + unmasked(BINARY, b"x" * 300)
    + unmasked(PING, b"")
    + unmasked(CLOSE, b"\x03\xe9going")
)


async def test_fragments_and_control_frames_cut_in_every_place() -> None:
    for cut in range(len(STREAM) + 1):
        made = Open(STREAM[:cut]).listen()
        made.feed(STREAM[cut:])
        assert made.heard.messages == ["one and two", bytes(130), b"x" * 300], cut
        assert made.sent == [(PONG, b"in between"), (PONG, b""), (CLOSE, b"\x03\xe9going")]
        assert made.heard.left
        assert made.frames.end == "closed with code 1001, 'going'"
        made.lose()


@pytest.mark.parametrize("size", [125, 126, 127, 30_000, 32_766, 32_768, 65_535, 65_536, 200_000, MEBIBYTE + 46])
async def test_payloads_of_every_size_behind_one_another(size: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    stream = b"".join(unmasked(BINARY, payload[:size]) + unmasked(TEXT, b"t") for _ in range(3))
    for piece in (1000, 32_768, size, 10 * MEBIBYTE):
        made = Open().listen()
        for start in range(0, len(stream), piece):
            made.feed(stream[start : start + piece])
        assert made.heard.messages == [payload[:size], "t"] * 3
        made.lose()


@pytest.mark.parametrize(
    ("data", "code", "problem"),
    [
        (masked(BINARY, b"data"), 1002, "incorrect masking"),
        (masked(PING, b""), 1002, "incorrect masking"),
        (unmasked(BINARY, bytes(4 * MEBIBYTE + 1)), 1009, "4194305 bytes exceed the limit of 4194304"),
        (b"\x82\x7f" + b"\xff" * 8, 1009, "18446744073709551615 bytes exceed the limit of 4194304"),
        (b"\xc2\x01x", 1002, "reserved bits must be 0"),
        (b"\x83\x01x", 1002, "invalid opcode"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 1002, "reserved bits must be 0"),
        (unmasked(CONTINUATION, b"x"), 1002, "unexpected continuation frame"),
        (unmasked(TEXT, b"x", final=False) + unmasked(TEXT, b"x"), 1002, "expected a continuation frame"),
        (unmasked(PING, b"x", final=False), 1002, "fragmented control frame"),
        (unmasked(PING, bytes(126)), 1002, "control frame too long"),
        (unmasked(TEXT, b"\xff"), 1007, "invalid start byte at byte 0"),
        (unmasked(CLOSE, b"\x03"), 1002, "close frame too short"),
        (unmasked(CLOSE, b"\x03\xed"), 1002, "invalid status code"),
        (unmasked(CLOSE, b"\x03\xe8\xff"), 1007, "invalid start byte at byte 0"),
    ],
)
async def test_frames_that_cannot_be_read_end_the_connection(data: bytes, code: int, problem: str) -> None:
    made = Open().listen()
    made.feed(unmasked(TEXT, b"before") + data + unmasked(TEXT, b"behind"))
    assert made.heard.messages == ["before"]
    assert made.heard.left
    assert not made.is_open()
    [(opcode, payload)] = made.sent
    assert (opcode, payload[:2]) == (CLOSE, code.to_bytes(2, "big"))
    assert problem in made.frames.end
    # What is still on its way is taken and dropped.
    made.feed(bytes(100_000))
    assert made.reads()
    assert made.sent == []
    made.lose()


@pytest.mark.parametrize(
    ("payload", "end"),
    [
        (b"", "closed with code 1005"),
        (b"\x03\xe8", "closed with code 1000"),
        (b"\x03\xf3" + b"broken", "closed with code 1011, 'broken'"),
        (b"\x0f\xa0" + "ä".encode(), r"closed with code 4000, '\xe4'"),
    ],
)
async def test_close_of_the_server_is_answered_and_told(payload: bytes, end: str) -> None:
    made = Open().listen()
    made.feed(unmasked(CLOSE, payload) + unmasked(TEXT, b"late"))
    assert made.sent == [(CLOSE, payload)]
    assert made.heard.left
    assert made.heard.messages == []
    assert made.frames.end == end
    with pytest.raises(ConnectionResetError):
        await made.frames.send_text("late")
    # The server ends the connection below.
    assert not made.wire.closing
    assert made.frames._close_timer is not None
    made.lose()


async def test_connection_that_is_cut_says_so() -> None:
    made = Open().listen()
    made.feed(unmasked(BINARY, bytes(MEBIBYTE))[:500_000])
    assert made.frames._buffers._reusable.kept
    made.lose()
    assert made.heard.left
    assert made.frames.end == "closed with code 1006"
    # Nothing is held of what arrived.
    assert made.frames._reader._buffer is None
    assert made.frames._buffers._reusable.kept == 0


async def test_first_message_and_the_others_are_there_in_their_order() -> None:
    made = Open(unmasked(TEXT, b"hello"))
    made.feed(unmasked(BINARY, b"one") + unmasked(TEXT, b"two"))
    assert await made.frames.first() == "hello"
    made.listen()
    assert made.heard.messages == [b"one", "two"]
    made.feed(unmasked(TEXT, b"three"))
    assert made.heard.messages == [b"one", "two", "three"]
    made.lose()


async def test_first_message_is_waited_for() -> None:
    made = Open()
    waiting = asyncio.create_task(made.frames.first())
    await turns()
    assert not waiting.done()
    made.feed(unmasked(PING, b"x"))
    await turns()
    assert not waiting.done()
    made.feed(unmasked(TEXT, b"hello"))
    assert await waiting == "hello"
    waiting = asyncio.create_task(made.frames.first())
    await turns()
    made.lose()
    assert await waiting is None


async def test_end_behind_messages_is_told_behind_them() -> None:
    made = Open(unmasked(TEXT, b"error") + unmasked(TEXT, b"more") + unmasked(CLOSE, b"\x03\xe9"))
    assert await made.frames.first() == "error"
    made.listen()
    assert made.heard.messages == ["more"]
    assert made.heard.left
    made.lose()


@pytest.mark.parametrize("size", [3, 300_000])
async def test_reading_pauses_while_nobody_takes_messages(size: int) -> None:
    made = Open()
    count = 0
    while made.reads():
        made.feed(unmasked(BINARY, bytes(size)))
        count += 1
    assert count == (16 if size == 3 else 4)
    made.listen()
    assert made.reads()
    assert len(made.heard.messages) == count
    made.lose()


async def test_who_leaves_while_messages_are_handed_over_gets_no_more() -> None:
    made = Open(unmasked(TEXT, b"one") + unmasked(TEXT, b"two"))

    class Leaver(Heard):
        def text_received(self, text: str) -> None:
            super().text_received(text)
            made.frames.leave()

    leaver = Leaver()
    made.frames.hand_to(leaver)
    assert leaver.messages == ["one"]
    assert leaver.left
    made.feed(unmasked(TEXT, b"three"))
    assert leaver.messages == ["one"]
    made.lose()


async def test_leaving_takes_in_what_waits_for_nobody() -> None:
    made = Open()
    while made.reads():
        made.feed(unmasked(BINARY, bytes(3)))
    made.frames.leave()
    assert made.reads()
    made.feed(unmasked(BINARY, bytes(3)) * 100)
    assert made.reads()
    assert made.sent == [CLOSE_1000]
    made.lose()


# Sending


async def test_senders_wait_while_there_is_no_room() -> None:
    made = Open().listen()
    made.frames.pause_writing()
    waiting = [asyncio.create_task(made.frames.send_text(f"{number}")) for number in range(3)]
    waiting.append(asyncio.create_task(made.frames.send_parts(b"head", bytes(100_000))))
    await turns()
    # Written at once, so that one that is cancelled has sent its message.
    assert made.sent == [(TEXT, b"0"), (TEXT, b"1"), (TEXT, b"2"), (BINARY, b"head" + bytes(100_000))]
    assert not any(task.done() for task in waiting)
    waiting[1].cancel()
    await turns()
    made.frames.resume_writing()
    await asyncio.gather(waiting[0], *waiting[2:])
    assert waiting[1].cancelled()
    assert made.frames._waiting_senders == []
    await made.frames.send_text("free")
    made.lose()


@pytest.mark.parametrize("ending", ["lost", "closed", "refused", "left"])
async def test_senders_that_wait_learn_of_the_end(ending: str) -> None:
    made = Open().listen()
    made.frames.pause_writing()
    waiting = asyncio.create_task(made.frames.send_text("x"))
    await turns()
    if ending == "lost":
        made.lose()
    elif ending == "closed":
        made.feed(unmasked(CLOSE, b""))
    elif ending == "refused":
        made.feed(b"\xff\xff")
    else:
        made.frames.leave()
    with pytest.raises(ConnectionResetError):
        await waiting
    made.lose()


@pytest.mark.parametrize("sends_lists", [False, True])
async def test_large_payloads_are_masked_from_where_they_are(
    monkeypatch: pytest.MonkeyPatch, sends_lists: bool
) -> None:
    made = Open().listen()
    joined: list[int] = []
    real = ClientWire.writelines
    monkeypatch.setattr(made.frames, "_sends_lists", sends_lists)

    def writelines(wire: ClientWire, data: Any) -> None:
        joined.append(len(data))
        real(wire, data)

    monkeypatch.setattr(ClientWire, "writelines", writelines)
    payload = bytearray(b"payload!" * 10_000)
    await made.frames.send_parts(b"head", memoryview(payload))
    # What was masked is not the caller's any more.
    payload[:] = bytes(len(payload))
    assert len(made.wire.written) == 2
    assert joined == ([2] if sends_lists else [])
    assert made.sent == [(BINARY, b"head" + b"payload!" * 10_000)]
    made.lose()


async def test_connection_that_is_found_lost_while_it_writes_raises_nothing_else() -> None:
    made = Open().listen()
    # As after a write that failed, before that is told.
    made.wire.closing = True
    assert not made.is_open()
    with pytest.raises(ConnectionResetError):
        await made.frames.send_text("x")
    with pytest.raises(ConnectionResetError):
        await made.frames.send_parts(b"", bytes(100_000))
    made.feed(unmasked(PING, b"x") + unmasked(CLOSE, b""))
    assert made.wire.written == []
    made.lose()


# Control frames


async def test_pings_are_answered_and_do_not_pile_up_where_nobody_reads() -> None:
    made = Open().listen()
    made.feed(unmasked(PING, b"one") + unmasked(PING, b"two"))
    assert made.sent == [(PONG, b"one"), (PONG, b"two")]
    made.frames.pause_writing()
    for number in range(1000):
        made.feed(unmasked(PING, str(number).encode()))
    assert made.sent == []
    made.frames.resume_writing()
    assert made.sent == [(PONG, b"999")]
    made.frames.pause_writing()
    made.frames.resume_writing()
    assert made.sent == []
    made.lose()


async def pinged(made: Open) -> bytes:
    """Return the payload of the next ping."""
    await made.wire.until(lambda wire: bool(wire.written))
    [(opcode, payload)] = made.sent
    assert opcode == PING
    return payload


async def test_pongs_keep_a_connection_and_others_do_not() -> None:
    made = Open(ping_interval=0.001, ping_timeout=0.05).listen()
    for _ in range(5):
        payload = await pinged(made)
        made.feed(unmasked(PONG, b"of somebody else") + unmasked(PONG, payload))
    assert made.is_open()
    payload = await pinged(made)
    made.feed(unmasked(PONG, b"of somebody else"))
    await made.wire.until(lambda wire: bool(wire.written))
    [(opcode, said)] = made.sent
    assert (opcode, said[:2]) == (CLOSE, b"\x03\xf3")
    assert made.heard.left
    assert not made.is_open()
    # Who is gone is not waited for as one who is there.
    await made.wire.until(lambda _: made.wire.aborted)
    made.lose()


async def test_ping_that_waits_behind_much_has_time_as_long_as_that_leaves() -> None:
    made = Open(ping_interval=0.001, ping_timeout=0.01).listen()
    await made.frames.send_parts(b"head", bytes(MEBIBYTE))
    made.sent.clear()
    made.wire.unsent = MEBIBYTE
    payload = await pinged(made)
    made.wire.unsent += 10
    looked: list[int] = []
    real = made.frames._keepalive
    assert real is not None
    wait_again = type(real).wait_again

    def count(keepalive: Any) -> None:
        looked.append(made.wire.unsent)
        wait_again(keepalive)
        # A little leaves each time.
        made.wire.unsent -= 100_000
        made.wire._changed.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(real), "wait_again", count)
        made.wire.unsent -= 100_000
        await made.wire.until(lambda wire: len(looked) == 5)
    assert made.is_open()
    made.feed(unmasked(PONG, payload))
    assert made.is_open()
    made.lose()


async def test_connection_on_which_nothing_leaves_is_left() -> None:
    made = Open(ping_interval=0.001, ping_timeout=0.01).listen()
    await made.frames.send_parts(b"head", bytes(MEBIBYTE))
    made.sent.clear()
    made.wire.unsent = MEBIBYTE
    await pinged(made)
    await made.wire.until(lambda _: made.wire.aborted)
    assert made.heard.left
    made.lose()


async def test_without_a_timeout_nobody_is_left() -> None:
    made = Open(ping_interval=0.001).listen()
    payloads = {await pinged(made) for _ in range(5)}
    assert len(payloads) == 5
    assert made.is_open()
    made.lose()
    assert made.frames._keepalive is not None
    assert made.frames._keepalive._timer is None


# The end


async def test_closing_waits_for_the_server() -> None:
    made = Open().listen()
    closing = [asyncio.create_task(made.frames.close()) for _ in range(2)]
    await turns()
    assert made.sent == [CLOSE_1000]
    assert made.heard.left
    made.feed(unmasked(BINARY, bytes(100_000)) + unmasked(PING, b"x"))
    assert made.heard.messages == []
    made.feed(unmasked(CLOSE, b"\x03\xe8"))
    await turns()
    # It has answered; the connection below is its own to end.
    assert not any(task.done() for task in closing)
    assert made.sent == []
    made.frames.eof_received()
    made.lose()
    await asyncio.gather(*closing)
    await made.frames.close()


async def test_server_that_says_no_more_and_reads_no_more_is_cut_off() -> None:
    made = Open(close_timeout=0.01).listen()
    made.frames.pause_writing()
    waiting = asyncio.create_task(made.frames.send_text("x"))
    await turns()
    made.frames.eof_received()
    # An event loop closes the transport then, which waits until all has left.
    made.wire.close()
    assert made.heard.left
    assert made.frames.end == "closed with code 1006"
    with pytest.raises(ConnectionResetError):
        await waiting
    await made.wire.until(lambda _: made.wire.aborted)
    made.lose()


class Linked:
    """Conversations over an open connection whose server may read nothing."""

    def __init__(self) -> None:
        self.wire = ClientWire()
        self.frames = ClientFrameProtocol(
            self.wire, max_size=MEBIBYTE, ping_interval=None, ping_timeout=None, close_timeout=30.0
        )
        self.frames.begin(b"")
        self.link = Link(self.frames, Hello(1, LIMITS, 20.0), "ws://localhost")

    def stop_reading(self) -> None:
        """Let the server read nothing any more."""
        self.frames.pause_writing()
        self.wire.written.clear()

    @property
    def said(self) -> list[dict[str, Any]]:
        """Control messages since the server stopped to read."""
        return [json.loads(payload) for opcode, payload in self.wire.frames if opcode == TEXT]

    def say(self, number: int | None, message: Any) -> None:
        self.wire.feed(unmasked(TEXT, encode_from_server(number, message).encode()))


async def test_requests_are_left_at_once_though_the_server_reads_nothing() -> None:
    made = Linked()
    first, second = [await made.link.begin(Watch(id=ID), 1024) for _ in range(2)]
    made.stop_reading()
    closing = asyncio.create_task(first.close())
    await turns()
    assert closing.done()
    made.link.cancel(2)
    assert made.said == [{"type": "cancel", "request": number} for number in (1, 2)]
    made.say(None, Failure(GoingAway(retry_after=1.0)))
    made.wire.feed(unmasked(CLOSE, b"\x03\xe9"))
    made.frames.connection_lost(None)
    with pytest.raises(GoingAway):
        await made.link.begin(Watch(id=ID), 1024)
    await second.close()
    await made.link.close()


@pytest.mark.parametrize(
    ("request_", "answer", "data"),
    [
        (
            Read(id=ID, start=0, end=None),
            Started(offset=0, end=None, line=None, status=STATUS, limits=LIMITS),
            chunk_frame(1, 0, bytes(1024)),
        ),
        (Query(source="s"), QueryStarted("application/json"), frame_records(1, RecordBatch([bytes(1016)]))),
    ],
    ids=["chunks", "records"],
)
async def test_what_was_taken_is_given_though_the_window_cannot_be_renewed(
    request_: Request, answer: Any, data: bytes
) -> None:
    made = Linked()
    stream = await made.link.begin(request_, 1024)
    made.say(1, answer)
    assert await stream.receive() == answer
    made.stop_reading()
    made.wire.feed(unmasked(BINARY, data))
    receiving = asyncio.create_task(stream.receive())
    await turns()
    # Who is cancelled now has nothing of it, and nobody else ever would.
    receiving.cancel()
    assert isinstance(await receiving, Chunk | RecordBatch)
    assert made.said == [{"type": "window", "request": 1, "until": 2048}]


async def test_server_that_does_not_answer_a_close_is_cut_off() -> None:
    made = Open(close_timeout=0.01).listen()
    closing = asyncio.create_task(made.frames.close())
    await made.wire.until(lambda _: made.wire.aborted)
    assert not closing.done()
    made.lose()
    await closing


async def test_server_that_closes_and_does_not_end_the_connection_is_cut_off() -> None:
    made = Open(close_timeout=0.01).listen()
    made.feed(unmasked(CLOSE, b""))
    await made.wire.until(lambda _: made.wire.aborted)
    made.lose()


async def test_closing_that_is_cancelled_goes_on() -> None:
    made = Open().listen()
    first = asyncio.create_task(made.frames.close())
    await turns()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(made.frames.close())
    await turns()
    assert not second.done()
    made.lose()
    await second
