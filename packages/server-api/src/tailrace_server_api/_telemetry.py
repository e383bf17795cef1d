"""What a server counts of itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self


class RequestTelemetry(AbstractContextManager["RequestTelemetry"]):
    """One request while it is served; leaving it with a ``TailraceError`` counts its code. Does nothing by itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def received(self, count: int) -> None:
        """Count bytes of data that arrived; called per chunk, so it must be quick."""

    def sent(self, count: int) -> None:
        """Count bytes of data that were sent; called per chunk, so it must be quick."""


class Telemetry:
    """Counts what transports do. This one counts nothing.

    Labels are bounded: ``transport`` is ``grpc``, ``websocket``, ``http`` or ``inprocess``, ``operation`` the name of a
    request, and codes are those of errors.
    """

    def connection(self, transport: str) -> AbstractContextManager[None]:
        """Count a connection while the returned block runs."""
        return nullcontext()

    def request(self, transport: str, operation: str) -> RequestTelemetry:
        """Count a request while the returned block runs."""
        return RequestTelemetry()

    def refused(self, transport: str, code: str) -> None:
        """Count a connection or request that was refused before it began, by the code of the error."""

    def exposition(self) -> tuple[str, bytes]:
        """Return all figures: media type and body of an answer to a scrape."""
        return "text/plain; charset=utf-8", b""
