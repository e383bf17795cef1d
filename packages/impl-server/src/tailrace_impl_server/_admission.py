"""Refusing work while the process is near a limit of its own: file descriptors, requests that run."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from tailrace_common_api import Overloaded, TailraceError
from tailrace_server_api import RequestTelemetry, Telemetry

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


class RunningRequests(Telemetry):
    """Counts the requests that run, beside what another telemetry counts. Belongs to one event loop.

    Transports ask for telemetry once for every request that runs, which makes this the place that cannot miss one.
    """

    def __init__(self, maximum: int, telemetry: Telemetry) -> None:
        self._maximum = maximum
        self._telemetry = telemetry
        self.count = 0
        """Requests that run."""

    def admit(self) -> None:
        """Let one request in.

        Raises:
            Overloaded: Too many run.
        """
        if self.count >= self._maximum:
            raise Overloaded(what="requests", retry_after=_RETRY_AFTER)

    def connection(self, transport: str) -> AbstractContextManager[None]:
        return self._telemetry.connection(transport)

    def request(self, transport: str, operation: str) -> RequestTelemetry:
        return _RunningRequest(self, self._telemetry, transport, operation)

    def refused(self, transport: str, code: str) -> None:
        self._telemetry.refused(transport, code)

    def exposition(self) -> tuple[str, bytes]:
        return self._telemetry.exposition()


class _RunningRequest(RequestTelemetry):
    __slots__ = ("_inner", "_operation", "_running", "_telemetry", "_transport", "received", "sent")

    def __init__(self, running: RunningRequests, telemetry: Telemetry, transport: str, operation: str) -> None:
        self._running = running
        self._telemetry = telemetry
        self._transport = transport
        self._operation = operation
        self._inner = telemetry.request(transport, operation)
        # Called per chunk.
        self.received = self._inner.received  # type: ignore[method-assign]  # bound once instead of passed on for each chunk
        self.sent = self._inner.sent  # type: ignore[method-assign]  # bound once instead of passed on for each chunk

    def __enter__(self) -> Self:
        try:
            # Many may have been let in before the first of them began.
            self._running.admit()
        except TailraceError as error:
            self._telemetry.refused(self._transport, error.code)
            raise
        self._running.count += 1
        self._inner.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._running.count -= 1
        self._inner.__exit__(exc_type, exc, traceback)
