"""Ending a call with an error, on the server's side."""

from __future__ import annotations

import logging
from typing import Any

import grpc.aio

from tailrace_common_api import TailraceError
from tailrace_impl_grpc._error_table import error_to_status

logger = logging.getLogger(__name__)


async def abort_call(context: grpc.aio.ServicerContext[Any, Any], error: TailraceError) -> None:
    """End a call with an error; returns when the client is gone already.

    Raises:
        grpc.aio.AbortError: The client was told; to be left to the library.
    """
    status, message, metadata = error_to_status(error)
    try:
        await context.abort(status, message, metadata)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError:
        logger.debug("the client left before it could be told: %s", ascii(message))
