"""Buffers that are used again as soon as nobody looks at them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from impl_websocket_frames import unmasked

from tailrace_common_api import KIBIBYTE, MEBIBYTE
from tailrace_impl_websocket._frame_layout import BINARY
from tailrace_impl_websocket._frame_reader import FrameReader
from tailrace_impl_websocket._payload_buffers import PayloadBuffers

CHUNK = MEBIBYTE + 46


class Clock:
    """An event loop's timers, which fire when the test says so."""

    def __init__(self) -> None:
        self.due: list[tuple[Callable[[], None], asyncio.TimerHandle]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        handle = asyncio.TimerHandle(loop.time() + delay, callback, (), loop)
        self.due.append((callback, handle))
        return handle

    def fire(self) -> int:
        """Let all timers fire that were not cancelled; return how many there were."""
        due, self.due = [each for each in self.due if not each[1].cancelled()], []
        for callback, _ in due:
            callback()
        return len(due)


@pytest.fixture
async def clock() -> Clock:
    return Clock()


@pytest.fixture
def buffers(clock: Any) -> PayloadBuffers:
    return PayloadBuffers(clock)


async def test_buffer_that_nobody_looks_at_is_used_again(buffers: PayloadBuffers) -> None:
    first = buffers.take(CHUNK)
    view = memoryview(first)[10:20]
    second = buffers.take(CHUNK)
    assert second is not first
    # The newest of those that are free.
    assert buffers.take(CHUNK - 1000) is second
    view.release()
    held = memoryview(second)
    assert buffers.take(CHUNK) is first
    assert len(buffers._kept) == 2
    assert len(held) == len(second)


async def test_view_of_a_view_keeps_a_buffer(buffers: PayloadBuffers) -> None:
    buffer = buffers.take(CHUNK)
    view = memoryview(buffer)[:CHUNK].toreadonly()
    part = memoryview(view)[100:]
    view.release()
    held = memoryview(buffers.take(CHUNK))
    assert held.obj is not buffer
    del part
    assert buffers.take(CHUNK) is buffer


async def test_buffer_is_no_more_than_twice_as_large_as_what_it_is_for(buffers: PayloadBuffers) -> None:
    large = buffers.take(2 * MEBIBYTE)
    small = buffers.take(MEBIBYTE - 1)
    assert small is not large
    assert len(small) < MEBIBYTE + 64 * KIBIBYTE
    assert buffers.take(MEBIBYTE + 64 * KIBIBYTE) is large


@pytest.mark.parametrize("size", [1, 1000, 128 * KIBIBYTE - 1, 2 * MEBIBYTE + 1])
async def test_other_sizes_are_not_remembered(buffers: PayloadBuffers, clock: Clock, size: int) -> None:
    assert len(buffers.take(size)) == size
    assert buffers._kept == []
    assert clock.due == []


async def test_few_are_remembered_while_more_are_in_use(buffers: PayloadBuffers) -> None:
    views = [memoryview(buffers.take(CHUNK)) for _ in range(30)]
    assert len({id(view.obj) for view in views}) == 30
    assert len(buffers._kept) == 8


async def test_nothing_is_remembered_when_no_large_payloads_come(buffers: PayloadBuffers, clock: Clock) -> None:
    buffers.take(CHUNK)
    assert clock.fire() == 1
    # One was used since the last look.
    assert len(buffers._kept) == 1
    buffers.take(CHUNK)
    assert clock.fire() == 1
    assert len(buffers._kept) == 1
    assert clock.fire() == 1
    assert buffers._kept == []
    assert clock.fire() == 0
    buffers.take(CHUNK)
    assert len(clock.due) == 1


async def test_released_buffers_are_forgotten_and_nobody_looks_again(buffers: PayloadBuffers, clock: Clock) -> None:
    view = memoryview(buffers.take(CHUNK))
    view[:3] = b"abc"
    buffers.release()
    assert buffers._kept == []
    assert clock.fire() == 0
    assert bytes(view[:3]) == b"abc"
    buffers.release()


async def test_connections_of_a_thread_share_the_area_and_no_more() -> None:
    loop = asyncio.get_running_loop()
    first, second = PayloadBuffers(loop), PayloadBuffers(loop)
    assert first.area is second.area
    elsewhere: list[PayloadBuffers] = []
    thread = threading.Thread(target=lambda: elsewhere.append(PayloadBuffers(loop)))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert elsewhere[0].area is not first.area


async def test_messages_keep_what_they_are_while_others_arrive(buffers: PayloadBuffers) -> None:
    """Whatever is kept, and however long."""
    kept: list[memoryview] = []

    class Sink:
        def binary_received(self, data: memoryview) -> None:
            kept.append(data)

    reader = FrameReader(Sink(), buffers, max_size=None, masked=False)  # type: ignore[arg-type]  # nothing else arrives
    for number in range(40):
        size = 200_000 + 50_000 * (number % 7)
        reader.feed(unmasked(BINARY, bytes([number]) * size))
        assert kept[-1].readonly
        if number % 3:
            kept.pop()
        for view in kept:
            assert view == bytes(view[:1]) * len(view)
    assert [view[0] for view in kept] == list(range(0, 40, 3))
    assert len(buffers._kept) <= 8
    assert reader._target is None
    assert reader._buffer is None
