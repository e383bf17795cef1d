"""Buffers that are used again as soon as nobody looks at them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tailrace_common_api import KIBIBYTE, MEBIBYTE
from tailrace_impl_common import ReusableBuffers

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
def buffers(clock: Any) -> ReusableBuffers:
    return ReusableBuffers(clock)


async def test_buffer_that_nobody_looks_at_is_used_again(buffers: ReusableBuffers) -> None:
    first = buffers.take(CHUNK)
    view = memoryview(first)[10:20]
    second = buffers.take(CHUNK)
    assert second is not first
    # The newest of those that are free.
    assert buffers.take(CHUNK - 1000) is second
    view.release()
    held = memoryview(second)
    assert buffers.take(CHUNK) is first
    assert buffers.kept == 2
    assert len(held) == len(second)


async def test_view_of_a_view_keeps_a_buffer(buffers: ReusableBuffers) -> None:
    buffer = buffers.take(CHUNK)
    view = memoryview(buffer)[:CHUNK].toreadonly()
    part = memoryview(view)[100:]
    view.release()
    held = memoryview(buffers.take(CHUNK))
    assert held.obj is not buffer
    del part
    assert buffers.take(CHUNK) is buffer


async def test_buffer_is_no_more_than_twice_as_large_as_what_it_is_for(buffers: ReusableBuffers) -> None:
    large = buffers.take(2 * MEBIBYTE)
    small = buffers.take(MEBIBYTE - 1)
    assert small is not large
    assert len(small) < MEBIBYTE + 64 * KIBIBYTE
    assert buffers.take(MEBIBYTE + 64 * KIBIBYTE) is large


@pytest.mark.parametrize("size", [1, 1000, 128 * KIBIBYTE - 1, 2 * MEBIBYTE + 1])
async def test_other_sizes_are_not_remembered(buffers: ReusableBuffers, clock: Clock, size: int) -> None:
    assert len(buffers.take(size)) == size
    assert buffers.kept == 0
    assert clock.due == []


async def test_few_are_remembered_while_more_are_in_use(buffers: ReusableBuffers) -> None:
    views = [memoryview(buffers.take(CHUNK)) for _ in range(30)]
    assert len({id(view.obj) for view in views}) == 30
    assert buffers.kept == 8


async def test_nothing_is_remembered_when_no_large_ones_are_taken(buffers: ReusableBuffers, clock: Clock) -> None:
    buffers.take(CHUNK)
    assert clock.fire() == 1
    # One was used since the last look.
    assert buffers.kept == 1
    buffers.take(CHUNK)
    assert clock.fire() == 1
    assert buffers.kept == 1
    assert clock.fire() == 1
    assert buffers.kept == 0
    assert clock.fire() == 0
    buffers.take(CHUNK)
    assert len(clock.due) == 1


async def test_released_buffers_are_forgotten_and_nobody_looks_again(buffers: ReusableBuffers, clock: Clock) -> None:
    view = memoryview(buffers.take(CHUNK))
    view[:3] = b"abc"
    buffers.release()
    assert buffers.kept == 0
    assert clock.fire() == 0
    assert bytes(view[:3]) == b"abc"
    buffers.release()
