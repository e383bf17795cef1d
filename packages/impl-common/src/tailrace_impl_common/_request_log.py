"""What a server's log says of requests: who asked, and what went wrong, once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType

from tailrace_common_api import (
    ConnectionLost,
    DamagedBlock,
    Deleted,
    GoingAway,
    InternalError,
    ResourceFailed,
    StorageFailure,
    StorageFull,
    TailraceError,
)
from tailrace_impl_common._endpoint import Endpoint

logger = logging.getLogger(__name__)

# Address and name: each request has it for as long as it runs, and a dictionary is much larger.
_CALLER: ContextVar[tuple[str, str]] = ContextVar("tailrace_caller", default=("", ""))

_TROUBLE_OF_THE_SERVER = (StorageFailure, StorageFull, DamagedBlock, InternalError)
_COURSE_OF_THINGS = (ConnectionLost, GoingAway, Deleted, ResourceFailed)


def set_caller(*, peer: str, principal: str) -> None:
    """Let every log record of this task, and of those that it starts, say for whom it works.

    Args:
        peer: Address of the caller; empty where there is none.
        principal: Name of the caller; empty for an anonymous one.
    """
    _CALLER.set((peer, principal))


def current_caller() -> Mapping[str, str]:
    """Return ``peer`` and ``principal`` of the request that is being served, each if it is known."""
    return {key: value for key, value in zip(("peer", "principal"), _CALLER.get(), strict=True) if value}


def level_of(error: TailraceError) -> int:
    """Return the level at which a failed request is logged.

    What an operator has to look at is a warning, a mistake of a client is information, and what belongs to the course
    of things is for who looks for it.
    """
    if isinstance(error, _TROUBLE_OF_THE_SERVER):
        return logging.WARNING
    return logging.DEBUG if isinstance(error, _COURSE_OF_THINGS) else logging.INFO


def log_failure(operation: str, error: TailraceError, *, resource: str | None = None) -> None:
    """Log that a request failed."""
    level = level_of(error)
    if logger.isEnabledFor(level):
        about = {"code": error.code, **({"resource": resource} if resource else {})}
        logger.log(level, "%s failed: %s", operation, _shown(error), extra=about)


class counted_refusals:  # noqa: N801  # used as a function; a class because each request runs through several
    """Count and log it when the block refuses a connection or a request from ``peer`` before it begins."""

    __slots__ = ("_endpoint", "_peer")

    def __init__(self, endpoint: Endpoint, peer: str) -> None:
        self._endpoint = endpoint
        self._peer = peer

    def __enter__(self) -> None:
        return

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, TailraceError):
            transport, about = self._endpoint.transport, {"code": exc.code, "peer": self._peer}
            self._endpoint.telemetry.refused(transport, exc.code)
            logger.info("refused over %s: %s", transport, _shown(exc), extra=about)


def _shown(error: TailraceError) -> str:
    # Part of it may be the client's.
    return ascii(error.message)[1:-1]
