"""The status with which a call of ``grpc.aio`` has really ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

ResultT = TypeVar("ResultT")

STATUS_TIMEOUT = 5.0
"""Time for the status of a call to follow what shows that the call has ended, in seconds."""

# A write that fails because the call has ended makes grpc.aio set this status, before or after the real one.
_PLACEHOLDER = (grpc.StatusCode.INTERNAL, "Internal error from Core")


class CallStatus:
    """Watches a call from its beginning, and knows how it ended."""

    def __init__(self, call: grpc.aio.Call) -> None:
        """Watch ``call``, of which nothing was written or read yet."""
        self._status: grpc.aio.AioRpcError | None = None
        self._known = asyncio.Event()
        call.add_done_callback(self._on_status)

    async def known(self) -> grpc.aio.AioRpcError:
        """Return the status, as soon as the call has ended; its code may be OK. Cancelling this does not end it."""
        await self._known.wait()
        assert self._status is not None
        return self._status

    async def behind(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Return the status that ``error`` stands for; its code may be OK."""
        if (error.code(), error.details()) != _PLACEHOLDER:
            return error
        try:
            async with asyncio.timeout(STATUS_TIMEOUT):
                return await self.known()
        except TimeoutError:
            # Nobody said why the call has ended; to the one who wrote, it is the connection that failed.
            return grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, error.initial_metadata(), error.trailing_metadata(), "a write has failed"
            )

    def _on_status(self, call: grpc.aio.Call) -> None:
        # Called with each status that is set, so that the real one is kept even when it is overwritten.
        code, details = _at_once(call.code()), _at_once(call.details())
        if (code, details) != _PLACEHOLDER:
            self._status = grpc.aio.AioRpcError(code, None, _at_once(call.trailing_metadata()), details)
            self._known.set()


def _at_once(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return the result of a coroutine that need not wait: what grpc.aio knows of a call that is done."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    coroutine.close()
    raise RuntimeError("the call is not done")
