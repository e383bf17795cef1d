"""Running a command's coroutine, and what SIGINT and SIGTERM do to it."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The user ended the command."""


class Interruption:
    """Turns SIGINT and SIGTERM into calls: a command may take the first ones itself, all others cancel it."""

    def __init__(self) -> None:
        self.handlers: list[Callable[[], object]] = []
        """Called one by one, each by one signal."""
        self._task: asyncio.Task[Any] | None = None
        self._interrupted = False

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` with signals handled.

        Raises:
            Interrupted: A signal cancelled it.
        """
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._handle)
        try:
            return await work
        except asyncio.CancelledError:
            if self._interrupted:
                raise Interrupted from None
            raise
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def cancel(self) -> None:
        """Cancel the command; its coroutine then ends with :class:`Interrupted`."""
        if self._task is not None:
            self._interrupted = True
            self._task.cancel()

    def _handle(self) -> None:
        if self.handlers:
            self.handlers.pop(0)()
        else:
            self.cancel()


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
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if not starts_processes and importlib.util.find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run((interruption or Interruption()).guard(work))
