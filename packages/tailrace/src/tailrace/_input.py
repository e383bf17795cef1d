"""Reading a file, a pipe or a terminal until its end, or until told to stop."""

from __future__ import annotations

import array
import fcntl
import os
import select
import stat
import termios
from collections.abc import Generator
from contextlib import suppress

_FILE_PIECE = 1024 * 1024
# More than a pipe holds by default.
_PIPE_PIECE = 256 * 1024


class StoppableInput:
    """The bytes of a descriptor as they come: a read returns what is there and never waits for more.

    :meth:`pieces` is for one thread; :meth:`stop` may be called from any other.
    """

    def __init__(self, descriptor: int) -> None:
        """Read from an open descriptor, which is left open."""
        self._descriptor = descriptor
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._stop_reader, self._stop_writer = os.pipe()

    def stop(self) -> None:
        """End the input; what a pipe or terminal holds at this moment is still read."""
        if self._stop_writer >= 0:
            # Without a reader the input has ended by itself.
            with suppress(BrokenPipeError):
                os.write(self._stop_writer, b"\0")

    def close(self) -> None:
        """End the input for good; the thread that reads notices. Idempotent."""
        if self._stop_writer >= 0:
            # The reading end, which a thread may be waiting for, is closed by that thread.
            os.close(self._stop_writer)
            self._stop_writer = -1

    def pieces(self) -> Generator[bytes, None, None]:
        """Yield the bytes; blocking.

        Raises:
            OSError: The descriptor cannot be read.
        """
        size = _FILE_PIECE if self._is_file else _PIPE_PIECE
        poll = select.poll()
        poll.register(self._stop_reader, select.POLLIN)
        if not self._is_file:
            poll.register(self._descriptor, select.POLLIN)
        try:
            while True:
                # A file is always ready, so there is nothing to wait for but a look at whether to stop.
                ready = {descriptor for descriptor, _ in poll.poll(0 if self._is_file else None)}
                if self._stop_reader in ready:
                    yield from self._rest()
                    return
                try:
                    data = os.read(self._descriptor, size)
                except BlockingIOError:
                    continue
                if not data:
                    return
                yield data
        finally:
            os.close(self._stop_reader)

    def _rest(self) -> Generator[bytes, None, None]:
        if self._is_file:
            return
        waiting = array.array("i", [0])
        try:
            fcntl.ioctl(self._descriptor, termios.FIONREAD, waiting)
        except OSError:
            return
        left = waiting[0]
        while left > 0:
            data = os.read(self._descriptor, left)
            if not data:
                return
            left -= len(data)
            yield data
