"""The one event loop of a process that the blocking API runs in."""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

_Started = queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Event] | BaseException]


class LoopThread:
    """An event loop in a thread of its own, in which all other threads can start tasks; a way into it.

    ``anyio`` has one, too. From a thread it waits twice for the loop, until a task was started and until it has ended,
    and to wait for another thread is most of what a call costs.
    """

    def __init__(self) -> None:
        """Start the loop."""
        self._lock = threading.Lock()
        self._ended = False
        # The loop itself keeps no task, and one that is dropped as a program ends without closing would be told of.
        self._results: set[Future[Any]] = set()
        self._process = os.getpid()
        self._serving = False
        self._abandoned = False
        started: _Started = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(started,), name="tailrace-loop", daemon=True)
        try:
            self._thread.start()
            outcome = started.get()
        except BaseException:
            # Nobody knows this thread, so that nobody else would end it.
            self._abandoned = True
            with suppress(queue.Empty):
                outcome = started.get(block=False)
                if not isinstance(outcome, BaseException):
                    loop, end = outcome
                    loop.call_soon_threadsafe(end.set)
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        self._loop, self._end = outcome

    def start_task_soon(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        """Start a task in the loop and return a future of its result; cancelling the future cancels the task.

        The task has the context variables of the caller.

        Args:
            func: What to call there: a coroutine function, or a plain one that does not wait.
            args: What to call it with.

        Raises:
            RuntimeError: The loop has ended, or this is its own thread, which cannot wait for it, or another process.
        """
        if os.getpid() != self._process:
            raise RuntimeError("the event loop is that of the process from which this one was forked")
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError("this cannot be called in the event loop's own thread")
        with self._lock:
            if self._ended:
                raise RuntimeError("the event loop has ended")
            result = asyncio.run_coroutine_threadsafe(_call(func, args), self._loop)
        self._results.add(result)
        result.add_done_callback(self._results.discard)
        return result

    def stop(self) -> None:
        """Cancel whatever still runs there, and wait until the loop has ended."""
        with suppress(RuntimeError):  # It is closed.
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self, started: _Started) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._until_ended(started))
        except BaseException as error:
            if self._serving:
                raise
            started.put(error)

    async def _until_ended(self, started: _Started) -> None:
        end = asyncio.Event()
        self._serving = True
        started.put((asyncio.get_running_loop(), end))
        try:
            if not self._abandoned:
                await end.wait()
        finally:
            with self._lock:
                self._ended = True
        # What came until now is started, so that it is cancelled with the rest, and nobody waits for it.
        await asyncio.sleep(0)


async def _call(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    result = func(*args)
    return await result if inspect.isawaitable(result) else result


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop: uvloop where it is installed, as everywhere in this package."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class SharedPortal:
    """A loop in a thread of its own, there while it is in use. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._running: LoopThread | None = None

    def acquire(self) -> LoopThread:
        """Return the way into the loop; starts it for its first user."""
        with self._lock:
            if self._running is None:
                self._running = LoopThread()
            self._users += 1
            return self._running

    def release(self) -> None:
        """Give it back; the last user ends the loop, and whatever still runs there is cancelled."""
        with self._lock:
            self._users -= 1
            if self._users or self._running is None:
                return
            running, self._running = self._running, None
            # Iterators and files that were never closed must not keep the thread.
            running.stop()


PORTAL = SharedPortal()

# Loops of the parents of a forked process. Their threads are not here, so nothing may ever wait for them, and letting
# go of them would.
_ABANDONED: list[object] = []


def _forget() -> None:
    """Start anew in a forked process, which has the state of the loop and not its thread."""
    _ABANDONED.append(PORTAL.__dict__.copy())
    PORTAL.__init__()  # type: ignore[misc]  # others know the object; its state is what must go


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
