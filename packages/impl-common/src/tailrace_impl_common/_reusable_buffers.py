"""Large buffers that are used again."""

from __future__ import annotations

import asyncio

from tailrace_common_api import KIBIBYTE, MEBIBYTE

_SMALLEST = 128 * KIBIBYTE
"""Below this size a buffer is not remembered: to make one costs little."""
_LARGEST = 2 * MEBIBYTE
_GRAIN = 64 * KIBIBYTE
"""Sizes are multiples of this, so that a buffer suits what is nearly as large."""
_MOST = 8
"""Buffers that are remembered: as many full chunks as a usual window lets be under way, and some that are in use."""
_IDLE = 1.0
"""Seconds without large buffers after which none is remembered."""


class ReusableBuffers:
    """Buffers that are used again as soon as nothing looks at them any more. Belongs to one event loop.

    A new one is filled with zeros, or comes from the system page by page, which costs as much as a copy.

    What is handed on must be views: they are what keeps a buffer from being used again. Who keeps a view keeps up to
    twice its size.
    """

    __slots__ = ("_kept", "_loop", "_timer", "_used")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin with none; ``loop`` runs in this thread."""
        self._loop = loop
        self._kept: list[bytearray] = []
        self._timer: asyncio.TimerHandle | None = None
        self._used = False

    @property
    def kept(self) -> int:
        """How many buffers are remembered, free or not."""
        return len(self._kept)

    def take(self, size: int) -> bytearray:
        """Return a buffer of at least ``size`` bytes, their values arbitrary."""
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
