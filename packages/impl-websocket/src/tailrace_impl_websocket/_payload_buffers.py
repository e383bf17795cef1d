"""Buffers for payloads that are handed on as they were received."""

from __future__ import annotations

import asyncio
import threading

from tailrace_common_api import KIBIBYTE, MEBIBYTE
from tailrace_impl_websocket._frame_reader import AREA_SIZE, ReceiveBuffers

_SMALLEST = 128 * KIBIBYTE
"""Payloads below this size get a buffer of their own: to make one costs little."""
_LARGEST = 2 * MEBIBYTE
_GRAIN = 64 * KIBIBYTE
"""Sizes are multiples of this, so that a buffer suits what is nearly as large."""
_MOST = 8
"""Buffers that are remembered: as many full chunks as a usual window lets be under way, and some that are in use."""
_IDLE = 1.0
"""Seconds without large payloads after which none is remembered."""


class _Thread(threading.local):
    """What all connections of a thread share: only one event loop runs in it at a time."""

    def __init__(self) -> None:
        self.area = bytearray(AREA_SIZE)


_thread = _Thread()


class PayloadBuffers(ReceiveBuffers):
    """What one connection receives into, where its payloads are handed on without a copy.

    A buffer is used again as soon as nothing looks at it any more: a new one is filled with zeros, or comes from the
    system page by page, which costs as much as a copy. Who keeps a view keeps up to twice its size.
    """

    __slots__ = ("_loop", "_timer", "_used")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for a connection of ``loop``, which runs in this thread."""
        super().__init__(_thread.area)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._used = False

    def take(self, size: int) -> bytearray:
        if not _SMALLEST <= size <= _LARGEST:
            return bytearray(size)
        self._used = True
        if self._timer is None:
            self._timer = self._loop.call_later(_IDLE, self._look)
        kept = self._kept
        # The one that was used last is the likeliest to be in the processor's caches.
        for index in range(len(kept) - 1, -1, -1):
            if size <= len(kept[index]) <= 2 * size and _is_free(kept[index]):
                buffer = kept.pop(index)
                kept.append(buffer)
                return buffer
        buffer = bytearray(-(-size // _GRAIN) * _GRAIN)
        kept.append(buffer)
        if len(kept) > _MOST:
            del kept[0]
        return buffer

    def give_back(self, buffer: bytearray) -> None:
        """Do nothing: whether a buffer is free is seen when one is needed."""

    def release(self) -> None:
        """Remember nothing. What is in use stays with those who use it."""
        self._kept.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._used:
            self._used = False
            self._timer = self._loop.call_later(_IDLE, self._look)
        else:
            self._kept.clear()


def _is_free(buffer: bytearray) -> bool:
    """Return whether no view of a buffer is left: only then can its size be changed."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return False
    return True
