"""Running a command's coroutine, and what SIGINT and SIGTERM do to it."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import socket
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from tailrace._signals import HANDLER, end_at_once

T = TypeVar("T")


class Interrupted(Exception):
    """The user ended the command."""


class Interruption:
    """Turns SIGINT and SIGTERM into calls: a command may take the first ones itself, all others cancel it.

    When it has ended and its event loop is being closed, one more is ignored; the next one ends the process at once,
    should something keep the loop from closing.
    """

    def __init__(self) -> None:
        self.handlers: list[Callable[[], object]] = []
        """Called one by one, each by one signal."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._interrupted = False
        self._ended = False

    def signal(self) -> None:
        """Take a signal; called in the thread of the event loop, between any two instructions of it."""
        if self._ended:
            HANDLER.action = end_at_once
        elif self._loop is None:
            self._interrupted = True
        else:
            self._loop.call_soon_threadsafe(self._handle)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` with signals handled.

        Raises:
            Interrupted: A signal cancelled it.
        """
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        try:
            with _waking(loop):
                self._loop = loop
                if self._interrupted:
                    # Before anything had begun.
                    raise Interrupted
                return await work
        except asyncio.CancelledError:
            if self._interrupted:
                raise Interrupted from None
            raise
        finally:
            self._ended = True

    def cancel(self) -> None:
        """Cancel the command; its coroutine then ends with :class:`Interrupted`."""
        if self._task is not None:
            self._interrupted = True
            self._task.cancel()

    def _handle(self) -> None:
        if self._ended:
            return
        if self.handlers:
            self.handlers.pop(0)()
        else:
            self.cancel()


@contextmanager
def _waking(loop: asyncio.AbstractEventLoop) -> Generator[None, None, None]:
    """Let signals wake the loop: one that comes just before it begins to wait would else be noticed at its end."""
    before = signal.set_wakeup_fd(-1)
    if before != -1:
        # uvloop's does so by itself.
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        yield
        return
    reading, writing = socket.socketpair()
    with reading, writing:
        reading.setblocking(False)
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        loop.add_reader(reading, reading.recv, 4096)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            loop.remove_reader(reading)


def run_async(
    work: Coroutine[Any, Any, T], interruption: Interruption | None = None, *, starts_processes: bool = False
) -> T:
    """Run a coroutine on a new event loop, uvloop's where it is installed.

    Args:
        work: The coroutine.
        interruption: What signals do; ``None`` for the end of the coroutine.
        starts_processes: Whether it starts other programs while it is connected. Then the loop is that of the standard
            library: uvloop forks as gRPC cannot bear, and now and then the new process crashes before it has begun.

    Raises:
        Interrupted: SIGINT or SIGTERM ended it.
    """
    interruption = interruption or Interruption()
    with closing(work), HANDLER.handing_to(interruption.signal):
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
        if not starts_processes and importlib.util.find_spec("uvloop") is not None:
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(interruption.guard(work))
