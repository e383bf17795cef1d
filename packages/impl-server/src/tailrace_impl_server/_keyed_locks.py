"""Locks by name that exist only while somebody wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager
from types import TracebackType


class KeyedLocks:
    """One lock per key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    def hold(self, key: Hashable) -> AbstractAsyncContextManager[None]:
        """Hold the lock of ``key`` within the block; who asked first gets it first."""
        return _Hold(self._locks, key)

    def is_held(self, key: Hashable) -> bool:
        """Return whether somebody holds the lock of ``key``, or waits for it."""
        return key in self._locks

    def __len__(self) -> int:
        return len(self._locks)


class _Hold:
    """Written out, as it is entered for most requests."""

    __slots__ = ("_key", "_locks")

    def __init__(self, locks: dict[Hashable, tuple[asyncio.Lock, int]], key: Hashable) -> None:
        self._locks = locks
        self._key = key

    async def __aenter__(self) -> None:
        lock, wanted = self._locks.get(self._key) or (asyncio.Lock(), 0)
        self._locks[self._key] = (lock, wanted + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._want_no_more()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._locks[self._key][0].release()
        self._want_no_more()

    def _want_no_more(self) -> None:
        lock, wanted = self._locks[self._key]
        if wanted == 1:
            del self._locks[self._key]
        else:
            self._locks[self._key] = (lock, wanted - 1)
