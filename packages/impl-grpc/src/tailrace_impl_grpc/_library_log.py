"""What the log of the gRPC library must not say."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

_LIBRARY = logging.getLogger("grpc._cython.cygrpc")


def quiet_library() -> None:
    """Keep out of the log what is not for it. Idempotent.

    Metadata that is not UTF-8 may be a token, and any client can send it. That an answer was not sent, since the client
    had left, is no error with a traceback, as it is to the library where its handler has returned already.
    """
    _LIBRARY.addFilter(_is_for_the_log)


def _is_for_the_log(record: logging.LogRecord) -> bool:
    text = str(record.msg)
    if text.startswith("Invalid encoding on"):
        logger.info("metadata of a call is not UTF-8")
        return False
    # Other services of the process have their own ideas of that.
    if text.startswith("ExecuteBatchError raised") and "[/tailrace.v1." in record.getMessage() and _was_begun(record):
        logger.debug("the client of a call had left before its answer was sent")
        return False
    return True


def _was_begun(record: logging.LogRecord) -> bool:
    """Return whether the core had begun what then failed; what it refuses is a defect of this package."""
    error = record.exc_info[1] if record.exc_info else None
    return str(error).startswith('Failed "execute_batch"')
