"""From blocking code into an event loop that runs in another thread: what the blocking façades are made of.

A portal is the way into that loop. :class:`Portal` asks for the one method that ``anyio.from_thread.BlockingPortal``
has, so that this module needs no third party. The loop must be one of asyncio.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Portal(Protocol):
    """A way into a running event loop, usable from every thread but the loop's own."""

    def start_task_soon(self, func: Callable[..., Any], *args: Any) -> Future[Any]:
        """Start a task in the loop and return a future of its result; cancelling the future cancels the task."""


def call(portal: Portal, func: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a coroutine function in the portal's loop and wait for its result.

    When the wait is interrupted (``KeyboardInterrupt``), the coroutine is cancelled, and the interruption goes on once
    it has ended: nothing is left running behind the caller's back. A second interruption does not wait for that.

    Raises:
        BaseException: Whatever ``func`` raises.
        RuntimeError: The portal is closed, or this is its own thread.
    """
    ended = threading.Event()
    interrupted = False
    task: asyncio.Task[Any] | None = None

    async def run() -> T | None:
        nonlocal task
        if interrupted:
            return None
        task = asyncio.current_task()
        try:
            return await func(*args, **kwargs)
        finally:
            ended.set()

    try:
        result: T = portal.start_task_soon(run).result()
    except BaseException:
        if not ended.is_set():
            # Not what the coroutine raised, so the wait was interrupted, or could not even begin.
            interrupted = True
            if task is not None:
                task.get_loop().call_soon_threadsafe(task.cancel)
                ended.wait()
        raise
    return result


def call_plain(portal: Portal, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a plain function in the portal's loop and return its result: for what belongs to the loop without waiting.

    Raises:
        BaseException: Whatever ``func`` raises.
        RuntimeError: The portal is closed, or this is its own thread.
    """
    result: T = portal.start_task_soon(partial(func, *args, **kwargs)).result()
    return result


class _End:
    """Says that nothing comes any more, and why."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Pump(Generic[T]):
    """Takes items out of an async generator and queues them for one blocking reader.

    The loop's thread writes ``produced``, ``sleeping`` and ``loop``, the reader's thread writes ``consumed``,
    ``demanded`` and ``stopped``, and each looks at the other's again after it has announced its own: so neither needs a
    lock, and the loop never waits for a thread.
    """

    def __init__(self, source: AsyncGenerator[T, None], ahead: int, cost: Callable[[T], int]) -> None:
        self.source = source
        self.ahead = ahead
        self.cost = cost
        self.items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self.produced = 0
        self.consumed = 0
        self.delivered = 0
        self.demanded = 0
        self.sleeping = False
        self.begun = False
        self.stopped = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.wake = asyncio.Event()
        self.task: asyncio.Task[Any] | None = None

    async def run(self) -> None:
        """Move items until the source ends, or :meth:`stop`; does nothing where that was begun before."""
        if self.begun:
            return
        self.begun = True
        self.task = asyncio.current_task()
        self.loop = asyncio.get_running_loop()
        error: BaseException | None = None
        try:
            try:
                while await self._wanted():
                    item = await anext(self.source)
                    self.produced += self.cost(item)
                    self.delivered += 1
                    self.items.put(item)
                    del item
            finally:
                await self.source.aclose()
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError as caught:
            if not self.stopped:  # The portal is closing.
                error = RuntimeError("the event loop ended")
                error.__cause__ = caught
                raise
        except Exception as caught:  # noqa: BLE001 - whatever it is, it belongs to who reads
            error = caught
        finally:
            self.task = None
            self.items.put(_End(error))

    async def _wanted(self) -> bool:
        """Wait for room; return whether the reader still reads."""
        while not self.stopped:
            if self.demanded > self.delivered or self.produced - self.consumed < self.ahead:
                return True
            self.wake.clear()
            self.sleeping = True
            if self.demanded <= self.delivered and self.produced - self.consumed >= self.ahead and not self.stopped:
                await self.wake.wait()
            self.sleeping = False
        return False

    def notify(self) -> None:
        """Let the pump look again, from any thread."""
        if self.sleeping and self.loop is not None:
            with suppress(RuntimeError):  # The loop is closed.
                self.loop.call_soon_threadsafe(self.wake.set)

    def stop(self) -> None:
        """End the pump, from any thread, without waiting for it."""
        self.stopped = True
        if self.loop is not None:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class BlockingIterator(Iterator[T]):
    """The items of an async generator, for blocking code.

    A task in the loop fetches them, at most ``ahead`` units in front of the reader, so that fetching and using overlap
    and an item costs a fraction of a thread switch. Nothing is fetched before the first ``next()``.

    To be read by one thread at a time. Closing it, or dropping it, ends the generator in the loop; so does its use as a
    context manager. An interrupted ``next()`` (``KeyboardInterrupt``) loses nothing: iteration can go on.
    """

    def __init__(
        self,
        portal: Portal,
        source: AsyncGenerator[T, None],
        *,
        ahead: int = 0,
        cost: Callable[[T], int] = lambda item: 1,
    ) -> None:
        """Prepare to iterate.

        Args:
            portal: The way into the loop to which ``source`` belongs.
            source: An async generator that was not started; it belongs to this iterator.
            ahead: How much is fetched before it is asked for, in units of ``cost``; exceeded by at most one item.
                0: each item is fetched when it is asked for, so that it is as fresh as can be.
            cost: What an item counts.
        """
        self._pump = _Pump(source, ahead, cost)
        self._portal = portal
        self._taken = 0
        self._starting = False
        self._started = False
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        pump = self._pump
        pump.demanded = self._taken + 1
        if self._started:
            pump.notify()
        else:
            self._start()
        item = pump.items.get()
        if isinstance(item, _End):
            self._ended = True
            if item.error is not None:
                raise item.error
            raise StopIteration
        self._taken += 1
        if pump.ahead:
            pump.consumed += pump.cost(item)
            pump.notify()
        return item

    def _start(self) -> None:
        # An interruption of the second line leaves open whether the pump was started. To start it twice is harmless.
        self._starting = True
        self._portal.start_task_soon(self._pump.run)
        self._started = True

    def close(self) -> None:
        """End the generator and wait until it has ended; idempotent. Items that were not read are dropped."""
        self.cancel()
        if self._starting and not self._started:
            with suppress(RuntimeError):  # The portal is closed.
                self._start()
        while self._started and not self._ended:
            self._ended = isinstance(self._pump.items.get(), _End)
        self._ended = True

    def cancel(self) -> None:
        """End the generator without waiting for it; from any thread, the loop's too. Idempotent."""
        if not self._ended:
            self._pump.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may run in the loop's own thread, so nothing may be waited for here.
        if not getattr(self, "_ended", True):
            self.cancel()
