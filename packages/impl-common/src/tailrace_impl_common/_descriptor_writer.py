"""Writing to a file descriptor without blocking the loop."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import threading
from collections.abc import Callable

from tailrace_impl_common._buffers import Buffer

_Job = tuple[Callable[[], None], "asyncio.Future[None]"]


class DescriptorWriter:
    """Writes buffers to a descriptor in order, from one thread of its own, one ahead of its user.

    While one buffer is written the next one can be fetched. The thread does not keep the process from ending, even
    when nobody reads the other end. Belongs to one event loop; one task at a time.
    """

    def __init__(self, descriptor: int, *, observe: Callable[[Buffer], object] | None = None) -> None:
        """Write to an open descriptor.

        Args:
            descriptor: An open file, pipe, terminal or socket, in blocking mode or not; closed by :meth:`close` alone.
            observe: Called in the thread with each buffer, before it is written; for hashing where the bytes are hot.
        """
        self._descriptor = descriptor
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None

    async def write(self, data: Buffer) -> None:
        """Wait for the previous buffer to be written, then begin with this one, which must not be changed.

        Raises:
            OSError: The previous buffer, or an earlier one, could not be written; ``BrokenPipeError`` when nobody
                reads.
        """
        await self.flush()
        self._running = self._submit(lambda: self._write(data))

    async def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: As for :meth:`write`.
        """
        if self._running is not None:
            await asyncio.shield(self._running)
            self._running = None

    async def close(self) -> None:
        """Close the descriptor behind everything that was handed in, whether that could be written or not.

        A cancelled call leaves that to the thread.
        """
        self._running = None
        closed = self._submit(lambda: os.close(self._descriptor))
        self.release()
        await asyncio.shield(closed)

    def release(self) -> None:
        """Let the thread end behind what was handed in; the descriptor stays open."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread = None

    def _submit(self, action: Callable[[], None]) -> asyncio.Future[None]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tailrace-writer", daemon=True)
            self._thread.start()
        done = self._loop.create_future()
        self._jobs.put((action, done))
        return done

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            action, done = job
            error: BaseException | None = None
            try:
                action()
            except BaseException as caught:  # noqa: BLE001 - whatever it is, it belongs to who waits
                error = caught
            # Neither the buffer nor the job is kept while waiting for the next one.
            del job, action
            try:
                self._loop.call_soon_threadsafe(_settle, done, error)
            except RuntimeError:  # The loop is closed, so nobody waits.
                return
            del done, error

    def _write(self, data: Buffer) -> None:
        if self._observe is not None:
            self._observe(data)
        view = memoryview(data).cast("B")
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Somebody who shares the descriptor has set it to non-blocking.
                select.select([], [self._descriptor], [])


def _settle(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
        # Who does not flush does not ask how the last write went; that is no defect to be logged.
        done.exception()
