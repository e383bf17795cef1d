"""Waking those who wait for a change."""

from __future__ import annotations

import asyncio


class Signal:
    """Lets any number of tasks wait for the next change; costs next to nothing while nobody waits.

    It has no memory: a task checks its condition, then waits, without awaiting anything between. One event loop.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Wake everyone who waits."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self) -> None:
        """Wait for the next :meth:`notify`. Cancelling is safe."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
