"""When newlines of a server are counted by what counts faster: once there is enough of them to pay for loading it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tailrace_impl_common import accelerate_counting

_MUCH = 512
"""Blocks of 128 KiB that are counted before; a server of small logs never needs the memory."""


class CountedBlocks:
    """Notes what is counted, and loads the accelerator in a thread of its own when it was much."""

    def __init__(self, accelerate: Callable[[], object] = accelerate_counting) -> None:
        """Count from 0.

        Args:
            accelerate: Loads it; called once at most, and blocks.
        """
        self._accelerate = accelerate
        self._left = _MUCH
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def note(self, blocks: int) -> None:
        """Take notice of so many blocks; never waits, from any thread."""
        if self._thread is not None:
            return
        # Two threads may overlook what the other one notes; it is a little more or less.
        self._left -= blocks
        if self._left > 0:
            return
        # Taken for good by whoever comes first.
        if self._starting.acquire(blocking=False):
            thread = threading.Thread(target=self._accelerate, name="tailrace-counting", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system gives no more threads at the moment; counting goes on as before.
                self._left = _MUCH
                self._starting.release()
                return
            self._thread = thread

    def close(self, timeout: float) -> None:
        """Wait for the loading if it has begun, ``timeout`` seconds at most. Blocks."""
        if self._thread is not None:
            self._thread.join(timeout)
