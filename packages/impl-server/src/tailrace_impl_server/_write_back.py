"""Beginning to bring bytes to disk early, so that the sync at the end of a resource finds little left to wait for.

A system keeps what was written in memory for seconds before it begins to write it to disk, and a sync at the end then
waits for all of it. Where there is `sync_file_range` (Linux), a thread asks for the beginning while more bytes arrive.
That is a hint and no promise: what has to be on disk is synced as ever, and an error of the disk is told by that sync,
because asking does not wait for the disk and so takes no error away from whoever does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from tailrace_impl_server._filesystem_files import ResourceFiles

_MOST_WAITING = 64
"""Requests that may stand in line; a disk that is behind needs no more of them."""
_BEGIN = 2
"""`SYNC_FILE_RANGE_WRITE`: begin; neither wait for what has begun before nor for the end."""
_NAP = 0.002
"""Seconds for which the thread looks for no more requests after some: who makes one meanwhile need not wake it, which
is as dear as writing half a megabyte."""


def load_sync_file_range() -> Callable[[int, int, int, int], object] | None:
    """Return the system's call of (descriptor, offset, length, flags); ``None`` where there is none."""
    try:
        import ctypes

        call = ctypes.CDLL(None).sync_file_range
    except (ImportError, OSError, TypeError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call.restype = ctypes.c_int
    return lambda fd, start, length, flags: call(fd, start, length, flags)


class WriteBack:
    """One thread that asks for the beginning, since asking waits while the disk's own line is full."""

    def __init__(
        self, load: Callable[[], Callable[[int, int, int, int], object] | None] = load_sync_file_range
    ) -> None:
        """Start nothing yet.

        Args:
            load: Returns the system's call; called in the thread, once.
        """
        self._load = load
        self._line: SimpleQueue[tuple[ResourceFiles, int, int] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def begin(self, files: ResourceFiles, start: int, end: int) -> bool:
        """Have the data of ``[start, end)`` brought to disk soon; never waits, from any thread.

        Returns:
            Whether it was taken. If not, too much stands in line or no thread can be started, and the range may be part
            of a later request.
        """
        if self._line.qsize() >= _MOST_WAITING:
            return False
        # Taken for good by whoever comes first.
        if self._thread is None and self._starting.acquire(blocking=False):
            thread = threading.Thread(target=self._serve, name="tailrace-write-back", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The system gives no more threads at the moment. Nothing that is stored depends on this one.
                self._starting.release()
                return False
            self._thread = thread
        self._line.put((files, start, end))
        return True

    def close(self, timeout: float) -> None:
        """End the thread, and wait for that for ``timeout`` seconds at most; nothing may be begun any more. Blocks.

        Requests that still stand in line are dropped: a slow disk may take seconds for each of them, and nothing needs
        them.
        """
        if self._thread is not None:
            with suppress(Empty):
                while True:
                    self._line.get_nowait()
            self._line.put(None)
            self._thread.join(timeout)

    def _serve(self) -> None:
        call = self._load()
        while (request := self._line.get()) is not None:
            files, start, end = request
            if call is not None:
                call(files.data, start, end - start, _BEGIN)
            # An idle thread must not keep closed files open.
            del files, request
            if self._line.empty():
                time.sleep(_NAP)
