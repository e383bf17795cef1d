"""What the log of the gRPC library must not say."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

_LIBRARY = logging.getLogger("grpc._cython.cygrpc")


def hide_undecodable_metadata() -> None:
    """Keep metadata that is not UTF-8 out of the log: it may be a token, and any client can send it. Idempotent."""
    _LIBRARY.addFilter(_shows_no_metadata)


def _shows_no_metadata(record: logging.LogRecord) -> bool:
    if not str(record.msg).startswith("Invalid encoding on"):
        return True
    logger.info("metadata of a call is not UTF-8")
    return False
