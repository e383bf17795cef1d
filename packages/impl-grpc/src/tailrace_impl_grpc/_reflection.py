"""gRPC's reflection service, for those who may make other calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any

import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tailrace_common_api import ConnectionLost
from tailrace_impl_grpc._server_streams import Context, write_first


class ReflectionServicer(reflection.aio.ReflectionServicer):
    """Says which services there are, and what their messages look like, to whoever is let in."""

    def __init__(
        self,
        services: Collection[str],
        run: Callable[[Context, Callable[[], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        """Tell of ``services``; ``run`` does what it is given for a call, if it lets the caller in."""
        super().__init__(services)
        self._run = run

    # Not a generator, as in the base: the library leaves those of calls that are cancelled to the collector, and they
    # would count until it comes by.
    async def ServerReflectionInfo(  # type: ignore[override]  # noqa: N802 - the name of the method in the service
        self, request_iterator: AsyncIterable[reflection_pb2.ServerReflectionRequest], unused_context: Context
    ) -> None:
        answering: Any = super().ServerReflectionInfo(request_iterator, unused_context)
        await self._run(unused_context, lambda: _write_all(answering, unused_context))


async def _write_all(answers: AsyncGenerator[Any, None], context: Context) -> None:
    async with aclosing(answers):
        async for answer in answers:
            try:
                # Any of them may be the first.
                await write_first(context, answer)
            except grpc.aio.BaseError:
                raise ConnectionLost("the client is gone") from None
