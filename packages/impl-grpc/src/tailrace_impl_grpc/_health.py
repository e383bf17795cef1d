"""The health service, whose watchers do not hold up the end of the server."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2


class HealthServicer(health.aio.HealthServicer):
    """gRPC's own health service; :meth:`dismiss` ends the calls that watch it."""

    def __init__(self) -> None:
        """Start with no service known but the server itself."""
        super().__init__()
        self._watching: set[asyncio.Task[object]] = set()
        self._dismissed = False

    async def Watch(  # noqa: N802 - the name of the method in the service
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            if not self._dismissed:
                raise
            task.uncancel()
            await self._say_goodbye(context)
        finally:
            self._watching.discard(task)

    async def dismiss(self) -> None:
        """Report NOT_SERVING from here on, and end every call that watches."""
        await self.enter_graceful_shutdown()
        self._dismissed = True
        for task in self._watching:
            task.cancel()

    async def _say_goodbye(
        self, context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]
    ) -> None:
        try:
            await context.write(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is going away")
        except grpc.aio.AbortError:
            raise
        except grpc.aio.BaseError:
            # The client has left meanwhile.
            return
