"""Refusing work while too few file descriptors are left."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Callable

from tailrace_common_api import Overloaded

_RETRY_AFTER = 1.0


def _count_descriptors() -> int:
    """Return how many file descriptors this process has open. Blocks for as long as the kernel needs to list them."""
    return len(os.listdir("/proc/self/fd"))


def _soft_limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2**31 if limit == resource.RLIM_INFINITY else limit


class DescriptorBudget:
    """Knows roughly how many file descriptors are left. Belongs to one event loop.

    Descriptors are counted in a thread, rarely: once in so many admissions that the reserve cannot be used up between
    two counts, and at each :meth:`sample`.
    """

    def __init__(
        self, *, count: Callable[[], int] = _count_descriptors, limit: Callable[[], int] = _soft_limit
    ) -> None:
        self._count = count
        self._limit = limit
        self._used = 0
        self._admitted = 0
        self._sampling: asyncio.Task[None] | None = None

    def admit(self) -> None:
        """Let one connection or request in.

        Raises:
            Overloaded: Too few file descriptors are left for it.
        """
        limit = self._limit()
        reserve = min(max(32, limit // 10), 512)
        # A burst is let in before it can be counted: each admission is taken for a descriptor until it is.
        scarce = self._used + self._admitted >= limit - reserve
        if not scarce:
            self._admitted += 1
        if (scarce or self._admitted > reserve // 4) and self._sampling is None:
            self._sampling = asyncio.ensure_future(self._sample())
        if scarce:
            raise Overloaded(what="file descriptors", retry_after=_RETRY_AFTER)

    async def sample(self) -> None:
        """Count what is in use."""
        if self._sampling is None:
            self._sampling = asyncio.ensure_future(self._sample())
        await asyncio.shield(self._sampling)

    async def close(self) -> None:
        """Wait for a count that is under way."""
        if self._sampling is not None:
            await asyncio.wait((self._sampling,))

    async def _sample(self) -> None:
        try:
            self._admitted = 0
            self._used = await asyncio.to_thread(self._count)
        except OSError as error:
            # Counting takes a descriptor too. Without /proc nothing is known, and nothing refused.
            self._used = self._limit() if error.errno in (errno.EMFILE, errno.ENFILE) else 0
        finally:
            self._sampling = None
