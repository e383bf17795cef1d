"""gRPC's health service, which says whether the server takes new work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]

_LOOK_AGAIN = 1.0
"""Time between two looks at the readiness for who watches it, in seconds."""
_MOST_WATCHING = 1000
"""Calls that may watch at the same time: they are made without a token, and are not among those that are counted."""


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Every service of the server is SERVING while the server is ready, and NOT_SERVING otherwise.

    Calls that watch do not hold up the end of the server: :meth:`dismiss` ends them.
    """

    def __init__(self, ready: Callable[[], bool], services: Collection[str]) -> None:
        """Answer for ``services`` (the empty name stands for the whole server) by what ``ready`` returns."""
        self._ready = ready
        self._services = frozenset(services)
        self._watching: set[asyncio.Task[object]] = set()
        self._dismissed = False

    async def Check(  # noqa: N802 - the name of the method in the service
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802 - the name of the method in the service
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> None:
        if len(self._watching) >= _MOST_WATCHING:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch already")
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        try:
            await self._report(request.service, context)
        except asyncio.CancelledError:
            if not self._dismissed:
                raise
            task.uncancel()
            await _say_goodbye(context)
        finally:
            self._watching.discard(task)

    def dismiss(self) -> None:
        """Report NOT_SERVING from here on, and end every call that watches, or comes to watch."""
        self._dismissed = True
        for task in self._watching:
            task.cancel()

    def _status(self, service: str) -> int:
        if service not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        if self._ready() and not self._dismissed:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    async def _report(self, service: str, context: _Context) -> None:
        if self._dismissed:
            # It would use up the grace.
            await _say_goodbye(context)
            return
        known: int | None = None
        while True:
            status = self._status(service)
            if status != known:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                known = status
            # Readiness has many causes, some of which pass with time; few watch, so looking costs nothing.
            await asyncio.sleep(_LOOK_AGAIN)


async def _say_goodbye(context: _Context) -> None:
    try:
        await context.write(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is going away")
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError:
        # The client has left meanwhile.
        return
