"""Buffers for payloads that are handed on as they were received."""

from __future__ import annotations

import asyncio
import threading

from tailrace_impl_common import ReusableBuffers
from tailrace_impl_websocket._frame_reader import AREA_SIZE, ReceiveBuffers


class _Thread(threading.local):
    """What all connections of a thread share: only one event loop runs in it at a time."""

    def __init__(self) -> None:
        self.area = bytearray(AREA_SIZE)


_thread = _Thread()


class PayloadBuffers(ReceiveBuffers):
    """What one connection receives into, where its payloads are handed on without a copy."""

    __slots__ = ("_reusable",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare for a connection of ``loop``, which runs in this thread."""
        super().__init__(_thread.area)
        self._reusable = ReusableBuffers(loop)

    def take(self, size: int) -> bytearray:
        return self._reusable.take(size)

    def give_back(self, buffer: bytearray) -> None:
        """Do nothing: whether a buffer is free is seen when one is needed."""

    def release(self) -> None:
        """Remember nothing. What is in use stays with those who use it."""
        self._reusable.release()
